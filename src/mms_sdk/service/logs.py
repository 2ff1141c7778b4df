"""What an attempt printed, read while it prints."""

from __future__ import annotations

from pathlib import Path

from mms_sdk.compute.engines.folder import LOG, attempt_folder
from mms_sdk.errors import NotFound
from mms_sdk.schema.job import Attempt, Job, LogPiece
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
    piece = _piece(workspace.job_folder(job.id), asked, offset, rank)
    if not over or len(piece) == PIECE_BYTES:
        piece = _whole_characters(piece)
    return LogPiece(
        text=piece.decode(errors="replace"),
        offset=offset + len(piece),
        attempt=asked.number,
        ended=over and not piece,
    )


def log_name(rank: int) -> str:
    """The file in an attempt's folder that a process of it prints to: `log.txt`, then `log.1.txt` and so on."""
    stem, _, suffix = LOG.rpartition(".")
    return LOG if rank == 0 else f"{stem}.{rank}.{suffix}"


def _piece(job_folder: Path, attempt: Attempt, offset: int, rank: int) -> bytes:
    path = attempt_folder(job_folder, attempt.number) / log_name(rank)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)
    except FileNotFoundError:
        if rank and attempt.ended is not None:
            raise NotFound(
                f"attempt {attempt.number} at job {attempt.job} had no process of rank {rank}; of one process alone, "
                f"the rank is 0"
            ) from None
        return b""  # nothing was printed yet


def _whole_characters(piece: bytes) -> bytes:
    # Without the beginning of one whose rest is still to come: what follows a first byte begins with the bits 10.
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte & 0xC0 != 0x80:
            needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return piece[:-back] if needed > back else piece
    return piece
