"""Uploads: files of this machine, sent to where the workspace is."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mms_sdk.client.api import Api
from mms_sdk.client.tables import Table
from mms_sdk.errors import Conflict, InvalidRequest, Overloaded, Unavailable
from mms_sdk.schema.upload import Upload as UploadRecord
from mms_sdk.schema.upload import UploadedFile

PIECE_BYTES = 8 * 2**20
_AT_ONCE = 4
_AHEAD = 256  # files whose names are read before those in front of them were sent
_AWAY_S = 60.0  # a server that is restarted or replaced is back by then
_AGAIN_S = 0.5


class Upload(os.PathLike[str]):
    """Files that were sent to the workspace; a source takes it in place of a path.

    Attributes:
        id: By which it is found again.
        path: What sources name it by.
        files: How many there are.
        bytes: Of all of them.
    """

    def __init__(self, api: Api, record: UploadRecord) -> None:
        self._api = api
        self._record = record
        self.id = record.id
        self.path = record.path
        self.files = record.files
        self.bytes = record.bytes

    def __repr__(self) -> str:
        state = "complete" if self._record.complete else "not complete"
        return f"<upload {self.path}: {self.files:,} files of {self.bytes:,} bytes, {state}>"

    def __fspath__(self) -> str:
        return self.path

    def remove(self) -> None:
        """Removes it; by itself it goes a week after the last piece.

        Raises:
            NotFound: It is gone.
        """
        self._api.delete(f"/v1/uploads/{self.id}")


class Uploads:
    """The uploads of a workspace."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self) -> Table[Upload]:
        """All that are there, the oldest first."""
        found = self._api.get("/v1/uploads", list[UploadRecord])
        rows = [_row(each) for each in found]
        return Table([Upload(self._api, each) for each in found], title="uploads", rows=rows)

    def send(self, path: str | Path, *, resume: str | None = None) -> Upload:
        """Sends a file, or a folder with all that is in it, to where the workspace is.

        Each piece goes with its SHA-256 and each file with that of the whole. A server that is away for less than a
        minute is waited for. What was sent is on the server's disk once this returns.

        Args:
            path: Which. Of links, what they lead to is sent, but for those to folders.
            resume: The id of an upload of the same path that was cut off: what is there of it is not sent again.

        Returns:
            What sources take in place of a path: `mms.ImageFolder(ws.uploads.send("photos/"))`.

        Raises:
            InvalidRequest: There is no such file or folder, or nothing in it; or a file changes meanwhile.
            NotFound: There is no upload to resume.
            Unavailable: The server was away for a minute. The message has the id to resume.
            StorageFull: Its disk is full; likewise.
        """
        root = Path(path).expanduser().absolute()
        if not root.exists():
            raise InvalidRequest(f"what is sent is a file or a folder of this machine; there is no {str(path)!r}")
        record = self._begun(root, resume)
        try:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mms-upload") as threads:
                found = _files(root)
                while some := list(islice(found, _AHEAD)):
                    list(threads.map(lambda each: self._send(record.id, *each, look=resume is not None), some))
            return Upload(self._api, self._api.send("POST", f"/v1/uploads/{record.id}:complete", UploadRecord))
        except BaseException as error:
            error.add_note(f"what was sent is kept for a week; go on with ws.uploads.send(..., resume={record.id!r})")
            raise

    def _begun(self, root: Path, resume: str | None) -> UploadRecord:
        if resume is None:
            return self._api.send("POST", "/v1/uploads", UploadRecord, {"name": root.name})
        record = self._api.get(f"/v1/uploads/{quote(resume, safe='')}", UploadRecord)
        if record.name != root.name:
            raise InvalidRequest(
                f"an upload is resumed from the path it began with, {record.name!r}; got {root.name!r}"
            )
        return record

    def _send(self, upload: str, name: str, path: Path, *, look: bool) -> None:
        # The whole is read anew for its digest: a file of which half was sent yesterday may have changed.
        url = f"/v1/uploads/{upload}/files/{quote(name)}"
        there = self._api.get(url, UploadedFile) if look else UploadedFile(path=name, bytes=0, complete=False)
        if there.complete:
            return
        offset, whole = there.bytes, hashlib.sha256()
        with path.open("rb") as file:
            while whole_left := offset - file.tell():
                whole.update(file.read(min(whole_left, PIECE_BYTES)) or _ended(path))
            while True:
                piece = file.read(PIECE_BYTES)
                whole.update(piece)
                last = file.tell() >= os.fstat(file.fileno()).st_size
                offset = self._put(url, piece, offset, whole.digest() if last else None)
                if last:
                    return

    def _put(self, url: str, piece: bytes, offset: int, whole: bytes | None) -> int:
        headers = {"content-type": "application/octet-stream", "content-digest": _told(hashlib.sha256(piece).digest())}
        if whole is not None:
            headers["repr-digest"] = _told(whole)
        until, end = time.monotonic() + _AWAY_S, offset + len(piece)
        while True:
            try:
                return self._api.send_bytes("PUT", url, piece, UploadedFile, headers=headers, offset=offset).bytes
            except Conflict:  # it, or its beginning, is there: the answer was lost, or the server ended in its middle
                there = self._api.get(url, UploadedFile)
                if there.complete and there.bytes == end:
                    return end
                if not offset < there.bytes <= end:
                    raise
                piece, offset = piece[there.bytes - offset :], there.bytes
                headers["content-digest"] = _told(hashlib.sha256(piece).digest())
            except (Unavailable, Overloaded):
                if time.monotonic() > until:
                    raise
                time.sleep(_AGAIN_S)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    # With their names within the upload.
    if root.is_file():
        yield root.name, root
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file():
                yield path.relative_to(root.parent).as_posix(), path


def _ended(path: Path) -> bytes:
    raise InvalidRequest(f"a file is not changed while it is sent; {str(path)!r} has become shorter; send it again")


def _told(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _row(each: UploadRecord) -> dict[str, Any]:
    state = "complete" if each.complete else "not complete"
    return {"id": each.id, "name": each.name, "files": each.files, "bytes": each.bytes, "state": state}
