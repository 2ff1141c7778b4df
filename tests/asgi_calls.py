"""Requests straight into an ASGI application, so that even those can be made that no HTTP library would send."""

from __future__ import annotations

import asyncio
import json as json_module
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes

from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace

Headers: TypeAlias = Sequence[tuple[str, str]]
Body: TypeAlias = bytes | AsyncIterable[bytes]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json_module.loads(self.body)


async def ask(
    app: Any, method: str, path: str, *, headers: Headers = (), body: Body = b"", gone: asyncio.Event | None = None
) -> Answer:
    """Sends one request; `path` may hold percent-encoding and a query, as a request line does.

    Whoever sends it stays for the answer, or hangs up once `gone` is set.
    """
    raw, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(raw).decode("utf-8", "replace"),  # as uvicorn does
        "raw_path": quote_from_bytes(unquote_to_bytes(raw)).encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    incoming = _messages(body, gone or asyncio.Event())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, lambda: anext(incoming), send)
    kinds = [message["type"] for message in sent]
    assert kinds == ["http.response.start", *["http.response.body"] * (len(kinds) - 1)], sent
    assert not sent[-1].get("more_body", False)
    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(status=sent[0]["status"], headers=told, body=whole)


async def _messages(body: Body, gone: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    if isinstance(body, bytes):
        yield {"type": "http.request", "body": body, "more_body": False}
    else:
        async for piece in body:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}
    await gone.wait()
    yield {"type": "http.disconnect"}


class Lifespan:
    """An application between its start and its end."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def begin(self) -> None:
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        await self._said("lifespan.startup")

    async def end(self) -> None:
        await self._said("lifespan.shutdown")
        await self._task

    async def _said(self, kind: str) -> None:
        await self._to_app.put({"type": kind})
        assert (await self._from_app.get())["type"] == f"{kind}.complete"


@dataclass(frozen=True, kw_only=True)
class Service:
    """An app, its workspace, a token of each role, and the event loop to ask it on."""

    app: Any
    workspace: Workspace
    tokens: dict[str, str]
    runner: asyncio.Runner

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        """Sends a request as somebody of a role."""
        return self.runner.run(self.asking(method, path, **options))

    async def asking(
        self,
        method: str,
        path: str,
        *,
        role: str | None = "admin",
        json: Any = None,
        headers: Headers = (),
        body: Body = b"",
    ) -> Answer:
        """The same, to await. What `headers` names is sent instead of the usual."""
        usual = {"host": "localhost"}
        if role is not None:
            usual["authorization"] = f"Bearer {self.tokens[role]}"
        if json is not None:
            body = json_module.dumps(json).encode()
            usual["content-type"] = "application/json"
        named = {name.lower() for name, _ in headers}
        sent = [*headers, *((name, value) for name, value in usual.items() if name not in named)]
        return await ask(self.app, method, path, headers=sent, body=body)

    def but(self, **settings: Any) -> Service:
        """The same workspace behind an app with other settings; nothing is deployed there."""
        return replace(self, app=create_app(self.workspace, ServerSettings(**settings)))


def check_problem(answer: Answer, status: int, *words: str) -> None:
    """Asserts that an answer is a problem (RFC 9457) of that status, and that its detail has those words."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json", answer
    assert answer.headers["content-length"] == str(len(answer.body))
    problem = answer.json()
    assert set(problem) - {"error"} == {"type", "title", "status", "detail", "request"}
    assert problem["request"] == answer.headers["x-request-id"]
    assert problem.get("error", problem["detail"]) == problem["detail"]
    assert problem["status"] == status
    assert problem["type"].startswith("urn:mms:")
    assert problem["title"] == problem["type"].removeprefix("urn:mms:").replace("-", " ")
    for word in words:
        assert word in problem["detail"], (word, problem["detail"])
