"""Answers that go on: server-sent events (WHATWG HTML, 9.2), until nothing can follow or the server drains.

What is told lies in the catalog and in files that any process may write to, so it is looked for again and again: soon
after something came, and once a second where nothing does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from mms_sdk.errors import MmsError, Unavailable

CONTENT_TYPE = "text/event-stream"
HEARTBEAT_S = 15.0
"""Silence after which a comment is sent: whoever hears less than that for much longer is cut off, and asks again."""
LONGEST_S = 60.0
"""Then a stream ends, and who follows asks for what comes behind it: with a token that may have been revoked since."""
_MOST = 200
_PAUSE_S = 0.1, 1.0
_GROWTH = 1.3
_CLOSE_WITHIN_S = 5.0
_HEARTBEAT = b": nothing new\n\n"
_log = logging.getLogger("mms.service")


class Source(Protocol):
    """What a stream tells."""

    over: bool
    """Whether nothing can follow what the last call gave."""

    def new(self) -> list[bytes]:
        """Messages since the last call. It is called in a thread, one call at a time."""


def message(data: bytes, *, id: str, event: str = "") -> bytes:
    """One message; `id` is what a client names as `Last-Event-ID` to go on behind it. The data has no line ends."""
    named = f"event: {event}\n" if event else ""
    return f"id: {id}\n{named}data: ".encode() + data + b"\n\n"


def is_asked_for(request: Request) -> bool:
    """Whether a request wants a stream and not a page."""
    return CONTENT_TYPE in request.headers.get("accept", "").lower()


class Streams:
    """The streams of one app."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()
        self._open = 0

    async def answer(self, source: Source) -> StreamingResponse:
        """An answer that tells what there is, and then what comes.

        Raises:
            Unavailable: There are too many already, or the server drains.
        """
        if self._open >= _MOST or self._draining.is_set():
            raise Unavailable(f"a server tells at most {_MOST} streams at once, and none while it drains; ask again")
        first = await run_in_threadpool(source.new)  # what is wrong with it is still answered as such
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._told(first, source), media_type=CONTENT_TYPE, headers=headers)

    def drain(self) -> None:
        """Ends all streams, each behind a whole message."""
        self._draining.set()

    async def close(self) -> None:
        """Ends all streams and waits until they have."""
        self.drain()
        until = time.monotonic() + _CLOSE_WITHIN_S
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.005)

    async def _told(self, new: list[bytes], source: Source) -> AsyncIterator[bytes]:
        pause, longest = _PAUSE_S
        heard = time.monotonic()
        until = heard + LONGEST_S
        self._open += 1
        try:
            while True:
                if new:
                    yield b"".join(new)
                    pause, heard = _PAUSE_S[0], time.monotonic()
                elif time.monotonic() - heard > HEARTBEAT_S:
                    yield _HEARTBEAT
                    heard = time.monotonic()
                if source.over or time.monotonic() > until or await self._drains_within(0.0 if new else pause):
                    return
                pause = min(longest, pause * _GROWTH)
                new = await run_in_threadpool(source.new)
        except MmsError as error:  # a catalog that is away: who asks for what follows is told so
            _log.warning("a stream ends: %s", error)
        finally:
            self._open -= 1

    async def _drains_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)
        return self._draining.is_set()
