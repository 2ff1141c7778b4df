"""The one seam between the client and a server: in this process, or over HTTP."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from typing import Any

import httpx2

_END = object()
_AHEAD = 64  # pieces of an answer
_LOOK_S = 0.005
_LAST_WORDS_S = 1.0  # from an application's word that it failed to its end


class InProcessTransport(httpx2.BaseTransport):
    """Runs an ASGI application in this process, on an event loop of its own thread; no port is opened.

    Responses stream: the head is handed over as soon as it is sent, the body piece by piece. A loop of its own is
    needed because a notebook's kernel is inside one already.

    Args:
        app: The application; its lifespan begins now and ends with `close`.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mms-embedded", daemon=True)
        self._thread.start()
        self._lifespan = _Lifespan(app)
        try:
            asyncio.run_coroutine_threadsafe(self._lifespan.begin(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request to the application."""
        call = _Call(request)
        running = asyncio.run_coroutine_threadsafe(call.run(self._app), self._loop)
        running.add_done_callback(call.ended)
        status, headers = call.head()
        return httpx2.Response(status, headers=headers, stream=_Stream(call, running))

    def close(self) -> None:
        """Ends the application's lifespan and the loop."""
        if self._loop.is_closed():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._lifespan.end(), self._loop).result()
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Call:
    """One request on its way through the application."""

    def __init__(self, request: httpx2.Request) -> None:
        self._scope = _scope(request)
        self._body: bytes | None = request.read()
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._gone = asyncio.Event()

    async def run(self, app: Any) -> None:
        await app(self._scope, self._receive, self._send)

    def ended(self, running: Future[None]) -> None:
        error = None if running.cancelled() else running.exception()
        self._sent.put(error or _END)

    def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        message = self._next()
        if message is _END:
            raise httpx2.RemoteProtocolError("the application ended without an answer")
        return message["status"], list(message["headers"])

    def pieces(self) -> Iterator[bytes]:
        while (message := self._next()) is not _END:
            if message["type"] == "http.response.body" and message.get("body"):
                yield message["body"]

    def _next(self) -> Any:
        message = self._sent.get()
        if isinstance(message, BaseException):
            raise message
        return message

    async def _receive(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        while self._sent.qsize() > _AHEAD:  # whoever reads is slower: what is sent would pile up in memory
            await asyncio.sleep(_LOOK_S)
        self._sent.put(message)


class _Stream(httpx2.SyncByteStream):
    def __init__(self, call: _Call, running: Future[None]) -> None:
        self._call = call
        self._running = running

    def __iter__(self) -> Iterator[bytes]:
        return self._call.pieces()

    def close(self) -> None:
        self._running.cancel()  # nobody reads on; a finished call is not touched by this


class _Lifespan:
    """Begins and ends an application, as the ASGI specification says."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        await self._tell("lifespan.startup")

    async def end(self) -> None:
        await self._tell("lifespan.shutdown")
        if self._task is not None:
            await self._task

    async def _tell(self, kind: str) -> None:
        assert self._task is not None
        await self._to_app.put({"type": kind})
        told = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait({told, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():  # it ended without a word, and would be waited for to the end of time
            told.cancel()
            self._task.result()
            raise RuntimeError(f"the application ended at {kind}")
        answer = told.result()
        if answer["type"] == f"{kind}.failed":
            await asyncio.wait({self._task}, timeout=_LAST_WORDS_S)
            if self._task.done():  # with the error itself, where the message is a traceback
                self._task.result()
            raise RuntimeError(answer.get("message", kind))


def _scope(request: httpx2.Request) -> dict[str, Any]:
    path, _, query = request.url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": None,
    }
