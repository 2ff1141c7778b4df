"""What a dataset asks of the place where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable


class Stored(NamedTuple):
    """A file in a store.

    Attributes:
        key: Its name, relative to what was listed, parts separated by `/`. Folders that a file system keeps, empty
            ones too, are listed with a `/` at the end.
        bytes: Its size; 0 for a folder.
        modified: Unix time in seconds when it was last written, by the store's clock.
    """

    key: str
    bytes: int
    modified: float


@runtime_checkable
class Store(Protocol):
    """A tree of files that are written whole, read often, and rarely go.

    Safe from any number of threads and processes; can be pickled, and is the same place in another process. What a call
    wrote is durable when it returns, and seen at once by every later call of everybody. A reader sees a file whole or
    not at all. What a store keeps for itself while it writes is never listed.

    All calls raise `Unavailable` where the store does not answer, `NotWritable` where it refuses to be written, and
    `StorageFull` where there is no room. `mms_sdk.testing.stores` has the tests that every store passes.
    """

    @property
    def url(self) -> str:
        """What people call the place: a folder's path, or a URL without secrets."""

    @property
    def local(self) -> bool:
        """Whether its files are on this machine, where one row of many costs no more than that row."""

    def below(self, folder: str) -> Store:
        """The store of what lies in a folder."""

    def read(self, key: str) -> bytes:
        """A small file's content.

        Raises:
            FileNotFoundError: There is none.
        """

    def create(self, key: str, data: bytes) -> None:
        """Writes a file that nobody has written yet; of any number who try, one succeeds.

        Raises:
            FileExistsError: Somebody did.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Writes a file, in place of one of that name."""

    def upload(self, key: str, file: Path) -> None:
        """Copies a file of this machine here, in place of one of that name; in bounded memory."""

    def download(self, key: str, file: Path) -> None:
        """Copies a file from here to a new one of this machine; in bounded memory. It is not synced.

        Raises:
            FileNotFoundError: There is none.
        """

    def stat(self, key: str) -> Stored:
        """A file's size and age.

        Raises:
            FileNotFoundError: There is none.
        """

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted; none if it is not there."""

    def walk(self, folder: str) -> list[Stored]:
        """Everything below a folder, sorted by key; nothing if it is not there."""

    def sha256(self, key: str) -> str:
        """SHA-256 of the bytes that lie here now, in hex; in bounded memory.

        Raises:
            FileNotFoundError: There is no such file.
        """

    def open(self, key: str) -> BinaryIO:
        """A file of this machine with the content, unbuffered, open for reading.

        For files that never change: where the store is far, this may be a copy that was made long ago.

        Raises:
            FileNotFoundError: There is none.
        """

    def forget(self, key: str) -> bool:
        """Drops this machine's copy of a file, if `open` may give one; False where it gives the file itself."""

    def draft(self, folder: str) -> Path:
        """An empty folder of this machine, to fill with what `keep` will keep as `folder`."""

    def keep(self, draft: Path, folder: str, *, last: str) -> None:
        """Keeps everything in a draft; the file named `last` appears after all others."""

    def delete(self, key: str) -> None:
        """Removes a file, if it is there."""

    def remove(self, folder: str, *, first: str) -> None:
        """Removes a folder with everything in it; the file named `first` goes before all others."""

    def sweep(self, before: float) -> int:
        """Removes what killed writers left of the store's own, if it is older; returns how many things."""
