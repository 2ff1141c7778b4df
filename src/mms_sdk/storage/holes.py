"""Files with holes: what was given up of them takes no place on the disk, and reads as zeros. Imports little."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple


class Stretch(NamedTuple):
    """What lies between two holes, from a byte to the one behind its last."""

    begin: int
    end: int


def next_data(file: int, offset: int) -> int | None:
    """Where there is something from an offset on; None where nothing follows."""
    return _next(file, offset, os.SEEK_DATA)


def next_hole(file: int, offset: int) -> int | None:
    """Where there is nothing from an offset on, if only behind the file's end; None beyond that."""
    return _next(file, offset, os.SEEK_HOLE)


def stretches(path: Path) -> list[Stretch]:
    """What there is of a file, in order; all of it at once where a file system has no holes.

    Raises:
        FileNotFoundError: It is not there.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found, offset = [], 0
        while (begin := next_data(file, offset)) is not None:
            offset = next_hole(file, begin) or begin
            if offset > begin:  # else it was given up in this moment
                found.append(Stretch(begin, offset))
        return found
    finally:
        os.close(file)


def _next(file: int, offset: int, what: int) -> int | None:
    try:
        return os.lseek(file, offset, what)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
