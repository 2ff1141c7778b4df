"""Files that are on the disk when the call returns, and appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from mms_sdk.errors import Damaged, NotWritable, StorageFull

FILE_MODE = 0o600
FOLDER_MODE = 0o700
PIECE_BYTES = 2**20
_DRAFT = re.compile(r"\..+\.\d+\.[0-9a-f]{12}")


_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into errors that say what to do.

    Args:
        path: What is being written; named in the message.

    Raises:
        StorageFull: The disk or quota is full.
        NotWritable: No permission, or a read-only file system.
    """
    try:
        yield
    except (StorageFull, NotWritable):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"no space left while writing {path}: {error.strerror}; nothing half-made stays. Free space there, or "
                f"use another workspace folder, and run it again"
            ) from error
        if error.errno in _REFUSED:
            raise NotWritable(
                f"{path} cannot be written: {error.strerror}; give this user write permission or use another "
                f"workspace folder (argument workspace=, or $MMS_WORKSPACE)"
            ) from error
        raise


def make_folder(path: Path, *, durable: bool = True) -> Path:
    """Makes a private folder, and private parents, if it is not there.

    Args:
        path: The folder.
        durable: Whether it is on the disk when this returns.
    """
    with writing(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            if durable:
                fsync_folder(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name", str(path))
    return path


def fsync_folder(path: Path) -> None:
    """Makes the folder's entries durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Makes a file's bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(root: Path) -> None:
    """Makes every file and folder below `root`, and `root` itself, durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync_file(Path(folder, name))
        fsync_folder(Path(folder))


def write_durable(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet; it is on disk when this returns."""
    with writing(path):
        _write_new(path, data)
        fsync_folder(path.parent)


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish(path: Path, data: bytes) -> None:
    """Creates `path` with exactly these bytes, or finds that somebody else did.

    A reader sees no file or the whole file. `link` refuses an existing name on every POSIX file system, NFS included,
    where `O_EXCL` followed by a write would show a half-written file.

    Raises:
        FileExistsError: Another process created it first.
    """
    with _draft(path, data) as draft, writing(path):
        os.link(draft, path)
        fsync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Replaces the content of `path`; a reader sees the old or the new, never a mixture."""
    with _draft(path, data) as draft, writing(path):
        os.replace(draft, path)
        fsync_folder(path.parent)


def copy(source: Path, path: Path) -> None:
    """Copies a file, in place of one at `path`; a reader sees the old or the new."""
    draft = draft_of(path)
    try:
        with writing(path):
            shutil.copyfile(source, draft)
            draft.chmod(FILE_MODE)
            fsync_file(draft)
            os.replace(draft, path)
            fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def is_below(path: str) -> bool:
    """Whether a path leads below whatever folder it is put to: names with `/` between them, none of them `..`."""
    return all(name not in ("", ".", "..") for name in path.split("/")) and "\0" not in path


def open_plain(path: Path) -> FileIO:
    """Opens a file to read, unbuffered; never one that a link leads to, or that would be waited for.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is a link, a pipe or a device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise
    else:
        file = FileIO(handle)
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return file
        file.close()
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise Damaged(f"what is stored is plain files; {path} is a link, a pipe or a device; put a copy in its place")


def is_draft(path: Path) -> bool:
    """Whether a file is, or was left behind by, a `publish` or `replace` that has not ended well."""
    return _DRAFT.fullmatch(path.name) is not None


@contextlib.contextmanager
def _draft(path: Path, data: bytes) -> Iterator[Path]:
    draft = draft_of(path)
    try:
        with writing(draft):
            _write_new(draft, data)  # its name need not be on the disk: it is about to have another one
        yield draft
    finally:
        with contextlib.suppress(OSError):  # an error on the way here says more than one while tidying
            draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """Where what will be a file is put together: a name that nobody else takes."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")


def private(path: str, flags: int) -> int:
    """An `opener` of files that only this user reads."""
    return os.open(path, flags, FILE_MODE)


def remove_tree(path: Path) -> None:
    """Removes a folder that nothing refers to; a failure to do so harms nobody."""
    shutil.rmtree(path, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_bytes(root: Path) -> int:
    """Bytes of all files below `root`."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
