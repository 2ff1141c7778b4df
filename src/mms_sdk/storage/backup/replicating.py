"""Copies of a workspace at regular times, so that there is one in another place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mms_sdk.errors import Damaged, NotWritable, StorageFull, Unavailable
from mms_sdk.storage.backup.copies import Copies
from mms_sdk.storage.workspace import Workspace
from mms_sdk.told import on_its_lines


def replicate(
    workspace: Workspace,
    copies: Copies,
    *,
    every_s: float,
    keep: int,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Backs a workspace up again and again until it is told to stop; what hinders one copy does not end it.

    Args:
        workspace: What is copied.
        copies: Where to.
        every_s: From the beginning of one copy to that of the next.
        keep: How many of the newest copies stay.
        say: Told about each.
        stop: Ends it, at the latest when the copy that is being made is done.

    Raises:
        Conflict: The copies became a workspace themselves.
    """
    while not stop.is_set():
        began = time.monotonic()
        try:
            say(str(copies.take(workspace)))
            copies.prune(keep)
        except (Unavailable, StorageFull, NotWritable, Damaged) as error:
            say(f"no backup this time: {on_its_lines(error.message)}")
        stop.wait(max(0.0, every_s - (time.monotonic() - began)))
