"""Watching a folder: what has settled in it comes in, and a file that is being copied does not."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mms_sdk.compute.data.sources.files import open_files
from mms_sdk.compute.data.sources.folders import FileEntry, open_folder
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.compute.data.sources.tables import files_of, open_table
from mms_sdk.errors import InvalidRequest, MmsError, NothingToIngest
from mms_sdk.schema.sources import (
    CSV,
    JSONL,
    Arrow,
    AudioFolder,
    Files,
    ImageFolder,
    Parquet,
    Source,
    Union,
    VideoFolder,
)
from mms_sdk.told import on_its_lines

MAX_PAUSE_S = 300.0
_ON_ITS_WAY = re.compile(r"\..*|.*\.(part|partial|filepart|crdownload|download|tmp)", re.IGNORECASE)
Stamp = tuple[int, int]
"""Bytes of a file, and when it was last written to by the clock of its disk."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often a folder is looked at.

    Attributes:
        every_s: Seconds between two looks.
        settle_s: Seconds for which size and time of a file must be as they are before it is taken.
    """

    every_s: float = 2.0
    settle_s: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.every_s < float("inf") and 0 <= self.settle_s < float("inf")):
            raise InvalidRequest(
                f"a folder is looked at every so many seconds, more than 0, and a file settles within 0 or more; got "
                f"every_s={self.every_s}, settle_s={self.settle_s}"
            )

    def pause_s(self, failures: int) -> float:
        """Until the next look, after so many that failed in a row."""
        return min(self.every_s * 2.0 ** min(failures, 30), max(MAX_PAUSE_S, self.every_s))


@dataclass(kw_only=True)
class Settling:
    """Which files have stayed as they are. It asks no wall clock: those are set, and differ from a file server's.

    Attributes:
        settle_s: For how long.
    """

    settle_s: float
    _seen: dict[Path, tuple[Stamp, float]] = field(default_factory=dict)

    def look(self, stamps: dict[Path, Stamp], at: float) -> set[Path]:
        """Those that have, as of a look.

        Args:
            stamps: All files that are there.
            at: When, by a clock that only runs.
        """
        self._seen = {
            path: self._seen[path] if path in self._seen and self._seen[path][0] == stamp else (stamp, at)
            for path, stamp in stamps.items()
        }
        return {path for path, (_, since) in self._seen.items() if at - since >= self.settle_s}


def watch(
    source: Source | Union,
    bring: Callable[[Callable[[Path], Collection | Table]], str],
    *,
    pace: Pace,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Brings in what is new in a folder, whenever something has settled there, until told to stop.

    A round that fails, for a file that does not fit, a full disk or a folder that is away, is told and tried again
    after a pause that doubles up to five minutes.

    Args:
        source: The folder.
        bring: Brings in what the function that it is given opens, given a folder for what can be read only once, and
            tells what came of it.
        pace: How often it looks, and how long a file must have stayed as it is.
        say: Told about each round that brought or failed something.
        stop: Ends it, at the latest when the round that goes on is done.

    Raises:
        InvalidRequest: There is no such folder to begin with, or what no waiting mends.
    """
    folder = Folder(source, settle_s=pace.settle_s)
    folder.files()
    failures, waited = 0, ""
    while not stop.is_set():
        try:
            if (told := folder.round(bring)) is not None:
                say(on_its_lines(told))
            elif folder.empty and folder.empty != waited:
                say(on_its_lines(f"waiting for files: {folder.empty}"))
            failures, waited = 0, folder.empty
        except InvalidRequest:
            raise
        except (MmsError, OSError) as error:
            failures += 1
            reason, pause_s = on_its_lines(str(error)), pace.pause_s(failures)
            say(f"nothing came in this time: {reason}; it is tried again in {pause_s:g} s")
        stop.wait(pace.pause_s(failures))


class Folder:
    """A folder that is watched, and what of it came in.

    Args:
        source: The folder.
        settle_s: How long a file must have stayed as it is.

    Attributes:
        empty: Why no file of it can come in, if that is so.
    """

    def __init__(self, source: Source | Union, *, settle_s: float) -> None:
        self.empty = ""
        self._source = source
        self._settling = Settling(settle_s=settle_s)
        self._taken: dict[Path, Stamp] = {}

    def files(self) -> Iterable[Path]:
        """What is in it but for files that are on their way, going by their names.

        Raises:
            InvalidRequest: It is no folder of files.
        """
        self.empty = ""
        try:
            found = self._list()
        except NothingToIngest as error:  # so far
            self.empty = error.message
            return []
        return [path for path in found if not _ON_ITS_WAY.fullmatch(path.name)]

    def round(self, bring: Callable[[Callable[[Path], Collection | Table]], str]) -> str | None:
        """Brings in what has settled since the last one; None if there is nothing. See `watch`."""
        stamps = _stamps(self._there())
        settled = self._settling.look(stamps, time.monotonic())
        self._taken = {path: stamp for path, stamp in self._taken.items() if path in stamps}
        fresh = {path for path in settled if self._taken.get(path) != stamps[path]}
        if not fresh:
            return None
        told = bring(lambda spool: self._open(settled, fresh, spool))
        after = _stamps(fresh)
        # What changed while it was read is looked at again once it has settled.
        self._taken |= {path: stamp for path, stamp in after.items() if stamp == stamps[path]}
        return told

    def _there(self) -> Iterable[Path]:
        try:
            return self.files()
        except InvalidRequest as error:  # it was there when this began
            raise OSError(error.message) from error

    def _list(self) -> Iterable[Path]:
        if isinstance(self._source, CSV | JSONL | Parquet | Arrow):
            return [file.path for file in files_of(self._source)]
        return [entry.path for entry in self._samples().entries if isinstance(entry, FileEntry)]

    def _open(self, settled: set[Path], fresh: set[Path], spool: Path) -> Collection | Table:
        if isinstance(self._source, CSV | JSONL | Parquet | Arrow):
            # All files of a table: a column's type is the one that fits all.
            return open_table(self._source, spool=spool, only=settled)
        samples = self._samples()
        return replace(
            samples, entries=[each for each in samples.entries if isinstance(each, FileEntry) and each.path in fresh]
        )

    def _samples(self) -> Collection:
        if isinstance(self._source, ImageFolder | AudioFolder | VideoFolder):
            return open_folder(self._source)
        if isinstance(self._source, Files):
            return open_files(self._source)
        raise InvalidRequest(
            f"what is watched is a folder of pictures, recordings or clips, files by a pattern, or files of a table; "
            f"got {type(self._source).__name__}; ingest it"
        )


def _stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    found = {}
    for path in paths:
        try:
            told = path.stat()
        except OSError:  # it went meanwhile
            continue
        found[path] = told.st_size, told.st_mtime_ns
    return found
