"""Requests straight into an ASGI application, so that even those can be made that no HTTP library would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any, method: str, path: str, *, headers: Headers = (), body: bytes | AsyncIterable[bytes] = b""
) -> Answer:
    """Sends one request; `path` may hold percent-encoding and a query, as in a request line."""
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
    pieces = _pieces(body)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}
        except StopAsyncIteration:
            pass
        if not ended:
            ended.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        sent.append(dict(message))

    ended: list[bool] = []
    await app(scope, receive, send)
    assert [message["type"] for message in sent[:1]] == ["http.response.start"], sent
    told = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(
        status=sent[0]["status"], headers=told, body=b"".join(message.get("body", b"") for message in sent[1:])
    )


async def _pieces(body: bytes | AsyncIterable[bytes]) -> Any:
    if isinstance(body, bytes):
        yield body
    else:
        async for piece in body:
            yield piece


class Lifespan:
    """An application between its start and its end."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __aenter__(self) -> Lifespan:
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        await self._said("lifespan.startup")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._said("lifespan.shutdown")
        await self._task

    async def _said(self, kind: str) -> None:
        await self._to_app.put({"type": kind})
        assert (await self._from_app.get())["type"] == f"{kind}.complete"


