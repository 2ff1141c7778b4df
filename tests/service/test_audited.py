"""What of the requests to a server is written to its audit log, and what is never."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from asgi_calls import Service, check_problem
from mms_sdk.errors import StorageFull, Unavailable
from mms_sdk.schema.audit import AuditEntry, AuditHead
from mms_sdk.service import metrics
from mms_sdk.service.auditing import Audit
from mms_sdk.storage.audit import AuditLog
from mms_sdk.storage.workspace import Workspace


def entries(at: Service) -> list[AuditEntry]:
    return list(at.workspace.audit.entries())


def test_a_change_is_written_down_with_who_what_when_and_how_it_ended(at: Service) -> None:
    at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3}, headers=[("x-request-id", "r-1")])
    at.ask("DELETE", "/v1/quotas/nothing")
    at.ask("PUT", "/v1/secrets/HF_TOKEN", headers=[("content-type", "text/plain")], body=b"hunter2")

    first, second, third = entries(at)
    assert (first.who, first.client, first.method, first.route) == ("boss", "127.0.0.1", "PUT", "/v1/quotas/{project}")
    assert (first.names, first.status, first.request) == ({"project": "vision"}, 200, "r-1")
    assert (second.method, second.names, second.status) == ("DELETE", {"project": "nothing"}, 404)
    assert (third.route, third.names, third.status) == ("/v1/secrets/{name}", {"name": "HF_TOKEN"}, 204)
    assert at.workspace.audit.verify().number == 3


def test_no_body_no_query_and_no_token_is_in_it(at: Service) -> None:
    made = at.ask("POST", "/v1/tokens?secret=hunter2", json={"name": "ci", "role": "viewer"}).json()
    at.ask("PUT", "/v1/secrets/X", headers=[("content-type", "text/plain")], body=b"hunter2")
    at.ask("GET", "/v1/jobs", role=None, headers=[("authorization", "Bearer mms_hunter2")])
    at.ask("GET", "/v1/hunter2", role=None)

    folder = at.workspace.root / "audit"
    written = b"".join(path.read_bytes() for path in folder.iterdir())
    for secret in ("hunter2", made["text"], at.tokens["admin"]):
        assert secret.encode() not in written
    assert entries(at)[0].names == {"name": "ci", "role": "viewer", "project": "all"}


def test_refused_access_is_written_down_and_what_only_looks_is_not(at: Service) -> None:
    made = at.ask("POST", "/v1/tokens", json={"name": "ci", "role": "predict"}).json()
    asked = replace(at, tokens={"ci": made["text"]})
    before = len(entries(at))

    at.ask("GET", "/v1/jobs")
    at.ask("GET", "/v1/jobs/nothing")
    asked.ask("GET", "/v2", role="ci")
    asked.ask("POST", "/v1/models/nothing:predict", role="ci", json={"instances": [[0]]})
    asked.ask("GET", "/v1/secrets", role="ci")
    asked.ask("DELETE", "/v1/deployments/x", role="ci")
    at.ask("GET", "/v1/jobs", role=None)
    at.ask("GET", "/v1/jobs", headers=[("host", "evil.example")])

    told = [(each.who, each.method, each.route, each.names, each.status) for each in entries(at)[before:]]
    assert told == [
        ("ci", "GET", "/v1/secrets", {}, 403),
        ("ci", "DELETE", "/v1/deployments/{name}", {"name": "x"}, 403),
        ("", "GET", "/v1/jobs", {}, 401),
        ("", "GET", "", {}, 403),
    ]


def test_of_a_flood_of_refusals_the_rest_is_counted_and_hides_nobody_elses(at: Service) -> None:
    made = at.ask("POST", "/v1/tokens", json={"name": "ci", "role": "predict"}).json()
    asked = replace(at, tokens={"ci": made["text"]})

    async def flood() -> None:
        await asyncio.gather(*(at.asking("GET", "/v1/jobs", role=None) for _ in range(400)))

    at.runner.run(flood())
    asked.ask("GET", "/v1/secrets", role="ci")

    told = entries(at)
    assert told[-1].who == "ci"
    strangers = [each for each in told if not each.who]
    assert 100 <= len(strangers) < 200
    assert len(strangers) + sum(each.unrecorded for each in told) == 400


def test_a_change_is_on_the_disk_before_its_answer_is_sent(at: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    append, send = AuditLog.append, metrics.Watched.__call__

    def appended(self: AuditLog, told: Any, **options: Any) -> AuditHead:
        head = append(self, told, **options)
        order.append("written")
        return head

    async def sent(self: metrics.Watched, message: Any) -> None:
        inner = self._send

        async def noted(message: Any) -> None:
            order.append(message["type"])
            await inner(message)

        self._send = noted
        await send(self, message)
        self._send = inner

    monkeypatch.setattr(AuditLog, "append", appended)
    monkeypatch.setattr(metrics.Watched, "__call__", sent)
    at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3})

    assert order[:2] == ["written", "http.response.start"]


def test_what_cannot_be_written_down_is_not_done(at: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mms_sdk.storage.audit.LEAST_FREE_BYTES", 2**80)
        answer = at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3})
        check_problem(answer, 507, "audit log", "free some")
        assert at.ask("GET", "/v1/quotas").json() == []
    assert at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3}).status == 200


def test_a_line_that_failed_is_written_before_anything_else_is_changed(
    at: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", full)
        assert at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3}).status == 200
        check_problem(at.ask("DELETE", "/v1/quotas/vision"), 507)
        assert at.ask("GET", "/v1/quotas").json() != []
    assert at.ask("DELETE", "/v1/quotas/vision").status == 204

    assert [(each.method, each.status) for each in entries(at)] == [("PUT", 200), ("DELETE", 204)]


def test_a_line_is_written_once_though_the_catalog_cannot_hear_of_it(
    at: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise Unavailable("the catalog is away")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "note", away)
        assert at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3}).status == 200
        for _ in range(3):
            check_problem(at.ask("DELETE", "/v1/quotas/vision"), 503, "away")
    assert at.ask("DELETE", "/v1/quotas/vision").status == 204

    assert [(each.method, each.status) for each in entries(at)] == [("PUT", 200), ("DELETE", 204)]
    assert at.workspace.audit._noted() == at.workspace.audit.verify()


def test_who_waits_for_the_audit_logs_disk_keeps_no_thread_from_others(
    at: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, go = AuditLog.append, threading.Event()

    def slow(self: AuditLog, told: Any, **options: Any) -> AuditHead:
        assert go.wait(60)
        return append(self, told, **options)

    monkeypatch.setattr(AuditLog, "append", slow)

    async def busy() -> list[int]:
        loop = asyncio.get_running_loop()
        changes = [
            asyncio.ensure_future(at.asking("PUT", f"/v1/quotas/q{n}", json={"project": f"q{n}", "cpus": 3}))
            for n in range(60)
        ]
        async with asyncio.timeout(30):
            while len(at.app._audit._held) < 60:
                await asyncio.sleep(0.01)
            try:
                assert await loop.run_in_executor(None, lambda: "other work") == "other work"
            finally:
                go.set()
            return [(await change).status for change in changes]

    assert at.runner.run(busy()) == [200] * 60
    assert len(entries(at)) == 60


def test_what_could_not_be_written_is_tried_again_at_the_end(empty: Workspace, service: Service) -> None:
    audit = Audit(empty.audit)
    told = {"who": "a", "token": "1", "client": "", "method": "PUT", "route": "/", "names": {}, "status": 200}

    def full(*_: Any, **__: Any) -> Any:
        raise StorageFull("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AuditLog, "append", full)
        service.runner.run(audit.changed({**told, "request": "r"}))
    assert list(empty.audit.entries()) == []
    audit.close()
    assert [each.request for each in empty.audit.entries()] == ["r"]


def test_a_flood_of_refusals_pushes_no_change_out_that_could_not_be_written(
    at: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AuditLog.append
    tries: list[Any] = []

    def full(self: AuditLog, told: Any, **_: Any) -> Any:
        tries.append(told)
        raise StorageFull("no space left")

    async def flood() -> None:
        await asyncio.gather(*(at.asking("GET", "/v1/jobs", role=None) for _ in range(2000)))

    monkeypatch.setattr("mms_sdk.service.auditing._STRANGERS_BURST", 10**6)
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", full)
        at.ask("GET", "/v1/jobs", role=None)
        assert at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": 3}).status == 200
        at.runner.run(flood())
        assert len(tries) == 2  # nothing is held of refusals, nor tried
        patch.setattr(AuditLog, "append", append)
        at.ask("DELETE", "/v1/quotas/vision")

    first, second = entries(at)
    assert (first.method, first.status, first.unrecorded) == ("PUT", 200, 1)
    assert (second.method, second.unrecorded) == ("DELETE", 2000)


def test_admins_read_and_verify_it_over_rest(at: Service) -> None:
    for cpus in range(3):
        at.ask("PUT", "/v1/quotas/vision", json={"project": "vision", "cpus": cpus})

    assert [each["number"] for each in at.ask("GET", "/v1/audit?since=1&limit=1").json()] == [2]
    head = at.ask("GET", "/v1/audit:verify").json()
    assert head["number"] == 3
    assert at.ask("GET", f"/v1/audit:verify?number=3&hash={head['hash']}").json() == head
    check_problem(at.ask("GET", f"/v1/audit:verify?number=3&hash={'0' * 64}"), 500, "line 3")
    check_problem(at.ask("GET", "/v1/audit:verify?number=3&hash=x"), 400)
