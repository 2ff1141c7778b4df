"""Whose a token is, without asking the catalog at each request: that would cost more than a model.

What the catalog said holds for the first second, is asked again behind the requests' back until the next, and never
holds longer. What this process itself revokes it forgets at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mms_sdk.errors import MmsError
from mms_sdk.schema.access import Principal

FRESH_S = 1.0
KEPT_S = 2.0
USED_EVERY_S = 600.0
_MOST = 10_000
_STRANGERS_AT_ONCE = 2  # so many wrong tokens are looked up at a time, however many come
_NOBODY: tuple[Principal | None, float] = (None, -math.inf)
_log = logging.getLogger("mms.service")


def _unrecorded(_: str) -> None:
    pass


class KnownTokens:
    """Tokens that were asked with of late.

    Args:
        find: Whose token it is; called in a thread.
        used: Told the id of a token that is used, now and then; called in a thread.
    """

    def __init__(self, find: Callable[[str], Principal | None], used: Callable[[str], None] = _unrecorded) -> None:
        self._find = find
        self._used = used
        self._known: dict[bytes, tuple[Principal | None, float]] = {}  # by SHA-256: tokens themselves are kept nowhere
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._told: dict[str, float] = {}
        self._forgotten = 0
        self._telling: set[asyncio.Task[None]] = set()
        self._strangers = ThreadPoolExecutor(_STRANGERS_AT_ONCE, thread_name_prefix="mms-strangers")

    async def find(self, token: str) -> Principal | None:
        """Whose it is, if anybody's."""
        digest = hashlib.sha256(token.encode()).digest()
        principal, asked_at = self._known.get(digest, _NOBODY)
        age_s = time.monotonic() - asked_at
        if age_s >= FRESH_S:
            asking = self._asking.get(digest)
            if asking is None:  # one of the requests that come in this moment asks for all of them
                asking = self._asking[digest] = asyncio.ensure_future(self._ask(token, digest, principal))
                asking.add_done_callback(lambda done: done.cancelled() or done.exception())
            if age_s >= KEPT_S:
                principal = await asyncio.shield(asking)
        if principal is not None and principal.expires is not None and principal.expires <= time.time():
            return None
        return principal

    def forget(self) -> None:
        """Makes the next request of every token ask the catalog; to be called where one was revoked or rotated."""
        self._forgotten += 1
        self._known.clear()
        self._asking.clear()  # what these hear may be from before

    async def close(self) -> None:
        """Waits for what is being recorded."""
        await asyncio.gather(*self._telling)
        self._strangers.shutdown()

    async def _ask(self, token: str, digest: bytes, known: Principal | None) -> Principal | None:
        asked_at, forgotten = time.monotonic(), self._forgotten
        try:
            if known is None:
                found = await asyncio.get_running_loop().run_in_executor(self._strangers, self._find, token)
            else:  # does not wait behind strangers
                found = await asyncio.to_thread(self._find, token)
        finally:
            if forgotten == self._forgotten:
                del self._asking[digest]
        if forgotten != self._forgotten:
            return await self.find(token)
        self._known.pop(digest, None)
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[digest] = (found, asked_at)
        if found is not None and found.id:
            self._note_use(found.id, asked_at)
        return found

    def _note_use(self, id: str, at: float) -> None:
        if at - self._told.get(id, -math.inf) < USED_EVERY_S:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[id] = at
        telling = asyncio.ensure_future(asyncio.to_thread(self._tell, id))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _tell(self, id: str) -> None:
        try:
            self._used(id)
        except MmsError as error:  # nobody is kept out for it
            _log.warning("when a token was used could not be recorded: %s", error.message)
