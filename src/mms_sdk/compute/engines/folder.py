"""The folder of an attempt: what the engine, its supervisor and the worker tell one another.

Each file is written once and by one of them, whole or not at all, so that any of them may die at any moment. Imports
little, since a supervisor holds all of it for as long as its job runs.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

GIVEN = "attempt.json"
"""What is to be run, by the engine before anything is started."""
CLAIM = "supervisor.json"
"""Who looks after it. Whoever makes this file owns the attempt: a supervisor, or the engine that declares it lost."""
WORKER = "worker.json"
"""What runs it, by the supervisor, one file a rank; its number is that of its session."""
PREEMPT = "preempt"
"""It is to make room for another; what it says is why."""
CANCEL = "cancel"
"""It is to be cancelled."""
ERROR = "error.json"
"""What the code raised, by the worker, one file a rank."""
OUTCOME = "outcome.json"
"""What came out of work that is described, or the error as the service would answer it, by the worker."""
ENDED = "ended.json"
"""How it ended, by the supervisor."""
ENVIRONMENT = "environment.json"
"""What it runs in, by the worker before it runs anything."""
OVER = "over"
"""It is about to be recorded as ended: what is left of it changes nothing any more."""
LOG = "log.txt"
"""All that it printed, one file a rank."""
CODE = "code"
"""The bundle, unpacked; where it runs."""
ARTIFACTS = "artifacts"
"""What its code keeps."""
COOKIE = "MMS_ATTEMPT"
"""The variable that all processes of an attempt inherit, whatever else they do to get away."""
RANK, RANKS = "MMS_RANK", "MMS_RANKS"
"""The variables by which the workers of an attempt know which they are, from 0, and how many."""
COORDINATOR = "MMS_COORDINATOR"
"""The variable that says where several workers come together: an address and a port."""


def attempt_folder(job_folder: Path, number: int) -> Path:
    """Where an attempt at a job lies."""
    return job_folder / "attempts" / str(number)


def of_rank(name: str, rank: int) -> str:
    """What a file is called of which each rank has one: of rank 0 as it is, of others e.g. `log.3.txt`."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{rank}.{kind}" if rank else name


def cookie(job: str, number: int) -> str:
    """What `COOKIE` says in the processes of an attempt."""
    return f"{job}/{number}"


def create(path: Path, told: Any, *, durable: bool = False) -> bool:
    """Writes a file that is not there yet, for good; False if it is there already.

    Args:
        path: Where.
        told: What it says, as JSON.
        durable: Whether it is on the disk when this returns. What only says what runs need not be: that does not
            outlive a machine that goes down, and each write to the disk is a share of what submitting takes.
    """
    # A name that nobody had before: one that was used again would be emptied under the file that it became.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        with open(draft, "x", encoding="utf-8", opener=_private) as file:
            json.dump(told, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return True


def read(path: Path) -> dict[str, Any] | None:
    """What a file says; None if it is not there."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return told


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
