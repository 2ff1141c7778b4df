"""A store that is not on this machine, and the copies kept here of what was read from it.

Files of a part never change, so that a copy is right for ever. It is brought whole the first time it is asked for, and
read like a file of this machine from then on; the oldest copies go when there is no room for more, and one that turns
out damaged is fetched anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from mms_sdk.errors import Damaged
from mms_sdk.storage import files
from mms_sdk.storage.stores.base import Store, Stored

PIECE_BYTES = 16 * 2**20  # of a large file, asked for at a time
_Read = TypeVar("_Read")
_AT_ONCE = 16  # requests: more than cores, since they wait for the network
_FULL = 0.9  # what is left of the room for copies when the oldest had to go


class Objects(Protocol):
    """An object store, or a file system across the network: `Store` without anything on this machine.

    Keys are whole; there are no folders but by their names. Rules and errors are those of `Store`.
    """

    @property
    def url(self) -> str:
        """Without secrets."""

    def get(self, key: str, start: int, end: int) -> tuple[bytes, int]:
        """Bytes from `start` to before `end`, or to the file's end, and the size of the whole file."""

    def put(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""

    def names(self, prefix: str) -> list[str]:
        """What stands between the prefix, which is empty or ends with `/`, and the next `/`."""

    def walk(self, prefix: str) -> Iterator[Stored]:
        """Everything that begins with the prefix, under its whole key."""

    def delete(self, keys: list[str]) -> None:
        """Removes files; those that are not there are passed over."""


class RemoteStore:
    """Objects, with copies on this machine.

    Args:
        make: Makes the objects' client; called once in every process.
        copies: A folder of this machine's own, for copies and drafts; shared by any number of processes.
        max_bytes: Room for copies.
        prefix: Where in the store; empty, or ends with `/`.
    """

    local = False

    def __init__(self, make: Callable[[], Objects], *, copies: Path, max_bytes: int, prefix: str = "") -> None:
        self._make = make
        self._copies = copies
        self._max_bytes = max_bytes
        self._prefix = prefix
        self._room = _Room(copies, max_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._make, self._copies, self._max_bytes, self._prefix)

    def __repr__(self) -> str:
        return f"<store {self.url}>"

    @property
    def url(self) -> str:
        """The URL, without secrets."""
        return f"{self._objects.url}/{self._prefix}".rstrip("/")

    @cached_property
    def _objects(self) -> Objects:
        return self._make()

    def below(self, folder: str) -> RemoteStore:
        """See `Store.below`."""
        inner = _again(self._make, self._copies, self._max_bytes, self._in(folder))
        inner.__dict__.update(_objects=self._objects, _room=self._room)
        return inner

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        return self._whole(self._prefix + key)

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""
        self._objects.create(self._prefix + key, data)

    def replace(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""
        self._objects.put(self._prefix + key, data)

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""
        self._objects.upload(self._prefix + key, file)

    def download(self, key: str, file: Path) -> None:
        """See `Store.download`."""
        pieces = self._pieces(self._prefix + key)
        first = next(pieces)  # so that there is no empty file where there is nothing
        with files.writing(file), file.open("xb") as out:
            file.chmod(files.FILE_MODE)
            for piece in chain((first,), pieces):
                out.write(piece)

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""
        return self._objects.stat(self._prefix + key)._replace(key=key)

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        return self._objects.names(self._in(folder))

    def walk(self, folder: str) -> list[Stored]:
        """See `Store.walk`."""
        prefix = self._in(folder)
        found = self._objects.walk(prefix)
        return sorted(each._replace(key=each.key[len(prefix) :]) for each in found)

    def sha256(self, key: str) -> str:
        """See `Store.sha256`; the store's bytes, not those of a copy."""
        digest = hashlib.sha256()
        for piece in self._pieces(self._prefix + key):
            digest.update(piece)
        return digest.hexdigest()

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`."""
        path = self._copies / "files" / (self._prefix + key)
        while True:
            with contextlib.suppress(FileNotFoundError):  # not here yet, or made room for others in this moment
                return path.open("rb", buffering=0)
            self._bring(self._prefix + key, path)

    def forget(self, key: str) -> bool:
        """See `Store.forget`; whoever has the copy mapped reads on."""
        (self._copies / "files" / (self._prefix + key)).unlink(missing_ok=True)
        return True

    def draft(self, folder: str) -> Path:
        """A folder among the copies."""
        return files.make_folder(self._copies / "drafts" / f"{time.time_ns()}-{os.urandom(6).hex()}")

    def keep(self, draft: Path, folder: str, *, last: str) -> None:
        """See `Store.keep`."""
        paths = [path for path in draft.rglob("*") if path.is_file() and path != draft / last]
        at_once(self._keep_one, [(path, f"{self._in(folder)}{path.relative_to(draft).as_posix()}") for path in paths])
        self._keep_one((draft / last, self._in(folder) + last))
        kept = self._copies / "files" / self._in(folder)
        files.make_folder(kept.parent)
        with contextlib.suppress(OSError):  # somebody has brought some of it already
            draft.rename(kept)
            self._room.taken(files.tree_bytes(kept))
        files.remove_tree(draft)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._objects.delete([self._prefix + key])

    def remove(self, folder: str, *, first: str) -> None:
        """See `Store.remove`."""
        prefix = self._in(folder)
        self._objects.delete([prefix + first])
        self._objects.delete([each.key for each in self._objects.walk(prefix)])
        files.remove_tree(self._copies / "files" / prefix)

    def sweep(self, before: float) -> int:
        """Drafts on this machine. What is left of uploads in parts is for the object store's own rules to remove."""
        folder = self._copies / "drafts"
        found = [path for path in folder.iterdir() if path.stat().st_mtime <= before] if folder.is_dir() else []
        for path in found:
            files.remove_tree(path)
        return len(found)

    def _in(self, folder: str) -> str:
        return f"{self._prefix}{folder}".rstrip("/") + "/" if self._prefix or folder else ""

    def _whole(self, key: str) -> bytes:
        return b"".join(self._pieces(key))

    def _pieces(self, key: str) -> Iterator[bytes]:
        first, size = self._objects.get(key, 0, PIECE_BYTES)
        yield first
        starts = range(len(first), size, PIECE_BYTES)
        yield from (self._objects.get(key, start, start + PIECE_BYTES)[0] for start in starts)

    def _bring(self, key: str, path: Path) -> None:
        self._room.make()
        files.make_folder(path.parent)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
        try:
            self.download(key.removeprefix(self._prefix), draft)
            size = draft.stat().st_size  # once it is a copy, another process may take it away to make room
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
        self._room.taken(size)

    def _keep_one(self, pair: tuple[Path, str]) -> None:
        self._objects.upload(pair[1], pair[0])


def at_once(work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Does something that waits for a network with many things side by side; results in their order."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, items))


def of_sound_copy(store: Store, key: str, read: Callable[[], _Read]) -> _Read:
    """What is read of a file; of one that was fetched anew, if this machine's copy of it turns out damaged.

    Args:
        store: Where the file lies.
        key: Which.
        read: Opens it, reads, and compares.

    Raises:
        Damaged: It is damaged where it lies.
    """
    try:
        return read()
    except Damaged:
        if not store.forget(key):
            raise
    try:
        return read()
    except Damaged as error:
        where = f"{store.url}/{key}"
        raise Damaged(f"{error.message}; it was fetched anew, so that it is {where} itself that is damaged") from error


def _again(make: Callable[[], Objects], copies: Path, max_bytes: int, prefix: str) -> RemoteStore:
    return RemoteStore(make, copies=copies, max_bytes=max_bytes, prefix=prefix)


class _Room:
    """How much the copies take; the oldest go where that is too much."""

    def __init__(self, copies: Path, max_bytes: int) -> None:
        self._folder = copies / "files"
        self._max_bytes = max_bytes
        self._bytes: int | None = None  # not counted yet
        self._lock = threading.Lock()

    def taken(self, size: int) -> None:
        with self._lock:
            if self._bytes is not None:
                self._bytes += size

    def make(self) -> None:
        with self._lock:
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._found())
            if self._bytes > self._max_bytes:
                self._bytes = self._trim()

    def _found(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                told = path.stat()
                if path.is_file():
                    found.append((told.st_mtime, told.st_size, path))
        return found

    def _trim(self) -> int:
        found = self._found()
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= self._max_bytes * _FULL:
                break
            path.unlink(missing_ok=True)  # whoever has it mapped reads on
            left -= size
        return left
