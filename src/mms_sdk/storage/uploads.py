"""Uploads: files on their way in from elsewhere, piece by piece, until something is made of them.

```
uploads/ID/upload.json     what it is called, and when it was begun
uploads/ID/files/PATH      files that are whole
uploads/ID/partial/PATH    files of which the beginning is there
uploads/ID/complete        nothing is added any more, and all of it is on the disk
```
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson

from mms_sdk.errors import Conflict, InvalidRequest, NotFound
from mms_sdk.schema.upload import PREFIX, Upload, UploadedFile
from mms_sdk.storage import files
from mms_sdk.storage.ids import is_id, new_id, now
from mms_sdk.storage.paths import check_path

KEPT_S = 7 * 86400.0
"""How long an upload stays to which nothing is added."""
_TOLD, _FILES, _PARTIAL, _COMPLETE = "upload.json", "files", "partial", "complete"


class Uploads:
    """The uploads of a workspace.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, name: str) -> Upload:
        """Begins one, and removes those that have expired.

        Args:
            name: What the file, or the folder of them, is called.
        """
        if "/" in check_path(name, of="an upload"):
            raise InvalidRequest(f"an upload is called as its file or folder is, without a path; got {name[:200]!r}")
        for upload in self._ids():
            with contextlib.suppress(FileNotFoundError, NotFound):
                if self._expires(self._folder / upload) < time.time():
                    self.remove(upload)
        upload = new_id()
        folder = files.make_folder(self._folder / upload)
        files.publish(folder / _TOLD, orjson.dumps({"name": name, "created_at": now()}))
        return self.get(upload)

    def list(self) -> list[Upload]:
        """All of them, the oldest first."""
        found = []
        for upload in self._ids():
            with contextlib.suppress(NotFound, FileNotFoundError):  # it is being made, or removed, in this moment
                found.append(self.get(upload))
        return found

    def get(self, upload: str) -> Upload:
        """What is there of one.

        Raises:
            NotFound: There is none of that id.
        """
        folder = self._of(upload)
        told = orjson.loads((folder / _TOLD).read_bytes())
        there = [entry.stat().st_size for entry in _plain(folder / _FILES)]
        ends = datetime.fromtimestamp(self._expires(folder), UTC)
        return Upload(
            id=upload,
            name=told["name"],
            complete=(folder / _COMPLETE).exists(),
            files=len(there),
            bytes=sum(there),
            created_at=told["created_at"],
            expires_at=ends.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )

    def file(self, upload: str, path: str) -> UploadedFile:
        """How much of a file is there; nothing of one that was not begun.

        Raises:
            NotFound: There is no such upload.
            InvalidRequest: It leads elsewhere, or to a folder.
        """
        folder = self._of(upload)
        check_path(path, of="an upload")
        with _blocked_by_files(path):
            for kept in (_FILES, _PARTIAL):
                with contextlib.suppress(FileNotFoundError):
                    return UploadedFile(path=path, bytes=_bytes(folder / kept / path), complete=kept == _FILES)
        return UploadedFile(path=path, bytes=0, complete=False)

    def add(self, upload: str, path: str, content: bytes, *, offset: int, digest: bytes, whole: bytes | None) -> int:
        """Adds a piece to the end of a file; of what was cut off, a beginning may stay, which is asked for by `file`.

        Args:
            upload: Which.
            path: Of the file, within it; begins with the upload's name.
            content: The piece.
            offset: Where it begins in the file.
            digest: SHA-256 of the piece.
            whole: SHA-256 of the whole file, which this is the last piece of; None if more follows.

        Returns:
            How many bytes of the file are there.

        Raises:
            NotFound: There is no such upload.
            Conflict: The file does not end where the piece begins, or nothing is added any more.
            InvalidRequest: The piece, or the file, is not what was sent; or a path that leads elsewhere.
            StorageFull: The disk is full.
        """
        folder = self._of(upload)
        self._check(folder, path)
        if hashlib.sha256(content).digest() != digest:
            raise InvalidRequest(f"a piece is what its Content-Digest says; this one of {path!r} is not; send it again")
        draft = folder / _PARTIAL / path
        with _blocked_by_files(path):
            self._begins_where_it_ends(upload, path, offset)
            files.make_folder(draft.parent, durable=False)
            with files.writing(draft), open(draft, "ab", opener=files.private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # of two who send the same piece, one is second
                self._begins_where_it_ends(upload, path, offset)
                file.write(content)
                file.flush()
                os.utime(folder / _TOLD)
                if whole is not None:
                    self._end(folder, path, content if not offset else None, whole)
        return offset + len(content)

    def complete(self, upload: str) -> Upload:
        """Says that nothing will be added; all of it is on the disk once this returns.

        Raises:
            NotFound: There is no such upload.
            Conflict: A file of it is not whole.
        """
        folder = self._of(upload)
        if not (folder / _COMPLETE).exists():
            if left := next(_plain(folder / _PARTIAL), None):
                path = Path(left.path).relative_to(folder / _PARTIAL).as_posix()
                raise Conflict(f"an upload is complete once its files are; {path!r} is not whole; send the rest of it")
            if not next(_plain(folder / _FILES), None):
                raise Conflict(f"an upload has files; {upload} has none yet; send them first")
            os.sync()  # one for all files, of which there may be a million
            with contextlib.suppress(FileExistsError):
                files.publish(folder / _COMPLETE, b"")
        return self.get(upload)

    def remove(self, upload: str) -> None:
        """Removes one, whatever there is of it.

        Raises:
            NotFound: There is no such upload.
        """
        folder = self._of(upload)
        (folder / _TOLD).unlink(missing_ok=True)  # first, so that there is none of which half is gone
        files.remove_tree(folder)

    def resolve(self, path: str) -> Path:
        """Where the files lie of an upload that the path of a source names.

        Args:
            path: Such as `upload:ID/photos`, or below.

        Raises:
            NotFound: There is no such upload.
            Conflict: It is not complete.
        """
        upload, _, below = path.removeprefix(PREFIX).partition("/")
        folder = self._of(upload)
        if below:
            check_path(below, of="an upload")
        if not (folder / _COMPLETE).exists():
            raise Conflict(f"what is read of an upload is complete; {upload} is not yet; send the rest of its files")
        os.utime(folder / _TOLD)  # whoever reads it may wait for their turn
        return folder / _FILES / (below or self.get(upload).name)

    def _ids(self) -> Sequence[str]:
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def _expires(self, folder: Path) -> float:
        return (folder / _TOLD).stat().st_mtime + KEPT_S

    def _of(self, upload: str) -> Path:
        folder = self._folder / upload
        if not is_id(upload) or not (folder / _TOLD).exists():
            raise NotFound(
                f"no upload {upload[:60]!r}; they are removed {KEPT_S / 86400:.0f} days after the last piece; send it "
                f"again"
            )
        return folder

    def _check(self, folder: Path, path: str) -> None:
        name = orjson.loads((folder / _TOLD).read_bytes())["name"]
        if check_path(path, of="an upload").partition("/")[0] != name:
            raise InvalidRequest(f"files of an upload lie below what it is called, here {name!r}; got {path[:200]!r}")
        if (folder / _COMPLETE).exists():
            raise Conflict(f"nothing is added to an upload that is complete; {folder.name} is; begin another")

    def _begins_where_it_ends(self, upload: str, path: str, offset: int) -> None:
        there = self.file(upload, path)
        if there.bytes != offset or there.complete:
            whole = ", and is whole" if there.complete else ""
            raise Conflict(
                f"a piece begins where the file ends; {path!r} has {there.bytes:,} bytes{whole}, and the piece begins "
                f"at {offset:,}; ask how much is there, and go on from there"
            )

    def _end(self, folder: Path, path: str, content: bytes | None, whole: bytes) -> None:
        draft, kept = folder / _PARTIAL / path, folder / _FILES / path
        found = hashlib.sha256(content).hexdigest() if content is not None else files.sha256_file(draft)
        if found != whole.hex():
            draft.unlink()
            raise InvalidRequest(
                f"a file is what its Repr-Digest says; {path!r} is not: it changed while it was sent; send it again"
            )
        files.make_folder(kept.parent, durable=False)
        draft.rename(kept)


@contextlib.contextmanager
def _blocked_by_files(path: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InvalidRequest(f"what lies in a folder has no file for it; {path!r} does, or is one itself") from error


def _bytes(path: Path) -> int:
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return found.st_size


def _plain(folder: Path) -> Iterator[os.DirEntry[str]]:
    pending = [str(folder)]
    while pending:
        with contextlib.suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry
