"""What a job prints: a file that its processes append to themselves, of which the middle is given up once it is long.

Offsets stay what they are: what is given up becomes a hole in the file, which takes no place on the disk. Imports
little, since a supervisor holds all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

from mms_sdk.storage.holes import next_data, next_hole

KEPT_BYTES = 256 * 2**20
_FIRST_BYTES = 2**20  # how it began is kept, too
_BLOCK = 4096
_LINES, _LINE_BYTES = 20, 500
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)


class Piece(NamedTuple):
    """Some of a log.

    Attributes:
        content: Bytes.
        left_out: Bytes in front of it that have been given up.
        end: The offset behind it.
        torn: Whether what follows it has been given up, so that a character may be cut off at its end.
    """

    content: bytes
    left_out: int
    end: int
    torn: bool


def give_up_middle(log: Path, kept_bytes: int) -> None:
    """Gives up the middle of a log that is longer than it may be; how it began and its newest half are kept.

    Where there are no holes (macOS, NFS before 4.2) it stays as it is.

    Args:
        log: Which; it may be written meanwhile.
        kept_bytes: The most it may take on the disk.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        found = log.stat()
        if found.st_blocks * 512 > kept_bytes:
            first = min(_FIRST_BYTES, kept_bytes // 4) // _BLOCK * _BLOCK
            last = (found.st_size - kept_bytes // 2) // _BLOCK * _BLOCK
            _punch(log, first, last)


def read(log: Path, offset: int, most: int) -> Piece:
    """What was printed from an offset on, or from where something is left of it.

    Args:
        log: Which; nothing if it is not there.
        offset: Byte to begin at.
        most: Bytes.
    """
    try:
        file = os.open(log, os.O_RDONLY)
    except FileNotFoundError:
        return Piece(b"", 0, offset, False)
    try:
        while True:
            begin = next_data(file, offset)
            if begin is None:  # at its end, or beyond
                return Piece(b"", 0, offset, False)
            hole = next_hole(file, begin) or begin
            content = os.pread(file, min(most, hole - begin), begin)
            if content and next_data(file, begin) == begin:  # else it was given up while it was read
                end = begin + len(content)
                return Piece(content, begin - offset, end, torn=end == hole < os.fstat(file).st_size)
    finally:
        os.close(file)


def last_lines(log: Path) -> list[str]:
    """The end of a log, which may be of any size."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINES * _LINE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line[:_LINE_BYTES] for line in lines[-_LINES:]]


def _punch(log: Path, begin: int, end: int) -> None:
    file = os.open(log, os.O_WRONLY)
    try:
        where = (ctypes.c_int64(begin), ctypes.c_int64(end - begin))
        ctypes.CDLL(None).fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, *where)  # refuses what has no length
    finally:
        os.close(file)
