"""How what is made within an attempt at a job is noted for it.

Whoever commits a snapshot or registers a version does not know whose job it is a part of, and has no catalog of it at
hand. A line is left in the attempt's folder, and whoever records the end of the attempt brings it into the catalog.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from mms_sdk.errors import MmsError
from mms_sdk.schema.lineage import Reference
from mms_sdk.settings import FENCE_VARIABLE

if TYPE_CHECKING:
    from mms_sdk.storage.workspace import Workspace

MADE = "made.jsonl"
"""In the folder of an attempt: what it made, a line each."""
_MOST_BYTES = 2**20
_here: ContextVar[list[Reference] | None] = ContextVar("mms_made", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[Reference]]:
    """What is made in here, as it is made: for a job that is the work of one thread."""
    made: list[Reference] = []
    token = _here.set(made)
    try:
        yield made
    finally:
        _here.reset(token)


def note(made: Reference, *, where: str) -> None:
    """Leaves word of what was made for the job that this thread does, or that this process is of, if there is one.

    Args:
        made: A snapshot or version.
        where: The store of the dataset or the catalog of the model, since a job may open another workspace.
    """
    if (here := _here.get()) is not None:
        here.append(made)
    fence = os.environ.get(FENCE_VARIABLE)
    if not fence:
        return
    line = orjson.dumps({"made": str(made), "where": where}, option=orjson.OPT_APPEND_NEWLINE)
    with contextlib.suppress(OSError):  # a full disk, or a folder that is gone: what was made is there all the same
        file = os.open(Path(fence).parent / MADE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line)  # at once, since several processes may leave word
        finally:
            os.close(file)


def noted(workspace: Workspace, folder: Path) -> list[Reference]:
    """What an attempt made in a workspace, by the word that it left in its folder."""
    try:
        with (folder / MADE).open("rb") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return []
    found = (_read(workspace, line) for line in lines)
    return [each for each in found if each is not None]


def _read(workspace: Workspace, line: bytes) -> Reference | None:
    # Where the code of a job could write, too.
    try:
        told: Any = orjson.loads(line)
        made = Reference.of(told["made"])
        here = workspace.datasets.below(made.name).url if made.what == "dataset" else workspace.catalog.name
        is_ours = isinstance(made.at, int) and made.split is None and _place(told["where"]) == _place(here)
    except (ValueError, TypeError, KeyError, ValidationError, MmsError):
        return None
    return made if is_ours else None


def _place(where: str) -> str:
    # One folder may have several names.
    return where if "://" in where else os.path.realpath(where)
