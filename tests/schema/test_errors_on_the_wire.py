from __future__ import annotations

import builtins
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mms_sdk.errors
from mms_sdk.errors import MissingExtra, MmsError, from_problem
from mms_sdk.service.problems import as_problem, headers_for

NAMES = [name for name, kind in vars(mms_sdk.errors).items() if isinstance(kind, type) and issubclass(kind, MmsError)]
MESSAGE = "a thing has 1 to 63; got 'é\n\"'; try another"


def documented() -> dict[str, tuple[str, type[Exception] | None, int]]:
    """Parent, builtin meaning and status of every class, by the tree in the module's own words."""
    told: dict[str, tuple[str, type[Exception] | None, int]] = {"MmsError": ("Exception", None, 500)}
    above = ["MmsError"]
    for line in (mms_sdk.errors.__doc__ or "").splitlines():
        found = re.match(r"([│ ]*)[├└]── (\w+(?:, \w+)*)(?: \((\w+)\))?(?: +(\d{3})\b.*)?$", line)
        if found is None:
            continue
        depth = len(found[1]) // 4 + 1
        parent = above[depth - 1]
        meaning = getattr(builtins, found[3]) if found[3] else told[parent][1]
        status = int(found[4]) if found[4] else told[parent][2]
        names = found[2].split(", ")
        told |= dict.fromkeys(names, (parent, meaning, status))
        above[depth:] = [names[-1]]
    return told


DOCUMENTED = documented()


def made(name: str, message: str = MESSAGE) -> Any:
    kind = getattr(mms_sdk.errors, name)
    return kind("ray", extra="ray") if kind is MissingExtra else kind(message)


def test_the_tree_names_every_error_once_and_no_other() -> None:
    assert sorted(DOCUMENTED) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_what_the_tree_says(name: str) -> None:
    parent, meaning, status = DOCUMENTED[name]
    error = made(name)
    assert type(error).__bases__[0].__name__ == parent
    assert error.status == status
    assert as_problem(error)["status"] == status
    if meaning is not None:
        with pytest.raises(meaning):
            raise error
    else:
        others = (ValueError, KeyError, OSError, RuntimeError, ImportError)
        assert not isinstance(error, others)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_prints_its_message_and_nothing_else(name: str) -> None:
    error = made(name)
    assert str(error) == error.message
    if name != "MissingExtra":
        assert str(error) == MESSAGE


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MissingExtra"])
@given(message=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=2000))
def test_an_error_comes_over_the_wire_as_it_was(name: str, message: str) -> None:
    problem = orjson.loads(orjson.dumps(as_problem(made(name, message))))
    back = from_problem(problem)
    assert type(back) is getattr(mms_sdk.errors, name)
    assert back.message == message


def test_what_the_server_misses_is_not_missing_at_the_client() -> None:
    error = made("MissingExtra")
    back = from_problem(as_problem(error))
    assert type(back) is MmsError
    assert back.message == error.message
    assert 'pip install "mms-sdk[ray]"' in back.message


def test_codes_on_the_wire_are_unlike() -> None:
    codes = {as_problem(made(name))["type"] for name in NAMES}
    assert len(codes) == len(NAMES)
    assert all(re.fullmatch(r"urn:mms:[a-z]+(-[a-z]+)*", code) for code in codes)


def test_an_error_that_nobody_raised_on_purpose_keeps_its_details_to_itself() -> None:
    problem = as_problem(ZeroDivisionError("the password is hunter2"))
    assert (problem["type"], problem["status"]) == ("urn:mms:internal-error", 500)
    assert "hunter2" not in str(problem)
    assert type(from_problem(problem)) is MmsError


@pytest.mark.parametrize("problem", [{}, {"type": None}, {"type": "about:blank", "title": "Bad Gateway"}, {"type": 7}])
def test_a_problem_of_somebody_else_is_an_error_with_its_title(problem: dict[str, Any]) -> None:
    error = from_problem(problem)
    assert type(error) is MmsError
    assert error.message == problem.get("title", "the server gave no reason")


def test_whoever_is_refused_is_told_when_to_come_back() -> None:
    assert headers_for(mms_sdk.errors.Overloaded("full", retry_after_s=2.2)) == {"retry-after": "3"}
    assert headers_for(mms_sdk.errors.Unavailable("soon")) == {"retry-after": "1"}
    assert headers_for(mms_sdk.errors.MethodNotAllowed("no", allowed=["GET", "PUT"])) == {"allow": "GET, PUT"}
    assert headers_for(mms_sdk.errors.Unauthenticated("who")) == {"www-authenticate": "Bearer"}
    assert headers_for(ValueError("x")) == {}
