from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from mms_sdk.compute.functions import text_of
from mms_sdk.errors import InvalidRequest


def loud(*_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any) -> Any:
            raise AssertionError("a decorator came along")

        return called

    return decorate


@loud(
    "on several",
    "lines",
)
@loud()
def area(radius: float) -> float:
    """Of a circle."""
    # A comment.
    return math.pi * radius**2


def test_a_function_travels_with_its_modules_and_without_its_decorators() -> None:
    names: dict[str, Any] = {}
    exec(text_of(area.__wrapped__.__wrapped__), names)  # type: ignore[attr-defined]

    assert names["area"](2.0) == math.pi * 4
    assert names["area"].__doc__ == "Of a circle."


@pytest.mark.parametrize("thing", [len, lambda: 1, functools.partial(area, 1.0), 3])
def test_what_is_no_function_of_its_own_text_is_refused(thing: Any) -> None:
    with pytest.raises(InvalidRequest, match="defined by def"):
        text_of(thing)


def test_a_function_whose_text_is_gone_is_refused() -> None:
    names: dict[str, Any] = {}
    exec("def made(): return 1", names)

    with pytest.raises(InvalidRequest, match="that of made is nowhere to be found"):
        text_of(names["made"])
