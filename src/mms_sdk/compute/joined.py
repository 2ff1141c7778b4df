"""What each pod of several starts: `python -m mms_sdk.compute.joined SCRIPT ARG...`, one process of a training.

It joins the others, which the environment names, and then runs the script as `__main__`.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mms_sdk.errors import InvalidRequest

COORDINATOR = "MMS_COORDINATOR"
"""Address and port at which the first process listens."""
RANK, RANKS = "MMS_RANK", "MMS_RANKS"
"""The number of this process, from 0, and how many there are."""


def main(words: Sequence[str]) -> None:
    """Joins the other processes, and runs a script.

    Args:
        words: The script's path, and what it finds in `sys.argv` behind it.

    Raises:
        InvalidRequest: The environment does not say which process this is.
        Unavailable: The others did not come.
    """
    from mms_sdk.compute.sharding.processes import join_processes

    path = Path(words[0])
    rank, ranks = _whole(RANK), _whole(RANKS)
    join_processes(os.environ.get(COORDINATOR, ""), count=ranks, index=rank)
    sys.path.insert(0, str(path.parent))
    sys.argv = list(words)
    runpy.run_path(str(path), run_name="__main__")


def _whole(variable: str) -> int:
    told = os.environ.get(variable, "")
    if not told.isdecimal():
        raise InvalidRequest(f"which process of several this is, the environment says; ${variable} is {told!r}")
    return int(told)


if __name__ == "__main__":
    main(sys.argv[1:])
