"""Noticing that a client has gone while its answer is made."""

from __future__ import annotations

import asyncio

from mms_sdk.service.guard import Receive

WATCHED_AFTER_S = 0.02
"""How long an answer takes before anybody looks whether it is still wanted. Listening costs a task, which most answers
are quicker than; a timer that is cancelled costs next to nothing."""


class Client:
    """Whoever waits for the answer that this task makes; once they have gone, the task is cancelled.

    Args:
        receive: ASGI's, after the whole body has been read.

    Attributes:
        gone: Whether they have. The task that was cancelled looks at it to learn why.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._answering = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, self._watch)
        self._watching: asyncio.Task[None] | None = None
        self.gone = False

    def forget(self) -> None:
        """Looks no longer."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._answering is not None:
            self._answering.cancel()
