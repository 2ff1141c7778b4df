"""What an attempt printed, read while it prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mms_sdk.compute.engines import log
from mms_sdk.compute.engines.folder import LOG, attempt_folder, of_rank
from mms_sdk.errors import NotFound
from mms_sdk.schema.job import Job, LogPiece
from mms_sdk.storage.holes import stretches
from mms_sdk.storage.workspace import Workspace

PIECE_BYTES = 2**20


def read_log(workspace: Workspace, job: Job, *, offset: int = 0, attempt: int | None = None, rank: int = 0) -> LogPiece:
    """A piece of what a process of an attempt printed.

    Args:
        workspace: Where the job is.
        job: The job.
        offset: The byte to begin at.
        attempt: Of which attempt; of the newest if left out.
        rank: Of which of its processes, from 0.

    Raises:
        NotFound: There is no such attempt, or it had no process of that rank.
    """
    attempts = workspace.catalog.attempts.of(job.id)
    numbers = [each.number for each in attempts]
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"job {job.id} has no attempt {attempt}; there are {numbers or 'none yet'}")
    if not attempts:
        return LogPiece(text="", offset=0, ended=job.ended)
    asked = attempts[-1] if attempt is None else attempts[attempt - 1]
    # Asked before it is read: what is written between would else be taken for nothing.
    over = asked.ended is not None
    path = attempt_folder(workspace.root / "jobs" / job.id, asked.number) / of_rank(LOG, rank)
    if rank and over and not path.exists():
        raise NotFound(
            f"attempt {asked.number} at job {job.id} had no process of rank {rank}; of one process alone, the rank is 0"
        )
    piece = log.read(path, offset, PIECE_BYTES)
    content = piece.content
    if not piece.torn and (not over or len(content) == PIECE_BYTES):
        content = _whole_characters(content)
    return LogPiece(
        text=content.decode(errors="replace"),
        left_out=piece.left_out,
        offset=offset + piece.left_out + len(content),
        attempt=asked.number,
        ended=over and not content,
    )


def is_torn(path: Path) -> bool:
    """Whether the middle of a log was given up."""
    found = path.stat()
    return found.st_blocks * 512 < found.st_size and kept_bytes(path) < found.st_size


def kept_bytes(path: Path) -> int:
    """How much there is of a log."""
    return sum(each.end - each.begin for each in stretches(path))


def pieces_of(path: Path) -> Iterator[bytes]:
    """What there is of a log by now, with a line where something was given up that says how many bytes."""
    offset, size = 0, path.stat().st_size
    while offset < size and (piece := log.read(path, offset, PIECE_BYTES)).content:
        content = piece.content
        if piece.left_out:
            content = f"\n--- {piece.left_out:,} bytes left out ---\n".encode() + _from_whole_character(content)
        yield _whole_characters(content) if piece.torn else content
        offset = piece.end


def _from_whole_character(piece: bytes) -> bytes:
    # Without the rest of one whose beginning was given up.
    begin = next((at for at, byte in enumerate(piece[:3]) if byte & 0xC0 != 0x80), min(3, len(piece)))
    return piece[begin:]


def _whole_characters(piece: bytes) -> bytes:
    # Without the beginning of one whose rest is still to come: what follows a first byte begins with the bits 10.
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte & 0xC0 != 0x80:
            needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return piece[:-back] if needed > back else piece
    return piece
