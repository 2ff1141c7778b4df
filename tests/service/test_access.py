"""P9: nobody without a token does anything; a token does what its role says, on every route there is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from asgi_calls import Service, check_problem
from mms_sdk.schema.access import ROLES
from mms_sdk.service import app as app_module
from mms_sdk.service.app import create_app
from mms_sdk.storage.workspace import Workspace

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")

# (method, path) → (least role, status for those who may). Written by hand: this is what is promised. The paths name
# what is not there, so that a request that is let through does no work.
ROUTES: dict[tuple[str, str], tuple[str, int]] = {
    ("GET", "/healthz"): ("open", 200),
    ("GET", "/readyz"): ("open", 200),
    ("GET", "/v2"): ("predict", 200),
    ("GET", "/v2/health/live"): ("predict", 200),
    ("GET", "/v2/health/ready"): ("predict", 200),
    ("POST", "/v1/models/nothing:predict"): ("predict", 404),
    ("POST", "/v1/models/nothing:explain"): ("predict", 404),
    ("GET", "/v1/models/nothing/openapi.json"): ("predict", 404),
    ("POST", "/v2/models/nothing/infer"): ("predict", 404),
    ("GET", "/v2/models/nothing/ready"): ("predict", 404),
    ("GET", "/v2/models/nothing"): ("predict", 404),
    ("GET", "/v2/models/nothing/config"): ("predict", 404),
    ("GET", "/v2/models/nothing/stats"): ("viewer", 404),
    ("GET", "/v2/models/stats"): ("viewer", 200),
    ("POST", "/v2/repository/index"): ("viewer", 200),
    ("POST", "/v2/repository/models/nothing/load"): ("editor", 404),
    ("POST", "/v2/repository/models/nothing/unload"): ("editor", 404),
    ("GET", "/openapi.json"): ("viewer", 200),
    ("GET", "/metrics"): ("viewer", 200),
    ("GET", "/v1/datasets"): ("viewer", 200),
    ("GET", "/v1/datasets/nothing"): ("viewer", 404),
    ("GET", "/v1/jobs"): ("viewer", 200),
    ("GET", "/v1/jobs:counts"): ("viewer", 200),
    ("GET", "/v1/jobs:top"): ("viewer", 200),
    ("GET", "/v1/jobs/nothing"): ("viewer", 404),
    ("POST", "/v1/bundles"): ("editor", 415),
    ("POST", "/v1/jobs"): ("editor", 400),
    ("POST", "/v1/jobs:clean"): ("admin", 400),
    ("POST", "/v1/jobs/nothing:cancel"): ("editor", 404),
    ("POST", "/v1/jobs/nothing:retry"): ("editor", 404),
    ("GET", "/v1/jobs/nothing/lineage"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/attempts"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/logs"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/environment"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/metrics"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/stream"): ("viewer", 404),
    ("GET", "/v1/events"): ("viewer", 200),
    ("GET", "/v1/jobs/nothing/usage"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/ranks"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/artifacts"): ("viewer", 404),
    ("GET", "/v1/jobs/nothing/artifacts/rejects.jsonl"): ("viewer", 404),
    ("GET", "/v1/models"): ("viewer", 200),
    ("GET", "/v1/models/nothing/versions"): ("viewer", 404),
    ("GET", "/v1/models/nothing/versions/1"): ("viewer", 404),
    ("GET", "/v1/models/nothing/versions/1/evaluations"): ("viewer", 404),
    ("GET", "/v1/deployments"): ("viewer", 200),
    ("GET", "/v1/deployments/nothing"): ("viewer", 404),
    ("POST", "/v1/datasets/nothing:ingest"): ("editor", 400),
    ("POST", "/v1/datasets/nothing:clean"): ("editor", 400),
    ("POST", "/v1/datasets/nothing:join"): ("editor", 400),
    ("POST", "/v1/datasets/nothing:concat"): ("editor", 400),
    ("GET", "/v1/datasets/nothing/snapshots"): ("viewer", 404),
    ("GET", "/v1/datasets/nothing:diff"): ("viewer", 400),
    ("POST", "/v1/datasets/nothing:verify"): ("editor", 404),
    ("POST", "/v1/datasets/nothing:delete-rows"): ("editor", 400),
    ("POST", "/v1/datasets/nothing:rename-columns"): ("editor", 400),
    ("POST", "/v1/datasets/nothing:compact"): ("editor", 400),
    ("PUT", "/v1/datasets/nothing/tags/paper"): ("editor", 400),
    ("DELETE", "/v1/datasets/nothing/tags/paper"): ("editor", 404),
    ("POST", "/v1/datasets/nothing:expire"): ("admin", 400),
    ("POST", "/v1/datasets/nothing:collect"): ("admin", 400),
    ("POST", "/v1/models/nothing/versions"): ("editor", 400),
    ("PUT", "/v1/models/nothing/aliases/champion"): ("editor", 400),
    ("PUT", "/v1/deployments/nothing"): ("editor", 400),
    ("DELETE", "/v1/deployments/nothing"): ("editor", 404),
    ("GET", "/v1/quotas"): ("viewer", 200),
    ("PUT", "/v1/quotas/nothing"): ("admin", 400),
    ("DELETE", "/v1/quotas/nothing"): ("admin", 404),
    ("GET", "/v1/secrets"): ("editor", 200),
    ("PUT", "/v1/secrets/nothing"): ("editor", 400),
    ("DELETE", "/v1/secrets/nothing"): ("editor", 404),
    ("GET", "/v1/uploads"): ("editor", 200),
    ("POST", "/v1/uploads"): ("editor", 400),
    ("GET", "/v1/uploads/nothing"): ("editor", 404),
    ("DELETE", "/v1/uploads/nothing"): ("editor", 404),
    ("POST", "/v1/uploads/nothing:complete"): ("editor", 404),
    ("GET", "/v1/uploads/nothing/files/a/b"): ("editor", 404),
    ("PUT", "/v1/uploads/nothing/files/a/b"): ("editor", 400),
    ("GET", "/v1/audit"): ("admin", 200),
    ("GET", "/v1/audit:verify"): ("admin", 200),
    ("GET", "/v1/tokens"): ("admin", 200),
    ("GET", "/v1/tokens:own"): ("predict", 200),
    ("POST", "/v1/tokens"): ("admin", 400),
    ("GET", "/v1/tokens/nothing"): ("admin", 404),
    ("POST", "/v1/tokens/nothing:rotate"): ("admin", 400),
    ("DELETE", "/v1/tokens/nothing"): ("admin", 404),
    ("POST", "/v1/predictions"): ("editor", 400),
    ("POST", "/v1/evaluations"): ("editor", 400),
}


def test_the_table_above_names_every_route_of_the_app(service: Service) -> None:
    matched = {
        (number, method)
        for method, path in ROUTES
        for number, rule in enumerate(service.app._rules)
        if method in rule.methods and rule.path.fullmatch(path)
    }
    declared = {(number, method) for number, rule in enumerate(service.app._rules) for method in rule.methods}

    assert matched == declared
    assert len(matched) == len(ROUTES)


@pytest.mark.parametrize("token", [None, "wrong", *ROLES])
def test_every_route_and_method_gives_a_token_exactly_what_its_role_may_do(service: Service, token: str | None) -> None:
    paths = {path for _, path in ROUTES}
    misses: list[Any] = []
    for path in sorted(paths):
        allowed = sorted(method for method in METHODS if (method, path) in ROUTES)
        for method in METHODS:
            needed, status = ROUTES.get((method, path), ("missing", 405))
            if needed == "open":
                expected = status
            elif token in (None, "wrong"):
                expected = 401
            elif needed == "missing":
                expected = 405
            else:
                expected = status if ROLES.index(token) >= ROLES.index(needed) else 403
            headers = [("authorization", "Bearer mms_" + "x" * 43)] if token == "wrong" else []

            answer = service.ask(method, path, role=None if token == "wrong" else token, headers=headers)

            if answer.status != expected:
                misses.append((method, path, expected, answer))
            if expected >= 400:
                check_problem(answer, answer.status)
            if expected == 405 and answer.headers.get("allow") != ", ".join(allowed):
                misses.append((method, path, allowed, answer))
            if expected == 401 and answer.headers.get("www-authenticate") != "Bearer":
                misses.append((method, path, "www-authenticate", answer))
    assert misses == []


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/docs", "/v1/jobs/", "//v1/jobs", "/v1//jobs", "/V1/jobs", "/x\n"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_path_that_is_not_there_says_401_without_a_token_and_404_with_one(
    service: Service, method: str, path: str
) -> None:
    check_problem(service.ask(method, path, role=None), 401)
    check_problem(service.ask(method, path, role="predict"), 404, "no such path")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer  {}",
        "Basic {}",
        "Bearer {}x",
        "Bearer {} x",
        "Bearer\t{}",
        "{}",
        "Bearer " + "x" * 300,
        "Bearer ünïcode",
        "Bearer \x00",
        "Bearer ' or 1=1 --",
    ],
)
def test_only_a_whole_token_behind_the_word_bearer_is_a_token(service: Service, given: str) -> None:
    value = given.format(service.tokens["admin"])

    check_problem(service.ask("GET", "/v1/jobs", role=None, headers=[("authorization", value)]), 401, "Bearer")


def test_two_authorization_headers_are_none(service: Service) -> None:
    good = ("authorization", f"Bearer {service.tokens['admin']}")

    check_problem(service.ask("GET", "/v1/jobs", role=None, headers=[good, good]), 401)
    check_problem(service.ask("GET", "/v1/jobs", role=None, headers=[("authorization", "Bearer x"), good]), 401)


@pytest.mark.parametrize("elsewhere", ["?token={}", "?access_token={}", "?authorization=Bearer%20{}"])
def test_a_token_in_the_address_or_a_cookie_counts_for_nothing(service: Service, elsewhere: str) -> None:
    token = service.tokens["admin"]

    check_problem(service.ask("GET", "/v1/jobs" + elsewhere.format(token), role=None), 401)
    check_problem(service.ask("GET", "/v1/jobs", role=None, headers=[("cookie", f"token={token}")]), 401)


def test_the_word_bearer_is_read_in_any_case(service: Service) -> None:
    given = f"bEARER {service.tokens['viewer']}"

    assert service.ask("GET", "/v1/jobs", role=None, headers=[("authorization", given)]).status == 200


def test_a_token_is_let_in_no_longer_than_two_seconds_after_it_was_revoked(empty: Workspace, service: Service) -> None:
    first = empty.catalog.tokens.issue("robot", "viewer")
    at = replace(service, app=create_app(empty), workspace=empty, tokens={"robot": first})
    assert at.ask("GET", "/v1/jobs", role="robot").status == 200

    second = empty.catalog.tokens.issue("robot", "predict")
    time.sleep(2)

    check_problem(at.ask("GET", "/v1/jobs", role="robot"), 401)
    now = replace(at, tokens={"robot": second})
    check_problem(now.ask("GET", "/v1/jobs", role="robot"), 403, "'viewer'", "'robot'", "'predict'")


def test_a_refusal_says_the_role_needed_the_one_held_and_whom_to_ask(service: Service) -> None:
    check_problem(service.ask("DELETE", "/v1/deployments/tiny", role="viewer"), 403, "'editor'", "'viewer'", "admin")
    assert service.ask("GET", "/v1/deployments/tiny", role="viewer").status == 200


def test_an_app_with_a_route_that_declares_no_role_does_not_start(
    empty: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.get("/v1/forgotten")
    def forgotten() -> str:
        return "secret"

    monkeypatch.setattr(app_module, "_ROUTERS", (*app_module._ROUTERS, router))

    with pytest.raises(RuntimeError, match="/v1/forgotten declares no role"):
        create_app(empty)


@pytest.mark.parametrize("role", ["", "owner", None])
def test_an_app_with_a_route_of_an_unknown_role_does_not_start(
    empty: Workspace, monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    router = APIRouter()
    router.add_api_route("/v1/odd", lambda: "secret", openapi_extra={"x-mms-role": role})
    monkeypatch.setattr(app_module, "_ROUTERS", (*app_module._ROUTERS, router))

    with pytest.raises(RuntimeError, match="/v1/odd declares no role"):
        create_app(empty)


def test_what_is_added_to_the_app_behind_the_guards_back_cannot_be_reached(
    empty: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = app_module._control_plane

    def with_a_back_door(state: Any) -> Any:
        control = made(state)
        control.mount("/back", lambda scope, receive, send: PlainTextResponse("in")(scope, receive, send))
        control.router.add_route("/door", lambda request: PlainTextResponse("in"))
        return control

    monkeypatch.setattr(app_module, "_control_plane", with_a_back_door)
    token = empty.catalog.tokens.issue("boss", "admin")
    at = replace(service, app=create_app(empty), tokens={"boss": token})

    check_problem(at.ask("GET", "/back", role="boss"), 404)
    check_problem(at.ask("GET", "/back/x", role="boss"), 404)
    check_problem(at.ask("GET", "/door", role="boss"), 404)


def test_a_websocket_is_closed_before_it_opens(service: Service) -> None:
    sent: list[Any] = []

    async def open_one() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        token = f"Bearer {service.tokens['admin']}".encode()
        headers = [(b"host", b"localhost"), (b"authorization", token)]
        for path in ("/v1/jobs", "/healthz", "/ws"):
            await service.app({"type": "websocket", "path": path, "headers": headers}, receive, send)

    service.runner.run(open_one())

    assert [message["type"] for message in sent] == ["websocket.close"] * 3
