"""What time it is for the files of a store: by the clock that says when they were written."""

from __future__ import annotations

import os
import time

from mms_sdk.errors import Conflict
from mms_sdk.storage.stores.base import Store

DIFFER_S = 24 * 3600.0
"""By how much clocks may differ."""


def store_time(store: Store) -> float:
    """Unix time in seconds by a store's own clock, which this machine's has to agree with.

    Whoever removes what is old goes by both: one clock that is wrong by years removes nothing.

    Raises:
        Conflict: They differ by more than a day.
    """
    here = time.time()
    there = here if store.local else _asked(store)
    if abs(there - here) > DIFFER_S:
        raise Conflict(
            f"what is old is told by clocks that agree within a day; that of {store.url} is "
            f"{(there - here) / 3600:+.1f} hours from this machine's; set the one that is wrong"
        )
    return there


def _asked(store: Store) -> float:
    key = f"mms-clock-{os.urandom(12).hex()}"
    store.create(key, b"")
    try:
        return store.stat(key).modified
    finally:
        store.delete(key)
