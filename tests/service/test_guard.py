"""The outer door: who may ask from where, with how much, how fast, and in what words."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from asgi_calls import Answer, Service, check_problem
from mms_sdk.service import app as app_module
from mms_sdk.service.app import create_app
from mms_sdk.service.guard import MAX_JSON_BYTES, MAX_JSON_DEPTH
from mms_sdk.storage.workspace import Workspace

JSON = ("content-type", "application/json")
GUARDED = ["/healthz", "/v1/jobs", "/v2/models/tiny/ready", "/nowhere"]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "localhost.",
        "127.0.0.1.nip.io",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "[::]",
        "::1",
        "localhost:80:80",
        "localhost:",
        "localhost:x",
        "localhost:1000000",
        "localhost@evil.example",
        "localhost, evil.example",
        " localhost",
        "",
        ":80",
    ],
)
def test_a_host_that_is_not_on_the_list_is_refused_whatever_is_asked(service: Service, path: str, host: str) -> None:
    check_problem(service.ask("GET", path, headers=[("host", host)]), 403, "answers to the names", "localhost")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8765", "127.0.0.1:1", "[::1]:65535", "[::1]"])
def test_the_machines_own_names_are_let_in_with_any_port(service: Service, host: str) -> None:
    assert service.ask("GET", "/healthz", headers=[("host", host)], role=None).status == 200


def test_no_host_and_two_hosts_are_refused(service: Service) -> None:
    token = ("authorization", f"Bearer {service.tokens['admin']}")
    two = [("host", "localhost"), ("host", "localhost")]
    no_host = service.runner.run(_bare(service, [token]))

    check_problem(no_host, 403)
    check_problem(service.ask("GET", "/healthz", headers=two), 403)
    check_problem(service.ask("GET", "/healthz", headers=[("host", "evil.example"), ("host", "localhost")]), 403)


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "sent",
    [
        [("origin", "null")],
        [("origin", "https://evil.example")],
        [("origin", "http://localhost")],
        [("origin", "http://127.0.0.1:8888")],
        [("origin", "")],
        [("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "CROSS-SITE")],
    ],
)
def test_a_web_page_is_refused_whatever_it_asks_and_whatever_token_it_has(
    service: Service, path: str, sent: list[tuple[str, str]]
) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = service.ask(method, path, headers=sent)

        check_problem(answer, 403, "web pages")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_that_is_allowed_is_let_in_and_no_other(service: Service) -> None:
    at = service.but(allowed_origins=frozenset({"https://lab.example"}))

    assert at.ask("GET", "/v1/jobs", headers=[("origin", "https://lab.example")]).status == 200
    check_problem(at.ask("GET", "/v1/jobs", headers=[("origin", "https://lab.example.evil")]), 403)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_an_address_typed_into_a_browser_is_let_in(service: Service, site: str) -> None:
    assert service.ask("GET", "/healthz", role=None, headers=[("sec-fetch-site", site)]).status == 200


@pytest.mark.parametrize(("path", "limit"), [("/v1/models/tiny:predict", 1000), ("/v1/predictions", MAX_JSON_BYTES)])
class TestSize:
    def test_a_body_declared_too_large_is_refused_before_a_byte_of_it_is_read(
        self, service: Service, path: str, limit: int
    ) -> None:
        at = service.but(max_body_bytes=1000)

        async def unread() -> AsyncIterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        declared = [JSON, ("content-length", str(limit + 1))]
        check_problem(at.ask("POST", path, headers=declared, body=unread()), 413, f"{limit:,}", f"{limit + 1:,}")

    def test_a_body_that_becomes_too_large_is_refused_while_it_comes(
        self, service: Service, path: str, limit: int
    ) -> None:
        at = service.but(max_body_bytes=1000)
        sent = 0

        async def without_end() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 100
                yield b" " * 100

        check_problem(at.ask("POST", path, headers=[JSON], body=without_end()), 413, "more than")
        assert sent <= limit + 100

    def test_a_body_is_refused_by_its_size_whatever_was_declared(self, service: Service, path: str, limit: int) -> None:
        at = service.but(max_body_bytes=1000)
        declared = [JSON, ("content-length", "10")]

        check_problem(at.ask("POST", path, headers=declared, body=b" " * (limit + 1)), 413)

    @pytest.mark.parametrize("declared", ["-1", "+5", "1e3", "0x10", "5, 5", "²", "9" * 5000, ""])
    def test_a_length_that_is_no_number_is_refused(
        self, service: Service, path: str, limit: int, declared: str
    ) -> None:
        headers = [JSON, ("content-length", declared)]

        check_problem(service.ask("POST", path, headers=headers, body=b"{}"), 400, "Content-Length")

    def test_a_body_that_comes_too_slowly_is_refused_in_the_time_allowed(
        self, service: Service, path: str, limit: int
    ) -> None:
        at = service.but(body_timeout_s=0.2)

        async def drip() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.05)
                yield b" "

        async def timed() -> tuple[Answer, float]:
            loop = asyncio.get_running_loop()
            began = loop.time()
            return await at.asking("POST", path, headers=[JSON], body=drip()), loop.time() - began

        answer, took = service.runner.run(timed())

        check_problem(answer, 400, "within 0.2 s")
        assert 0.19 < took < 1

    def test_a_client_that_leaves_in_the_middle_costs_nothing(self, service: Service, path: str, limit: int) -> None:
        async def leaves() -> list[Any]:
            sent: list[Any] = []
            messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

            async def receive() -> Any:
                return next(messages)

            async def send(message: Any) -> None:
                sent.append(message)

            token = f"Bearer {service.tokens['admin']}".encode()
            headers = [(b"host", b"localhost"), (b"authorization", token), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
            await service.app(scope, receive, send)
            return sent

        assert service.runner.run(leaves())[0]["status"] == 400
        assert service.ask("GET", "/healthz").status == 200


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


INSANE = {
    "NaN": b'{"model": NaN}',
    "Infinity": b'{"model": -Infinity}',
    "too large a float": b'{"model": 1e999}',
    "a 5,000-digit integer": b'{"model": ' + b"7" * 5000 + b"}",
    "trailing garbage": b'{"model": "tiny"} x',
    "two documents": b'{"model": "tiny"}{"model": "tiny"}',
    "a trailing comma": b'{"model": "tiny",}',
    "a comment": b'{"model": "tiny"} // yes',
    "single quotes": b"{'model': 'tiny'}",
    "an open end": b'{"model": "ti',
    "bad UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "a lone surrogate": b'{"model": "\\ud800"}',
    "a raw control character": b'{"model": "a\nb"}',
    "the same key twice": b'{"model": "tiny", "model": "other"}',
    "the same key twice, further in": b'{"model": "tiny", "source": {"path": "/a", "path": "/b"}}',
    "100,000 deep objects": _nested(100_000),
    "100,000 deep lists": b"[" * 100_000 + b"]" * 100_000,
    "one deeper than allowed": _nested(MAX_JSON_DEPTH),
    "a list": b'["model"]',
    "a string": b'"model"',
    "null": b"null",
    "nothing at all": b"",
    "a byte order mark": b'\xef\xbb\xbf{"model": "tiny"}',
}


@pytest.mark.parametrize("what", INSANE)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/predictions"), ("PUT", "/v1/deployments/other")])
def test_json_that_is_not_a_sane_object_is_refused_and_the_reason_told(
    service: Service, method: str, path: str, what: str
) -> None:
    answer = service.ask(method, path, headers=[JSON], body=INSANE[what])

    check_problem(answer, 400)
    assert len(answer.body) < 4000


def test_json_as_deep_as_allowed_reaches_the_route(service: Service) -> None:
    answer = service.ask("POST", "/v1/predictions", headers=[JSON], body=_nested(MAX_JSON_DEPTH - 1))

    check_problem(answer, 400, "the request does not fit", "model")


def test_a_field_nobody_knows_is_refused_by_name(service: Service) -> None:
    answer = service.ask("PUT", "/v1/deployments/other", json={"model": "tiny", "modle": "x"})

    check_problem(answer, 400, "modle")


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "application/jsonx"],
)
def test_a_body_that_says_it_is_no_json_is_refused(service: Service, kind: str) -> None:
    answer = service.ask("POST", "/v1/predictions", headers=[("content-type", kind)], body=b"{}")

    check_problem(answer, 415, "application/json")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", " application/json "])
def test_the_type_is_read_without_case_and_parameters(service: Service, kind: str) -> None:
    answer = service.ask("POST", "/v1/predictions", headers=[("content-type", kind)], body=b"{}")

    check_problem(answer, 400)


NAMES = [
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc",
    "..%2f..%2fetc",
    "..%5c..%5cetc",
    "%252e%252e%252f",
    "a%00",
    "%00",
    "a%0a",
    "a%0d%0ax: y",
    "%20a",
    "a%20",
    "A",
    "-a",
    "_a",
    ".a",
    "a" * 64,
    "%F0%9F%98%80",
    "%C3%A9",
    "%EF%BC%8E%EF%BC%8E",
    "%c0%ae%c0%ae",
    "%ff",
    "a%3Bb",
    "a'%20or%201=1%20--",
    "{name}",
    "*",
    "~",
    "con%3a",
]
NAMED = [
    ("GET", "/v1/datasets/{}"),
    ("POST", "/v1/datasets/{}:ingest"),
    ("POST", "/v1/datasets/{}:verify"),
    ("GET", "/v1/datasets/{}/snapshots"),
    ("GET", "/v1/datasets/{}:diff"),
    ("POST", "/v1/datasets/{}:delete-rows"),
    ("POST", "/v1/datasets/{}:compact"),
    ("PUT", "/v1/datasets/x/tags/{}"),
    ("DELETE", "/v1/datasets/x/tags/{}"),
    ("GET", "/v1/models/{}/versions"),
    ("POST", "/v1/models/{}/versions"),
    ("GET", "/v1/models/{}/versions/1"),
    ("GET", "/v1/models/tiny/versions/{}"),
    ("PUT", "/v1/models/{}/aliases/champion"),
    ("PUT", "/v1/models/tiny/aliases/{}"),
    ("GET", "/v1/deployments/{}"),
    ("PUT", "/v1/deployments/{}"),
    ("DELETE", "/v1/deployments/{}"),
    ("GET", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/metrics"),
    ("GET", "/v1/jobs/{}/logs"),
    ("GET", "/v1/jobs/{}/stream"),
    ("GET", "/v1/jobs/{}/artifacts/rejects.jsonl"),
    ("GET", "/v1/jobs/{}/artifacts"),
    ("GET", "/v1/jobs/x/artifacts/{}"),
    ("POST", "/v1/models/{}:predict"),
    ("POST", "/v2/models/{}/infer"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}"),
]
PHOTOS = {"type": "image-folder", "path": "/x"}
BODIES: dict[str, Any] = {
    "ingest": {"source": {"type": "image-folder", "path": "/"}},
    "versions": {"staged": "0" * 26},
    "champion": {"version": 1},
    "predict": {"instances": [[0]]},
    "infer": {"inputs": []},
}


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_what_is_no_name_is_refused_in_every_place_of_every_path(service: Service, method: str, path: str) -> None:
    body = next((body for end, body in BODIES.items() if path.endswith(end)), {"model": "tiny", "version": 1})
    for name in NAMES:
        answer = service.ask(method, path.format(name), json=body if method in ("POST", "PUT") else None)

        assert answer.status in (400, 404), (name, answer)
        check_problem(answer, answer.status)


@pytest.mark.parametrize("field", ["model", "dataset"])
@pytest.mark.parametrize(
    "name", ["../../etc", "a/../../b", "tiny\n", "tiny\0", "/etc", "tiny@0", "tiny@-1", "@", "", "🦄"]
)
def test_what_is_no_name_is_refused_in_every_field_that_takes_one(service: Service, field: str, name: str) -> None:
    good = {"model": "tiny", "dataset": "pets"}

    check_problem(service.ask("POST", "/v1/predictions", json=good | {field: name}), 400)
    check_problem(service.ask("PUT", "/v1/deployments/other", json={"model": name}), 400)


@pytest.mark.parametrize("staged", ["../../etc", "0" * 25, "0" * 27, "a" * 26, "0" * 26 + "\n", "..", ""])
def test_a_staged_artefact_is_named_by_an_id_and_nothing_else(service: Service, staged: str) -> None:
    check_problem(service.ask("POST", "/v1/models/tiny/versions", json={"staged": staged}), 400, "staged")
    check_problem(service.ask("POST", "/v1/models/tiny/versions", json={"staged": "0" * 26}), 404)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/datasets/pets?snapshot=" + "9" * 300, None),
        ("GET", "/v1/datasets/pets?snapshot=" + "9" * 5000, None),
        ("GET", "/v1/datasets/pets?snapshot=-1", None),
        ("GET", "/v1/datasets/pets?snapshot=1.5", None),
        ("GET", "/v1/jobs?limit=0", None),
        ("GET", "/v1/jobs?limit=501", None),
        ("GET", "/v1/jobs?limit=" + "9" * 5000, None),
        ("GET", "/v1/jobs/{job}/metrics?since=-1", None),
        ("GET", "/v1/jobs/{job}/metrics?since=3", None),
        ("GET", "/v1/jobs/{job}/metrics?since=" + "9" * 18, None),
        ("GET", "/v1/datasets/pets?snapshot=2", None),
        ("GET", "/v1/datasets/pets?snapshot=0", None),
        ("GET", "/v1/jobs/{job}/metrics?since=" + "9" * 30, None),
        ("GET", "/v1/jobs/{job}/artifacts/rejects.jsonl", None),
        ("PUT", "/v1/models/tiny/aliases/best", {"version": 10**30}),
        ("PUT", "/v1/models/tiny/aliases/best", {"version": 2**63 - 1}),
        ("PUT", "/v1/models/tiny/aliases/best", {"version": 0}),
        ("PUT", "/v1/models/tiny/aliases/best", {"version": 1.5}),
        ("PUT", "/v1/models/tiny/aliases/best", {"version": None}),
        ("GET", "/v1/models/tiny/versions/999999999999999999999", None),
        ("PUT", "/v1/deployments/x", {"model": "tiny@99999999999"}),
        ("PUT", "/v1/deployments/x", {"model": "tiny", "max_batch": 0}),
        ("PUT", "/v1/deployments/x", {"model": "tiny", "max_batch": 10**30}),
        ("POST", "/v1/predictions", {"model": "tiny", "dataset": "pets", "top": -1}),
        ("POST", "/v1/predictions", {"model": "tiny", "dataset": "nothing"}),
        ("POST", "/v1/predictions", {"model": "tiny"}),
        ("POST", "/v1/predictions", {"model": "tiny", "dataset": "pets", "source": {"path": "/x"}}),
        ("POST", "/v1/predictions", {"model": "tiny", "source": {"type": "image-folder"}}),
        ("POST", "/v1/predictions", {"model": "tiny", "source": {"path": 5}}),
        ("POST", "/v1/predictions", {"model": "tiny", "source": {"path": "a\0b"}}),
        ("POST", "/v1/predictions", {"model": "tiny", "source": {"path": "~nobody-of-that-name/x"}}),
        ("POST", "/v1/predictions", {"model": "tiny", "source": {"path": "x" * 5000}}),
        ("POST", "/v1/datasets/x:ingest", {"source": {"type": "image-folder", "path": "/x", "max_pixels": 0}}),
        ("POST", "/v1/datasets/x:ingest", {"source": {"type": "sql", "path": "/x"}}),
        (
            "POST",
            "/v1/datasets/x:ingest",
            {"source": PHOTOS, "clean": [{"step": "eval"}]},
        ),
        ("POST", "/v1/datasets/x:ingest", {"source": PHOTOS, "split": {"train": 2}}),
        (
            "POST",
            "/v1/datasets/x:ingest",
            {"source": PHOTOS, "split": {"train": "a lot"}},
        ),
    ],
)
def test_a_value_outside_its_range_is_the_askers_mistake_and_never_the_servers(
    service: Service, method: str, path: str, body: Any
) -> None:
    job = service.workspace.catalog.jobs.start("train", "pets", {})
    service.workspace.catalog.jobs.finish(job.id, "succeeded")
    log = service.workspace.job_folder(job.id) / "metrics.jsonl"
    log.write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')

    answer = service.ask(method, path.format(job=job.id), json=body)

    assert 400 <= answer.status < 500, answer
    check_problem(answer, answer.status)


def test_an_error_nobody_expected_is_a_problem_without_the_details_and_the_server_goes_on(
    empty: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = empty.catalog.tokens.issue("boss", "admin")
    at = replace(service, app=create_app(empty), workspace=empty, tokens={"boss": token})

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the password is hunter2")

    for route, owner, method in (
        ("/v1/datasets", Workspace, "dataset_names"),
        ("/v2/models/tiny/ready", app_module.Deployments, "get"),
    ):
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "mms.service"):
            patch.setattr(owner, method, fails)
            answer = at.ask("GET", route, role="boss")

            check_problem(answer, 500, "its log has the details")
            assert b"hunter2" not in answer.body
            assert b"ZeroDivision" not in answer.body
        assert "hunter2" in caplog.text
        caplog.clear()
        assert at.ask("GET", "/v1/datasets", role="boss").json() == []


def test_a_token_lookup_that_fails_lets_nobody_in(empty: Workspace, service: Service) -> None:
    def fails(token: str) -> Any:
        raise OSError("the catalog is gone")

    at = replace(service, app=create_app(empty, find=fails))

    check_problem(at.ask("GET", "/v1/jobs"), 500)
    assert at.ask("GET", "/healthz", role=None).status == 200


def test_a_thousand_bad_requests_leave_a_server_that_answers_good_ones(service: Service) -> None:
    async def all_at_once() -> list[Answer]:
        bad = [service.asking("POST", "/v1/predictions", headers=[JSON], body=body) for body in INSANE.values()]
        worse = [service.asking("GET", "/v1/jobs", role=None) for _ in range(500)]
        worst = [service.asking("POST", "/v1/models/tiny:predict", headers=[JSON], body=b"{") for _ in range(500)]
        return await asyncio.gather(*bad, *worse, *worst)

    answers = service.runner.run(all_at_once())

    assert {answer.status for answer in answers} == {400, 401}
    assert service.ask("GET", "/v1/deployments/tiny").json()["state"] == "ready"


def test_the_openapi_document_tells_each_routes_role(service: Service) -> None:
    told = service.ask("GET", "/openapi.json", role="viewer").json()

    roles = {each.get("x-mms-role") for path in told["paths"].values() for each in path.values()}
    assert roles == {"open", "predict", "viewer", "editor", "admin"}
    json.dumps(told)


async def _bare(service: Service, headers: list[tuple[str, str]]) -> Answer:
    from asgi_calls import ask

    return await ask(service.app, "GET", "/healthz", headers=headers)
