"""Tokens over REST: made once, shown once, worthless at once; and how much may be asked with one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from asgi_calls import Answer, Lifespan, Service, check_problem
from mms_sdk.schema.access import ROLES, Principal, check_gives
from mms_sdk.service.app import create_app
from mms_sdk.service.known_tokens import KnownTokens
from mms_sdk.service.limits import Buckets, network_of
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace


def made(at: Service, name: str, **asked: Any) -> tuple[dict[str, Any], Service]:
    """A token and the app as it is asked with it."""
    answer = at.ask("POST", "/v1/tokens", json={"name": name, "role": "viewer", **asked})
    assert answer.status == 201, answer
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    return told["token"], replace(at, tokens=at.tokens | {name: told["text"]})


def test_a_token_that_was_made_does_what_its_role_says_and_its_text_is_told_once(at: Service) -> None:
    token, asked = made(at, "ci", role="viewer")
    text = asked.tokens["ci"]

    assert asked.ask("GET", "/v1/jobs", role="ci").status == 200
    check_problem(asked.ask("GET", "/v1/tokens", role="ci"), 403, "'admin'", "'ci'")
    assert text.startswith("mms_")
    assert len(text) == 47
    assert (token["role"], token["project"], token["created_by"]) == ("viewer", None, "boss")
    listed = at.ask("GET", "/v1/tokens")
    assert text not in listed.body.decode()
    assert [each["name"] for each in listed.json()] == ["boss", "ci"]
    own = asked.ask("GET", "/v1/tokens:own", role="ci").json()
    assert (own["name"], own["id"], own["expires_at"] > own["created_at"]) == ("ci", token["id"], True)


def test_a_revoked_token_is_worthless_at_the_next_request_and_stays_in_the_list(at: Service) -> None:
    _, asked = made(at, "ci")
    assert asked.ask("GET", "/v1/jobs", role="ci").status == 200

    revoked = at.ask("DELETE", "/v1/tokens/ci")

    check_problem(asked.ask("GET", "/v1/jobs", role="ci"), 401)
    assert revoked.json()["revoked_at"]
    again = at.ask("DELETE", "/v1/tokens/ci")
    assert again.json() == revoked.json()
    assert {each["name"]: bool(each["revoked_at"]) for each in at.ask("GET", "/v1/tokens").json()} == {
        "boss": False,
        "ci": True,
    }
    check_problem(at.ask("POST", "/v1/tokens/ci:rotate", json={}), 409, "create a new one")
    later, asked = made(at, "ci", role="editor")
    assert later["id"] != revoked.json()["id"]
    assert asked.ask("GET", "/v1/secrets", role="ci").status == 200


def test_a_lookup_that_was_under_way_when_a_token_was_revoked_lets_nobody_in_afterwards(service: Service) -> None:
    person = Principal(name="ci", role="admin", id="1")
    good = True

    async def race() -> tuple[Principal | None, Principal | None]:
        nonlocal good
        asked, answer = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def find(_: str) -> Principal | None:
            seen = person if good else None
            loop.call_soon_threadsafe(asked.set)
            asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
            return seen

        tokens = KnownTokens(find)
        early = asyncio.ensure_future(tokens.find("mms_x"))
        await asked.wait()
        good = False
        tokens.forget()
        answer.set()
        told = await early, await tokens.find("mms_x")
        await tokens.close()
        return told

    assert service.runner.run(race()) == (None, None)


def test_a_token_expires_to_the_second_even_if_it_is_known(at: Service) -> None:
    _, asked = made(at, "brief", lifetime_s=1)
    assert asked.ask("GET", "/v1/jobs", role="brief").status == 200

    time.sleep(1)

    check_problem(asked.ask("GET", "/v1/jobs", role="brief"), 401)
    assert made(at, "brief")[0]["expires_at"] is not None


def test_a_rotated_token_has_a_new_text_and_the_old_one_is_good_for_the_overlap_only(at: Service) -> None:
    token, old = made(at, "ci", limits={"concurrent": 3})

    with_overlap = at.ask("POST", "/v1/tokens/ci:rotate", json={"overlap_s": 60}).json()
    new = replace(at, tokens={"ci": with_overlap["text"]})

    assert [each.ask("GET", "/v1/jobs", role="ci").status for each in (old, new)] == [200, 200]
    assert with_overlap["token"] == token | {"last_used_at": with_overlap["token"]["last_used_at"]}
    at_once = at.ask("POST", "/v1/tokens/ci:rotate", json={"lifetime_s": 5}).json()
    newest = replace(at, tokens={"ci": at_once["text"]})
    assert [each.ask("GET", "/v1/jobs", role="ci").status for each in (old, new, newest)] == [401, 401, 200]
    assert at_once["token"]["expires_at"] < token["expires_at"]


def test_the_last_token_that_may_make_others_is_not_revoked(at: Service) -> None:
    made(at, "vision-admin", role="admin", project="vision")
    made(at, "brief", role="admin", lifetime_s=1)
    time.sleep(1)

    check_problem(at.ask("DELETE", "/v1/tokens/boss"), 409, "the last one", "create another first")

    _, asked = made(at, "second", role="admin")
    assert asked.ask("DELETE", "/v1/tokens/boss", role="second").status == 200
    check_problem(asked.ask("GET", "/v1/jobs"), 401)


def test_no_two_good_tokens_have_one_name(at: Service) -> None:
    made(at, "ci")

    check_problem(at.ask("POST", "/v1/tokens", json={"name": "ci", "role": "admin"}), 409, "'viewer'", "rotate")


@pytest.mark.parametrize(
    "asked",
    [
        {"role": "viewer"},
        {"name": "../etc", "role": "viewer"},
        {"name": "x", "role": "owner"},
        {"name": "x", "role": "viewer", "project": "No Project"},
        {"name": "x", "role": "viewer", "lifetime_s": 0},
        {"name": "x", "role": "viewer", "lifetime_s": 10**12},
        {"name": "x", "role": "viewer", "lifetime_s": 1.5},
        {"name": "x", "role": "viewer", "hash": "0" * 64},
        {"name": "x", "role": "viewer", "limits": {"requests_per_s": 0}},
        {"name": "x", "role": "viewer", "limits": {"burst": 2}},
        {"name": "x", "role": "viewer", "limits": {"concurrent": 10**9}},
    ],
)
def test_what_no_token_can_be_is_refused(at: Service, asked: dict[str, Any]) -> None:
    check_problem(at.ask("POST", "/v1/tokens", json=asked), 400)
    assert [each["name"] for each in at.ask("GET", "/v1/tokens").json()] == ["boss"]


def test_nobody_gives_more_than_they_have() -> None:
    for held in ROLES:
        for given in ROLES:
            maker = Principal(name="ada", role=held)
            if ROLES.index(given) <= ROLES.index(held):
                check_gives(maker, given, "vision")
            else:
                with pytest.raises(PermissionError, match="at most do what its maker's may"):
                    check_gives(maker, given, "vision")
    bound = Principal(name="ada", role="admin", project="vision")
    check_gives(bound, "admin", "vision")
    for project in (None, "speech"):
        with pytest.raises(PermissionError, match="'vision'"):
            check_gives(bound, "predict", project)


def test_when_a_token_was_last_used_is_told(at: Service) -> None:
    _, asked = made(at, "ci")
    assert at.ask("GET", "/v1/tokens/ci").json()["last_used_at"] is None

    asked.ask("GET", "/v1/jobs", role="ci")
    until = time.monotonic() + 10
    while at.ask("GET", "/v1/tokens/ci").json()["last_used_at"] is None:
        assert time.monotonic() < until


def test_a_token_of_one_project_is_let_to_no_route_that_does_not_keep_to_projects(at: Service) -> None:
    _, asked = made(at, "vision", role="admin", project="vision")

    for method, path in (("GET", "/v1/secrets"), ("GET", "/v1/quotas"), ("GET", "/metrics"), ("GET", "/openapi.json")):
        check_problem(asked.ask(method, path, role="vision"), 403, "'vision' alone")
    assert [each["name"] for each in asked.ask("GET", "/v1/tokens", role="vision").json()] == ["vision"]
    check_problem(asked.ask("DELETE", "/v1/tokens/boss", role="vision"), 403, "'vision'")
    check_problem(asked.ask("POST", "/v1/tokens", role="vision", json={"name": "x", "role": "viewer"}), 403, "'vision'")
    assert made(asked, "more", project="vision")[0]["created_by"] == "boss"


# Limits ---------------------------------------------------------------------------------------------------------


def test_with_a_token_no_more_is_asked_than_its_rate_and_others_are_not_touched(at: Service) -> None:
    _, asked = made(at, "slow", limits={"requests_per_s": 0.01, "burst": 3})

    answers = [asked.ask("GET", "/v1/jobs", role="slow") for _ in range(5)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    check_problem(answers[3], 429, "'slow'", "0.01 requests a second")
    assert 1 < int(answers[3].headers["retry-after"]) <= 100
    assert at.ask("GET", "/v1/jobs").status == 200


def test_with_a_token_no_more_is_asked_at_a_time_than_its_limit(at: Service) -> None:
    _, asked = made(at, "one", limits={"concurrent": 1}, role="editor")
    held = asyncio.Event()

    async def slowly() -> Any:
        await held.wait()
        yield b"{}"

    async def two() -> tuple[Answer, Answer]:
        headers = [("content-type", "application/json")]
        first = asyncio.ensure_future(asked.asking("POST", "/v1/jobs", role="one", headers=headers, body=slowly()))
        while not at.app._use._running:
            await asyncio.sleep(0.01)
        second = await asked.asking("GET", "/v1/jobs", role="one")
        held.set()
        return await first, second

    first, second = at.runner.run(two())

    assert first.status == 400
    check_problem(second, 429, "at most 1")
    assert asked.ask("GET", "/v1/jobs", role="one").status == 200
    assert at.app._use._running == {}


def test_a_bucket_gives_its_burst_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    buckets: Buckets[str] = Buckets()
    given = 0
    for step in range(1000):  # ten seconds in steps of 10 ms
        now = 100.0 + step / 100
        given += not buckets.take("a", per_s=7, burst=4)
    assert given == pytest.approx(4 + 7 * 10, abs=1)
    for number in range(10_000):
        buckets.take(str(number), per_s=1, burst=1)
    assert len(buckets._left) <= 4096


@pytest.fixture
def strict(empty: Workspace, service: Service) -> Iterator[tuple[Service, list[str]]]:
    """An app that lets few wrong tokens come, and what it asked the catalog for."""
    looked: list[str] = []

    def find(token: str) -> Principal | None:
        looked.append(token)
        return empty.catalog.tokens.find(token)

    app = create_app(empty, ServerSettings(wrong_tokens_per_s=0.01, wrong_tokens_burst=5), find=find)
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    token = empty.catalog.tokens.issue("boss", "admin")
    yield replace(service, app=app, workspace=empty, tokens={"admin": token}), looked
    service.runner.run(lifespan.end())


def test_a_thousand_wrong_tokens_are_told_to_wait_and_lock_out_nobody_of_the_same_address(
    strict: tuple[Service, list[str]],
) -> None:
    at, _ = strict

    async def all_at_once() -> tuple[list[Answer], Answer, float]:
        wrong = [
            at.asking("GET", "/v1/jobs", role=None, headers=[("authorization", f"Bearer mms_{number:043}")])
            for number in range(1000)
        ]
        flood = asyncio.gather(*wrong)
        await asyncio.sleep(0)
        began = time.monotonic()
        good = await at.asking("GET", "/v1/jobs")  # of a token that nobody here has seen yet
        took = time.monotonic() - began
        return await flood, good, took

    answers, good, took = at.runner.run(all_at_once())

    assert good.status == 200
    assert took < 10
    statuses = [answer.status for answer in answers]
    assert statuses.count(401) == 5
    assert statuses.count(429) == 995
    refused = next(answer for answer in answers if answer.status == 429)
    check_problem(refused, 429, "without a valid token")
    assert int(refused.headers["retry-after"]) >= 1


def test_the_same_wrong_token_again_and_again_is_looked_up_once(strict: tuple[Service, list[str]]) -> None:
    at, looked = strict
    headers = [("authorization", "Bearer mms_" + "x" * 43)]

    for _ in range(20):
        at.ask("GET", "/v1/jobs", role=None, headers=headers)

    assert len(looked) <= 3


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_of_ipv6_a_whole_network_is_one_client(client: str, network: str) -> None:
    assert network_of(client) == network


# Request ids ----------------------------------------------------------------------------------------------------


def test_every_answer_has_an_id_and_a_well_formed_one_is_taken_over(service: Service) -> None:
    ids = {service.ask("GET", path, role=None).headers["x-request-id"] for path in ("/healthz", "/v1/jobs", "/x")}
    assert len(ids) == 3
    for path, status in (("/healthz", 200), ("/v1/jobs", 200), ("/nowhere", 404), ("/v1/datasets/nothing", 404)):
        answer = service.ask("GET", path, headers=[("x-request-id", "trace-1:7/a=b+c.d_e")])
        assert (answer.status, answer.headers["x-request-id"]) == (status, "trace-1:7/a=b+c.d_e")
        if status == 404:
            check_problem(answer, 404)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\r\nset-cookie: x", "ünïcode", "<script>", '"', "a\x00"])
def test_an_id_that_is_none_is_replaced(service: Service, given: str) -> None:
    told = service.ask("GET", "/healthz", headers=[("x-request-id", given)]).headers["x-request-id"]

    assert told != given
    assert told.isalnum()
    two = service.ask("GET", "/healthz", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert two.headers["x-request-id"] not in ("a", "b")
