"""A folder as a store: of this machine's disk, or of a file system on the network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mms_sdk.storage import files
from mms_sdk.storage.stores.base import Stored

_GONE = ".gone"


@dataclass(frozen=True)
class LocalStore:
    """A folder; made when something is written to it.

    Whole files appear by `link` and `rename`, which POSIX file systems, NFS included, do for one of several at once.
    """

    folder: Path

    local = True

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def below(self, folder: str) -> LocalStore:
        """A folder in it."""
        return LocalStore(self.folder / folder)

    def read(self, key: str) -> bytes:
        """See `Store.read`."""
        with self.open(key) as file:
            return file.read()

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""
        path = self.folder / key
        files.make_folder(path.parent)
        files.publish(path, data)

    def replace(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""
        path = self.folder / key
        files.make_folder(path.parent)
        files.replace(path, data)

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""
        path = self.folder / key
        files.make_folder(path.parent)
        files.copy(file, path)

    def download(self, key: str, file: Path) -> None:
        """See `Store.download`."""
        source = self.folder / key
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not there")
        with files.open_plain(source) as content, files.writing(file), file.open("xb") as out:
            file.chmod(files.FILE_MODE)
            shutil.copyfileobj(content, out, files.PIECE_BYTES)

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""
        path = self.folder / key
        told = path.stat()
        return Stored(key, 0 if path.is_dir() else told.st_size, told.st_mtime)

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        try:
            return sorted(name for name in os.listdir(self.folder / folder) if not _is_own(name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> list[Stored]:
        """See `Store.walk`."""
        return sorted(_walk(str(self.folder / folder), ""))

    def sha256(self, key: str) -> str:
        """See `Store.sha256`."""
        return files.sha256_file(self.folder / key)

    def open(self, key: str) -> BinaryIO:
        """See `Store.open`."""
        return files.open_plain(self.folder / key)

    def forget(self, key: str) -> bool:
        """There are no copies."""
        return False

    def draft(self, folder: str) -> Path:
        """The folder itself: what is written there need not be copied."""
        return files.make_folder(self.folder / folder)

    def keep(self, draft: Path, folder: str, *, last: str) -> None:
        """Makes the folder's name durable; whoever writes `last` into it does so after all others."""
        with files.writing(draft):
            files.fsync_folder(draft.parent)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self.folder / key
        with files.writing(path):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                files.fsync_folder(path.parent)

    def remove(self, folder: str, *, first: str) -> None:
        """Under another name first, which takes all files away at once."""
        path = self.folder / folder
        doomed = path.with_name(f".{path.name}{_GONE}")
        with files.writing(path):
            path.rename(doomed)
            files.fsync_folder(path.parent)
            files.remove_tree(doomed)

    def sweep(self, before: float) -> int:
        """Drafts of single files, and folders whose removal was cut short."""
        found = 0
        for path in _own(self.folder):
            if path.name.endswith(_GONE):
                files.remove_tree(path)
            elif path.stat().st_mtime <= before:
                path.unlink(missing_ok=True)
                found += 1
        return found


def _walk(folder: str, prefix: str) -> Iterator[Stored]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not _is_own(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        try:
            told = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it went in this moment
            continue
        if entry.is_dir(follow_symlinks=False):
            yield Stored(f"{prefix}{entry.name}/", 0, told.st_mtime)
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            yield Stored(prefix + entry.name, told.st_size, told.st_mtime)


def _own(folder: Path) -> Iterator[Path]:
    # They lie beside what they are about, at most one folder down; parts are not entered.
    for name in os.listdir(folder):
        if _is_own(name):
            yield folder / name
        elif (folder / name).is_dir():
            yield from (folder / name / each for each in os.listdir(folder / name) if _is_own(each))


def _is_own(name: str) -> bool:
    return name.startswith(".") and (name.endswith(_GONE) or files.is_draft(Path(name)))
