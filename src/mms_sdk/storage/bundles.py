"""Code that travels: the files of a job in one archive, known and kept by its content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mms_sdk.errors import Damaged, InvalidRequest, NotFound, TooLarge
from mms_sdk.storage import files

MAX_BYTES = 64 * 2**20  # packed; code is small, and what is large is data
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 5000
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows; the same files make the same archive


def pack(content: Mapping[str, bytes]) -> bytes:
    """An archive of files, by their paths within it; the same bytes for the same files.

    Raises:
        InvalidRequest: A path leads out of it.
        TooLarge: They are more than a bundle holds.
    """
    if len(content) > MAX_FILES:
        raise TooLarge(f"a bundle holds {MAX_FILES:,} files; these are {len(content):,}; leave out what is no code")
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(content):
            _check_path(path)
            info = zipfile.ZipInfo(path, _EPOCH)
            info.external_attr = (stat.S_IFREG | files.FILE_MODE) << 16
            archive.writestr(info, content[path], zipfile.ZIP_DEFLATED)
    packed = whole.getvalue()
    unpacked = sum(map(len, content.values()))
    if len(packed) > MAX_BYTES or unpacked > MAX_UNPACKED_BYTES:
        raise TooLarge(
            f"a bundle holds {MAX_BYTES:,} bytes, {MAX_UNPACKED_BYTES:,} unpacked; this one has {len(packed):,} and "
            f"{unpacked:,}; leave out what is no code, and put data into a dataset"
        )
    return packed


class Bundles:
    """The bundles of a workspace, each under its SHA-256.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, packed: bytes) -> str:
        """Keeps an archive, once it is one that can be unpacked; returns its SHA-256."""
        _read(packed)
        digest = hashlib.sha256(packed).hexdigest()
        path = files.make_folder(self._folder) / f"{digest}.zip"
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another process was first, with the same bytes
                files.publish(path, packed)
        return digest

    def unpack(self, digest: str, to: Path) -> None:
        """Writes the files of a bundle below a folder.

        Raises:
            NotFound: There is no such bundle.
            Damaged: It is not what was kept.
        """
        try:
            packed = (self._folder / f"{digest}.zip").read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no bundle {digest} in {self._folder}; submit the job again") from error
        if hashlib.sha256(packed).hexdigest() != digest:
            raise Damaged(f"bundle {digest} in {self._folder} is not what was kept; submit the job again")
        for path, content in _read(packed).items():
            target = to / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def names(self, digest: str) -> list[str]:
        """Paths of the files in a bundle.

        Raises:
            NotFound: There is no such bundle.
        """
        try:
            with zipfile.ZipFile(self._folder / f"{digest}.zip") as archive:
                return archive.namelist()
        except FileNotFoundError as error:
            raise NotFound(f"no bundle {digest}; send it first, as POST /v1/bundles") from error


def _read(packed: bytes) -> dict[str, bytes]:
    # Sizes are compared before anything is unpacked, and again by `zipfile` while it is.
    if len(packed) > MAX_BYTES:
        raise TooLarge(f"a bundle holds {MAX_BYTES:,} bytes; this one has {len(packed):,}")
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_FILES or (size := sum(info.file_size for info in infos)) > MAX_UNPACKED_BYTES:
                told = f"{len(infos):,} files" if len(infos) > MAX_FILES else f"{size:,} bytes"
                raise TooLarge(f"a bundle holds {MAX_FILES:,} files and {MAX_UNPACKED_BYTES:,} bytes; this has {told}")
            for info in infos:
                _check_path(info.filename)
                if not stat.S_ISREG(info.external_attr >> 16):
                    raise InvalidRequest(f"a bundle holds plain files; {info.filename!r} is none; leave it out")
            if len({info.filename for info in infos}) != len(infos):
                raise InvalidRequest("a bundle holds each path once; this one has some twice; pack it again")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise InvalidRequest(f"a bundle is a zip archive; this is none that can be read: {error}") from error


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    plain = path and not path.startswith("/") and "\\" not in path and "\0" not in path and ":" not in path
    if not plain or ".." in parts or str(PurePosixPath(path)) != path:
        raise InvalidRequest(f"files of a bundle lie below its own folder, e.g. 'models/net.py'; got {path!r}")
