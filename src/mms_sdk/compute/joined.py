"""What each pod of several starts: `python -m mms_sdk.compute.joined SCRIPT ARG...`, one process of a training.

It joins the others, which the environment names, and then runs the script as `__main__`.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mms_sdk.compute.engines.folder import COORDINATOR, RANK, RANKS
from mms_sdk.errors import InvalidRequest

_NAMED_WITHIN_S, _AGAIN_S = 300.0, 1.0


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
    coordinator = os.environ.get(COORDINATOR, "")
    _wait_for_name(coordinator)
    join_processes(coordinator, count=ranks, index=rank)
    sys.path.insert(0, str(path.parent))
    sys.argv = list(words)
    runpy.run_path(str(path), run_name="__main__")


def _wait_for_name(coordinator: str) -> None:
    # A pod has a name once it runs, and whoever asked for it before may hear of none for half a minute more. One that
    # does not come is told of by whoever joins.
    host, until = coordinator.rpartition(":")[0], time.monotonic() + _NAMED_WITHIN_S
    while host and time.monotonic() < until:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror:
            time.sleep(_AGAIN_S)
        else:
            return


def _whole(variable: str) -> int:
    told = os.environ.get(variable, "")
    if not told.isdecimal():
        raise InvalidRequest(f"which process of several this is, the environment says; ${variable} is {told!r}")
    return int(told)


if __name__ == "__main__":
    main(sys.argv[1:])
