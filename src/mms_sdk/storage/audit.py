"""The audit log of a workspace: lines of JSON, each with the SHA-256 of the one before, in files of some MiB.

What is changed, taken out, put in or brought into another order breaks the chain. What is cut off at the end is missed
because the catalog has the last line's number and hash. Several processes write to it, one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy as sa
from pydantic import ValidationError

from mms_sdk.errors import Damaged, StorageFull
from mms_sdk.schema.audit import AuditEntry, AuditHead
from mms_sdk.storage import files, tables
from mms_sdk.storage.ids import now

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog

FOLDER = "audit"
"""Of a workspace."""
FILE_BYTES = 16 * 2**20
LEAST_FREE_BYTES = 2**20
_LONGEST_LINE = 2**16
_NOTHING = hashlib.sha256(b"").hexdigest()


class AuditLog:
    """The log in a folder, which is made with its first line.

    Args:
        folder: Where it lies.
        catalog: Knows how far it goes.
    """

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self._folder = folder
        self._catalog = catalog

    def check_room(self) -> None:
        """Refuses what could not be recorded.

        Raises:
            StorageFull: There is hardly any room.
        """
        place = os.statvfs(self._folder if self._folder.is_dir() else self._folder.parent)
        if place.f_bavail * place.f_frsize < LEAST_FREE_BYTES:
            raise StorageFull(
                f"nothing is changed that cannot be written to the audit log in {self._folder}; there is less than "
                f"{LEAST_FREE_BYTES:,} bytes of room; free some"
            )

    def append(self, told: Mapping[str, Any], *, durable: bool = True) -> AuditHead:
        """Writes a line.

        Args:
            told: What it says: the fields of `AuditEntry` but `number`, `at` and `before`.
            durable: Whether it is on the disk when this returns.

        Returns:
            The end that the log has with it, for `note`.

        Raises:
            StorageFull, NotWritable: It could not be written; nothing of it stays.
        """
        files.make_folder(self._folder)
        with files.writing(self._folder), self._alone():
            path, head = self._end()
            entry = AuditEntry(number=head.number + 1, at=now(), before=head.hash, **told)
            line = orjson.dumps(entry.model_dump()) + b"\n"
            if path is None or path.stat().st_size + len(line) > FILE_BYTES:
                path = self._folder / f"{entry.number:012}.jsonl"
            _write(path, line, durable=durable)
        return AuditHead(number=entry.number, hash=_hash(line))

    def note(self, head: AuditHead) -> None:
        """Keeps in the catalog how far the log goes, so that lines that are missing at its end are missed.

        Raises:
            Unavailable: The catalog is away.
        """
        table = tables.audit_head
        with self._catalog.writing() as connection:
            there = connection.execute(sa.select(table.c.number)).scalar()
            if there is None:
                connection.execute(sa.insert(table).values(head.model_dump()))
            elif there < head.number:  # another process may have been faster
                connection.execute(sa.update(table).values(head.model_dump()))

    def entries(self, *, since: int = 0) -> Iterator[AuditEntry]:
        """Lines with a number above `since`, oldest first, as they are: whether they may be believed says `verify`.

        Raises:
            Damaged: One is no line of a log.
        """
        paths = self._paths()
        for path, following in zip_longest(paths, paths[1:]):
            if following is not None and int(following.stem) <= since + 1:
                continue
            for _, entry in _read(path):
                if entry.number > since:
                    yield entry

    def verify(self, *, head: AuditHead | None = None) -> AuditHead:
        """Reads the whole log and compares.

        Args:
            head: An end that the log had once, kept elsewhere.

        Returns:
            The end it has now.

        Raises:
            Damaged: A line was changed, taken out, put in, moved or cut off; it says which.
        """
        known = {each.number: each for each in (self._noted(), head) if each is not None and each.number}
        last = AuditHead(number=0, hash=_NOTHING)
        for path in self._paths():
            for line, entry in _read(path):
                if entry.number != last.number + 1:
                    raise Damaged(f"in the audit log line {entry.number} stands behind {last.number}, in {path}")
                if entry.before != last.hash:
                    raise Damaged(f"in the audit log line {last.number} or {entry.number} was changed; see {path}")
                last = AuditHead(number=entry.number, hash=_hash(line))
                if entry.number in known and known[entry.number].hash != last.hash:
                    raise Damaged(f"in the audit log line {last.number} is not the one it was; see {path}")
        if known and max(known) > last.number:
            raise Damaged(f"the audit log in {self._folder} had {max(known)} lines and ends at {last.number}")
        return last

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.jsonl"))

    def _end(self) -> tuple[Path | None, AuditHead]:
        for path in reversed(self._paths()):
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(begin := max(0, size - _LONGEST_LINE))
                tail = file.read()
                whole = tail.rfind(b"\n") + 1
                if whole != len(tail):  # a power cut or a full disk in the middle of a line, which nobody was told of
                    file.truncate(begin + whole)
            if whole:
                line = tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole]
                return path, AuditHead(number=_parsed(line, path).number, hash=_hash(line))
        return None, AuditHead(number=0, hash=_NOTHING)

    def _noted(self) -> AuditHead | None:
        with self._catalog.reading() as connection:
            row = connection.execute(sa.select(tables.audit_head)).first()
        return None if row is None else AuditHead(number=row.number, hash=row.hash)


def _write(path: Path, line: bytes, *, durable: bool) -> None:
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
    try:
        written = os.write(handle, line)
        if written != len(line):  # what a disk does that is full in the middle of it
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)
    if new and durable:
        files.fsync_folder(path.parent)


def _read(path: Path) -> Iterator[tuple[bytes, AuditEntry]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # what does not is being written
                yield line, _parsed(line, path)


def _parsed(line: bytes, path: Path) -> AuditEntry:
    try:
        return AuditEntry.model_validate_json(line)
    except ValidationError as error:
        raise Damaged(f"in the audit log {path} there is a line that is none: {line[:80]!r}") from error


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
