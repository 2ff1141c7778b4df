"""What time it is, where the age of a store's files is told by it: two clocks have to say the same."""

from __future__ import annotations

import os
import time

from mms_sdk.errors import Conflict
from mms_sdk.storage.stores.base import Store

DIFFER_S = 24 * 3600.0
"""By how much clocks may differ."""


def agreed_time(store: Store) -> float:
    """Unix time in seconds by this machine's clock, once that of the store agrees with it.

    So one clock that is wrong by years removes nothing.

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
    return here


def _asked(store: Store) -> float:
    key = f"mms-clock-{os.urandom(12).hex()}"
    store.create(key, b"")
    try:
        return store.stat(key).modified
    finally:
        store.delete(key)
