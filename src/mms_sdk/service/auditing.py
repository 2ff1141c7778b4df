"""What of the requests to a server goes into its audit log: every change, and refused access.

A change is written down before its answer is sent. Of refusals many may come at once from people who have nothing to
lose: each kind is written as long as it is not too often, and counted beyond that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mms_sdk.errors import MmsError
from mms_sdk.schema.access import Principal
from mms_sdk.schema.audit import AuditHead
from mms_sdk.service.limits import Buckets
from mms_sdk.storage.audit import AuditLog

_STRANGERS_PER_S, _STRANGERS_BURST = 5.0, 100
_REFUSED_PER_S, _REFUSED_BURST = 1.0, 20
_LONGEST_NAME = 100
_log = logging.getLogger("mms.service")


class Audit:
    """Writes one server's requests to an audit log.

    Args:
        log: Where; None for nowhere, in a process that serves nobody but itself.
    """

    def __init__(self, log: AuditLog | None) -> None:
        self._log = log
        # A thread of its own: writers that wait for a disk would take those that tokens are looked up in.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="mms-audit")
        self._buckets: Buckets[str] = Buckets()
        self._unrecorded = 0
        self._held: deque[dict[str, Any]] = deque()  # changes that are to be written yet
        self._end: AuditHead | None = None  # of those written, what the catalog is to hear yet

    async def check(self) -> None:
        """Lets a change begin if it can be written down.

        Raises:
            StorageFull, NotWritable, Unavailable: It could not.
        """
        if self._log is None:
            return
        self._log.check_room()
        if self._held or self._end is not None:
            await self._in_turn(self._write_held)

    async def changed(self, told: dict[str, Any]) -> None:
        """Writes down a change. If that fails after all, it is kept, and no other change begins until it is written."""
        if self._log is None:
            return
        told["unrecorded"], self._unrecorded = self._unrecorded, 0
        self._held.append(told)
        try:
            await self._in_turn(self._write_held)
        except (MmsError, OSError) as error:
            _log.error("the audit log cannot be written, and until it can be nothing is changed: %s", error)

    async def refused(self, told: dict[str, Any]) -> None:
        """Writes down that access was refused, or counts it: what cannot be written now is not kept."""
        if self._log is None:
            return
        known = told["token"]
        per_s, burst = (_REFUSED_PER_S, _REFUSED_BURST) if known else (_STRANGERS_PER_S, _STRANGERS_BURST)
        if self._buckets.take(known, per_s=per_s, burst=burst) or self._held:
            self._unrecorded += 1
            return
        told["unrecorded"], self._unrecorded = self._unrecorded, 0
        try:
            await self._in_turn(self._write_refusal, told)
        except (MmsError, OSError) as error:
            self._unrecorded += 1 + told["unrecorded"]
            _log.error("a refusal could not be written to the audit log: %s", error)

    def close(self) -> None:
        """Ends the writing, with what could not be written before if it can be now."""
        if self._held or self._end is not None:
            try:
                self._writer.submit(self._write_held).result()
            except (MmsError, OSError) as error:
                _log.error("the audit log lacks %d changes, which could not be written: %s", len(self._held), error)
        self._writer.shutdown()

    async def _in_turn(self, write: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, write, *args)

    def _write_held(self) -> None:
        assert self._log is not None
        while self._held:
            self._end = self._log.append(self._held[0])
            self._held.popleft()
        if self._end is not None:
            self._log.note(self._end)
            self._end = None

    def _write_refusal(self, told: dict[str, Any]) -> None:
        assert self._log is not None
        self._log.append(told, durable=False)


def described(
    scope: Any, *, who: Principal | None, route: str, names: dict[str, str], status: int, request: str
) -> dict[str, Any]:
    """What is told of a request."""
    client = scope.get("client")
    return {
        "who": who.name if who else "",
        "token": who.id or who.name if who else "",
        "client": client[0] if client else "",
        "method": scope["method"][:20],
        "route": route,
        "names": {name: value[:_LONGEST_NAME] for name, value in names.items()} if who else {},
        "status": status,
        "request": request,
    }
