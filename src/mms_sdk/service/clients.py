"""Noticing that a client has gone while its answer is made."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Task
from typing import Any

from mms_sdk.service.guard import Receive

LOOK_EVERY_S = 0.05
"""How often somebody looks for answers that take long. Listening for a client costs a task, and even a timer for each
request can be measured; so answers that are quicker than this, most of them, cost an entry in a set."""


class Client:
    """Whoever waits for the answer that a task makes.

    Attributes:
        gone: Whether they have gone. The task that was cancelled looks at it to learn why.
    """

    __slots__ = ("answering", "gone", "receive", "seen", "watching")

    def __init__(self, receive: Receive, answering: Task[Any] | None) -> None:
        self.receive = receive
        self.answering = answering
        self.gone = False
        self.seen = False  # by a look before
        self.watching: Task[None] | None = None

    async def until_gone(self) -> None:
        """Waits until the client hangs up, then cancels the task that makes the answer."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.answering is not None:
            self.answering.cancel()


class Clients:
    """All who wait; of those whose answers take longer than a moment, hanging up is noticed."""

    def __init__(self) -> None:
        self._waiting: dict[AbstractEventLoop, set[Client]] = {}

    def add(self, receive: Receive) -> Client:
        """Begins with the client of the current task, whose body has been read. Whoever calls this calls `forget`."""
        loop = asyncio.get_running_loop()
        client = Client(receive, asyncio.current_task())
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = set()
            loop.call_later(LOOK_EVERY_S, self._look, loop, waiting)
        waiting.add(client)
        return client

    def forget(self, client: Client) -> None:
        """Looks for this one no longer."""
        if waiting := self._waiting.get(asyncio.get_running_loop()):
            waiting.discard(client)
        if client.watching is not None:
            client.watching.cancel()

    def _look(self, loop: AbstractEventLoop, waiting: set[Client]) -> None:
        if not waiting:  # an idle server looks for nothing
            del self._waiting[loop]
            return
        for client in waiting:
            if client.seen and client.watching is None:
                client.watching = loop.create_task(client.until_gone())
            client.seen = True
        loop.call_later(LOOK_EVERY_S, self._look, loop, waiting)
