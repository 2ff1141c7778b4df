"""Pictures and recordings at addresses of the web: each fetched once into the job's folder, and read from there.

What lies there whole is not fetched again, so that a job that is tried again goes on where it stopped, and what was
looked at is what is brought in.
"""

from __future__ import annotations

import csv
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mms_sdk import settings
from mms_sdk.compute.data.bring import Tell, told
from mms_sdk.compute.data.sources.fetching import Fetcher
from mms_sdk.compute.data.sources.folders import FileEntry, printable
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import HTTP, AsPictures, AsRecordings, kept_url_problem
from mms_sdk.storage import files
from mms_sdk.told import on_one_line

_AT_ONCE = 8
_MAX_LIST_BYTES = 64 * 2**20
_MAX_LINES = 1_000_000
_Line = TypeVar("_Line")


@dataclass(frozen=True)
class _Listed:
    url: str
    label: str


def open_addresses(source: HTTP, *, spool: Path, tell: Tell) -> Collection:
    """Fetches what a list of addresses names.

    Args:
        source: The list.
        spool: A folder of the job.
        tell: Called with the progress.

    Raises:
        InvalidRequest: There is no such list, or it is none.
        NothingToIngest: Nothing could be fetched.
        DataError: All files together are larger than was asked for.
        StorageFull, NotWritable: They cannot be kept.
    """
    rejects: list[Reject] = []
    labelled, listed = _list(source, rejects)
    folder = files.make_folder(spool / "fetched")
    budget = _Budget(source.max_total_bytes)
    entries: list[FileEntry] = []
    for item, (path, reason) in told(_fetched(source, listed, folder, budget), "files fetched", len(listed), tell):
        if reason:
            rejects.append(Reject(source=item.url, reason=reason))
        else:
            entries.append(FileEntry(source=item.url, label=item.label, path=path))
    if not entries:
        first = "; ".join(f"{reject.source}: {reject.reason}" for reject in rejects[:3])
        raise NothingToIngest(
            f"a list has at least one address that can be fetched; of {len(rejects)} none can: {first}"
        )
    taken: AsPictures | AsRecordings = AsRecordings(max_seconds=source.max_seconds)
    if source.kind == "image":
        taken = AsPictures(color=source.color, max_pixels=source.max_pixels)
    return Collection(taken=taken, entries=entries, rejects=rejects, labelled=labelled)


# What is listed -------------------------------------------------------------------------------------------------


def _list(source: HTTP, rejects: list[Reject]) -> tuple[bool, list[_Listed]]:
    if source.path is None:
        labels = source.labels or ("",) * len(source.urls)
        labelled = source.labels is not None
        lines = [
            (f"address {number}", url, label)
            for number, (url, label) in enumerate(zip(source.urls, labels, strict=True))
        ]
    else:
        labelled, lines = _read(Path(source.path).expanduser())
    seen: set[str] = set()
    listed = []
    for place, url, label in lines:
        if problem := kept_url_problem(url):
            rejects.append(Reject(source=place, reason=problem))
        elif url in seen:
            rejects.append(Reject(source=url, reason="it is in the list already"))
        elif labelled and not label:
            rejects.append(Reject(source=url, reason="it has no label"))
        else:
            seen.add(url)
            listed.append(_Listed(url, label))
    return labelled, listed


def _read(path: Path) -> tuple[bool, list[tuple[str, str, str]]]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
            raise InvalidRequest(
                f"a list is a file of at most {_MAX_LIST_BYTES:,} bytes; {path} is none; check the path"
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            name = printable(path.name)
            if path.suffix.lower() != ".csv":
                lines = ((number, line.strip()) for number, line in _numbered(file, path))
                return False, [(f"{name}, line {number}", line, "") for number, line in lines if line]
            rows = csv.DictReader(file, strict=True)
            if "url" not in (rows.fieldnames or ()):
                raise InvalidRequest(
                    f"a list in CSV has a column url, and may have label; {path} has {rows.fieldnames}"
                )
            labelled = "label" in (rows.fieldnames or ())
            return labelled, [
                (f"{name}, row {number}", (row["url"] or "").strip(), (row.get("label") or "").strip())
                for number, row in _numbered(rows, path)
            ]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InvalidRequest(
            f"a list of addresses is text in UTF-8, one a line; {path} cannot be read: {error}"
        ) from error


def _numbered(lines: Iterable[_Line], path: Path) -> Iterator[tuple[int, _Line]]:
    # A line of a byte takes hundreds once it is listed.
    for number, line in enumerate(lines, 1):
        if number > _MAX_LINES:
            raise InvalidRequest(f"a list of addresses has at most {_MAX_LINES:,} lines; {path} has more; divide it")
        yield number, line


# What is fetched ------------------------------------------------------------------------------------------------


class _Budget:
    """How many bytes may still come, for all threads together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Counts what came.

        Raises:
            DataError: It is more than was allowed in all.
        """
        with self._lock:
            self._taken += size
            if self._taken > self._max_bytes:
                raise DataError(
                    f"all files of a list have at most max_total_bytes={self._max_bytes:,} together; these have more; "
                    f"raise it, or divide the list"
                )


def _fetched(
    source: HTTP, listed: list[_Listed], folder: Path, budget: _Budget
) -> Iterator[tuple[_Listed, tuple[Path, str]]]:
    # A file's path, or why there is none; in the order of the list.
    networks = settings.fetch_networks()
    fetchers = [
        Fetcher(networks=networks, timeout_s=source.timeout_s, max_bytes=source.max_bytes, kind=source.kind)
        for _ in range(min(_AT_ONCE, len(listed)))
    ]
    free: queue.SimpleQueue[Fetcher] = queue.SimpleQueue()
    for fetcher in fetchers:
        free.put(fetcher)

    def fetch(item: _Listed) -> tuple[Path, str]:
        path = folder / hashlib.blake2b(item.url.encode(), digest_size=16).hexdigest()
        fetcher = free.get()
        try:
            _keep(path, lambda begin: fetcher.fetch(item.url, begin), budget)
        except InvalidInput as error:
            return path, on_one_line(error.message)  # servers say what they like
        finally:
            free.put(fetcher)
        return path, ""

    pool = ThreadPoolExecutor(max(1, len(fetchers)), thread_name_prefix="mms-fetch")
    try:
        yield from zip(listed, pool.map(fetch, listed), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
        for fetcher in fetchers:
            fetcher.close()


def _keep(path: Path, fetch: Callable[[Callable[[], Callable[[bytes], None]]], None], budget: _Budget) -> None:
    # It has its name once it is whole and on the disk.
    if path.exists():
        budget.take(path.stat().st_size)
        return
    draft = path.with_suffix(".part")
    try:
        with files.writing(path), open(draft, "wb", opener=files.private) as out:

            def begin() -> Callable[[bytes], None]:
                out.seek(0)
                out.truncate()
                return take

            def take(piece: bytes) -> None:
                budget.take(len(piece))
                out.write(piece)

            fetch(begin)
            out.flush()
            os.fsync(out.fileno())
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
