"""Metrics of one attempt: append-only lines of JSON, read from any byte offset while they are written."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.storage import files

PIECE_BYTES = 2**21
"""What is read at a time of a log that may be long."""
_LONGEST_LINE = 2**20


class MetricLog:
    """Writes `{"step": …, "time": …, name: value, …}` lines.

    Args:
        path: The file; continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        with files.writing(path):
            self._file = path.open("ab", buffering=0)
            self._drop_half_a_line(path)
        self.path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line; a single `write` call, so that readers never see half of it."""
        with files.writing(self.path):
            line = orjson.dumps({key: _plain(value) for key, value in values.items()}) + b"\n"
            written = self._file.write(line)
            if written != len(line):  # what a disk does that is full in the middle of it
                self._file.truncate(self._file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _drop_half_a_line(self, path: Path) -> None:
        # A full disk or a kill may have cut the last line short; what is appended to it would be lost as well.
        end = path.stat().st_size
        begin = max(0, end - _LONGEST_LINE)
        with path.open("rb") as file:
            file.seek(begin)
            whole = begin + file.read().rfind(b"\n") + 1
        if whole != end:
            self._file.truncate(whole)


class SilentLog(MetricLog):
    """What the other processes of a run write: nothing.

    Args:
        path: The file that the first one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def size(self) -> int:
        """None: the first process says it."""
        return 0

    def close(self) -> None:
        """Has nothing to close."""


def read(path: Path, offset: int = 0, *, most: int = -1) -> tuple[list[dict[str, Any]], int]:
    """Reads whole lines from a byte offset.

    Args:
        path: The file; one that is not there has no lines.
        offset: Where a line begins.
        most: Bytes to read, more than the longest line has; -1 for all there are.

    Returns:
        The lines, and the offset to go on from.
    """
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(most)
    whole = data[: data.rfind(b"\n") + 1]
    return [orjson.loads(line) for line in whole.splitlines()], offset + len(whole)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """All lines that are there, however many, a piece of the file at a time."""
    offset = 0
    while True:
        lines, offset = read(path, offset, most=PIECE_BYTES)
        if not lines:
            return
        yield from lines


def _plain(value: Any) -> Any:
    # JSON has no NaN; a metric that became one must still be seen.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
