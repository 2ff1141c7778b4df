"""Keeps out what has come back from the dead: a process of an attempt that was given up changes nothing any more.

It may have been stopped, or cut off from everybody else, while another attempt was begun. Before an attempt is recorded
as ended, a file in its folder says so; whoever is of it looks for that file before all that others can see.
"""

from __future__ import annotations

import os

from mms_sdk.errors import Conflict
from mms_sdk.settings import FENCE_VARIABLE


def check() -> None:
    """Refuses to go on in a process of an attempt that is over.

    Raises:
        Conflict: It is.
    """
    fence = os.environ.get(FENCE_VARIABLE)
    if fence and os.path.exists(fence):
        raise Conflict(
            f"what belongs to an attempt that is over changes nothing any more, since another may have begun; process "
            f"{os.getpid()} is of one that was given up: {fence} says so; end it"
        )
