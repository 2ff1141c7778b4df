"""Code that travels: the files of a job in one archive, known and kept by its content."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from mms_sdk.errors import Damaged, InvalidRequest, MmsError, NotFound, TooLarge
from mms_sdk.storage import files
from mms_sdk.storage.paths import check_path

MAX_BYTES = 64 * 2**20  # packed; code is small, and what is large is data
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 5000
_ENTRY = b"PK\1\2"  # begins each file's entry in the list at the end of a zip archive
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows; the same files make the same archive


def pack(content: Mapping[str, bytes]) -> bytes:
    """An archive of files, by their paths within it; the same bytes for the same files.

    Raises:
        InvalidRequest: A path leads out of it, or is no name of a file everywhere.
        TooLarge: They are more than a bundle holds.
    """
    if len(content) > MAX_FILES:
        raise TooLarge(f"a bundle holds {MAX_FILES:,} files; these are {len(content):,}; leave out what is no code")
    _check_paths(content)
    unpacked = sum(map(len, content.values()))
    if unpacked > MAX_UNPACKED_BYTES:
        raise _too_large(f"{MAX_UNPACKED_BYTES:,} bytes unpacked", unpacked)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(content):
            info = zipfile.ZipInfo(path, _EPOCH)
            info.external_attr = (stat.S_IFREG | files.FILE_MODE) << 16
            archive.writestr(info, content[path], zipfile.ZIP_DEFLATED)
    packed = whole.getvalue()
    if len(packed) > MAX_BYTES:
        raise _too_large(f"{MAX_BYTES:,} bytes", len(packed))
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
        with self._locked(fcntl.LOCK_SH):
            if path.exists():
                if files.sha256_file(path) != digest:
                    files.replace(path, packed)  # it was damaged since
                else:
                    os.utime(path)  # it is as if it had come now: see `remove_unused`
            else:
                with contextlib.suppress(FileExistsError):  # another process was first, with the same bytes
                    files.publish(path, packed)
        return digest

    def unpack(self, digest: str, to: Path) -> None:
        """Writes the files of a bundle below a folder.

        Raises:
            NotFound: There is no such bundle.
            Damaged: It is not what was kept.
        """
        for path, content in _read(self._kept(digest)).items():
            target = to / path
            # What an attempt runs need not outlive a machine that goes down.
            files.make_folder(target.parent, durable=False)
            with files.writing(target), open(target, "wb", opener=files.private) as file:
                file.write(content)

    def names(self, digest: str) -> list[str]:
        """Paths of the files in a bundle, which is kept for as long from now on as one that has just come.

        Raises:
            NotFound: There is no such bundle.
            Damaged: It is not what was kept.
        """
        with self._locked(fcntl.LOCK_SH), zipfile.ZipFile(io.BytesIO(self._kept(digest))) as archive:
            os.utime(self._folder / f"{digest}.zip")
            return archive.namelist()

    def remove_unused(self, used: AbstractSet[str], *, before: float, dry_run: bool) -> list[int]:
        """Removes bundles that no job names, and what killed writers left.

        One that came, or was looked at, a short while ago may be about to be named by a job: it stays.

        Args:
            used: SHA-256 of those that stay.
            before: Since when nobody may have touched one, in seconds since 1970.
            dry_run: Only look.

        Returns:
            The sizes of those that are gone.
        """
        gone = []
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):
                seen = path.lstat()
                ours = files.is_draft(path) or (path.suffix == ".zip" and path.stem not in used)
                if ours and seen.st_mtime <= before:
                    if not dry_run:
                        path.unlink()
                    gone.append(seen.st_size)
        return gone

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        # Shared by all who bring or name a bundle; alone, whoever removes one looks how old it is first.
        try:
            lock = os.open(self._folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, files.FILE_MODE)
        except FileNotFoundError:  # there is no workspace, and nothing was ever kept
            yield
            return
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    def _kept(self, digest: str) -> bytes:
        try:
            packed = (self._folder / f"{digest}.zip").read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                f"no bundle {digest} in {self._folder}; submit the job again, or send it first, as POST /v1/bundles"
            ) from error
        if hashlib.sha256(packed).hexdigest() != digest:
            raise Damaged(f"bundle {digest} in {self._folder} is not what was kept; submit the job again")
        return packed


def _read(packed: bytes) -> dict[str, bytes]:
    # Nothing is believed of what an archive says of itself, and no more is unpacked at a time than it says.
    if len(packed) > MAX_BYTES:
        raise _too_large(f"{MAX_BYTES:,} bytes", len(packed))
    if (
        count := packed.count(_ENTRY)
    ) > 2 * MAX_FILES:  # `zipfile` would make an object of each before they are counted
        raise _too_large(f"{MAX_FILES:,} files", count)
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_FILES:
                raise _too_large(f"{MAX_FILES:,} files", len(infos))
            if (size := sum(info.file_size for info in infos)) > MAX_UNPACKED_BYTES:
                raise _too_large(f"{MAX_UNPACKED_BYTES:,} bytes unpacked", size)
            for info in infos:
                _check_kind(info)
            _check_paths([info.orig_filename for info in infos])
            return {info.filename: _content(archive, info) for info in infos}
    except MmsError:
        raise
    except (zipfile.BadZipFile, ValueError, LookupError, RuntimeError, EOFError, struct.error, zlib.error) as error:
        raise InvalidRequest(f"a bundle is a zip archive; this is none that can be read: {error}") from error


def _check_kind(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 of archives that say only what may be done with a file
    if kind not in (0, stat.S_IFREG) or info.filename.endswith("/"):
        raise InvalidRequest(
            f"a bundle holds plain files, without entries of folders; {info.filename!r} is none; leave it out, as "
            f"`zip -D` leaves out folders"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of the others, Python unpacks all that there is, however much it becomes.
        raise InvalidRequest(
            f"files of a bundle are stored or deflated; {info.filename!r} is packed otherwise; pack it again"
        )


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        content = file.read(info.file_size)
        left = file.read(1)  # compares the checksum, too
    if left or len(content) != info.file_size:
        raise InvalidRequest(f"a bundle says how large its files are; {info.filename!r} is not; pack it again")
    return content


def _check_paths(paths: Iterable[str]) -> None:
    found: set[str] = set()
    for path in paths:
        check_path(path, of="a bundle")
        if path in found:
            raise InvalidRequest(f"a bundle holds each path once; {path!r} is there twice; pack it again")
        found.add(path)
    for path in found:
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in found:
                raise InvalidRequest(f"what lies in a folder has no file for it; {path!r} and {above!r} are both there")


def _too_large(limit: str, seen: int) -> TooLarge:
    return TooLarge(
        f"a bundle holds at most {limit}; this one has {seen:,}; leave out what is no code (.mmsignore) and put "
        f"data into a dataset"
    )
