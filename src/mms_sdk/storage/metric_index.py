"""A metric log as columns on the disk, so that a chart of ten million rows need not read a gigabyte of JSON.

It lies beside the log, is made by whoever first asks for a chart of a long one, and grows by what the log has grown.
All of it can be removed at any time.

```
metrics.columns/index.json        how far the log is in it, and which files hold how many rows of which series
metrics.columns/7-0.value         values, little-endian float64
metrics.columns/7-0.place         step and time of each
```
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mms_sdk.errors import Damaged, Unavailable
from mms_sdk.storage import files, metric_log
from mms_sdk.storage.series import Series, series_of, shown

FOLDER = "metrics.columns"
LONG_BYTES = 4 * 2**20
"""A shorter log is read as it is, in less than a tenth of a second."""
_VERSION = 1
_WAIT_S, _AGAIN_S = 5.0, 0.005
_TAIL = 64  # bytes before the end of what is in it, by which it is seen that it is still the same log
_SUFFIXES = ("value", "place")


def charted(log: Path, points: int, *, most_rows: int) -> tuple[dict[str, Series], int]:
    """The series of a log, each with at most so many rows, and the offset behind which to go on.

    Args:
        log: The metric log.
        points: Most rows of a series, from 2.
        most_rows: Most rows of all of them together; of very many series, each has fewer points.

    Raises:
        Damaged: A row of the log cannot be read.
        Unavailable: Somebody else makes the index of a long log at this moment.
    """
    if not log.is_file():
        return {}, 0
    try:
        return _charted(log, points, most_rows)
    except orjson.JSONDecodeError as error:
        raise Damaged(
            f"{log} holds a row that cannot be read: {error}; remove that line, or restore the log"
        ) from error


def _charted(log: Path, points: int, most_rows: int) -> tuple[dict[str, Series], int]:
    if log.stat().st_size <= LONG_BYTES:
        rows, end = metric_log.read(log)
        found = series_of(rows)
        return {name: shown(each, _fair(points, most_rows, len(found))) for name, each in found.items()}, end
    with _alone(files.make_folder(log.parent / FOLDER, durable=False)) as folder:
        told = _brought_up(folder, log)
        names = told["series"]
        fair = _fair(points, most_rows, len(names))
        return {name: shown(_column(folder, told, *where), fair) for name, where in names.items()}, told["offset"]


def _fair(points: int, most_rows: int, count: int) -> int:
    return max(2, min(points, most_rows // max(1, count)))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    # One process brings it up to date; the others wait, and find that it was done.
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
    try:
        until = time.monotonic() + _WAIT_S
        while not _is_taken(handle):
            if time.monotonic() > until:  # no more threads are held up by it
                raise Unavailable(f"the columns of {folder.parent} are being made; ask again in a minute")
            time.sleep(_AGAIN_S)
        yield folder
    finally:
        os.close(handle)


def _is_taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _brought_up(folder: Path, log: Path) -> dict[str, Any]:
    told = _index(folder)
    if told is None or _tail(log, told["offset"]) != told["tail"]:  # another log is there now
        told = _begun_anew(folder)
    begun = told["offset"]
    while True:
        rows, end = metric_log.read(log, told["offset"], most=metric_log.PIECE_BYTES)
        if not rows:
            break
        for name, series in series_of(rows).items():
            where = told["series"].setdefault(name, [len(told["series"]), 0])
            _append(folder, told, where, series)
        told["offset"] = end
    if told["offset"] != begun:
        told["tail"] = _tail(log, told["offset"])
        for path in folder.glob(f"{told['made']}-*"):
            files.fsync_file(path)
        # Last: what was appended and is not counted here is written over the next time.
        files.replace(folder / "index.json", orjson.dumps(told))
    return told


def _index(folder: Path) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = orjson.loads((folder / "index.json").read_bytes())
        whole = told["version"] == _VERSION and all(
            _path(folder, told, number, suffix).stat().st_size >= rows * size
            for number, rows in told["series"].values()
            for suffix, size in zip(_SUFFIXES, (8, 16), strict=True)
        )
    except (OSError, ValueError, KeyError, TypeError):  # none, or what a machine left that went down
        return None
    return told if whole else None


def _begun_anew(folder: Path) -> dict[str, Any]:
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()
    return {"version": _VERSION, "offset": 0, "tail": "", "made": os.urandom(6).hex(), "series": {}}


def _append(folder: Path, told: dict[str, Any], where: list[int], series: Series) -> None:
    number, rows = where
    place = np.stack([series.step, series.time], axis=1)
    for suffix, numbers, size in zip(_SUFFIXES, (series.value, place), (8, 16), strict=True):
        path = _path(folder, told, number, suffix)
        with files.writing(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
            with os.fdopen(handle, "wb") as file:
                file.seek(rows * size)
                file.write(numbers.astype("<f8").tobytes())
    where[1] += len(series.value)


def _column(folder: Path, told: dict[str, Any], number: int, rows: int) -> Series:
    values = np.memmap(_path(folder, told, number, "value"), "<f8", "r", shape=(rows,))
    place = np.memmap(_path(folder, told, number, "place"), "<f8", "r", shape=(rows, 2))
    return Series(place[:, 0], place[:, 1], values)


def _path(folder: Path, told: dict[str, Any], number: int, suffix: str) -> Path:
    return folder / f"{told['made']}-{number}.{suffix}"


def _tail(log: Path, offset: int) -> str:
    begin = max(0, offset - _TAIL)
    with log.open("rb") as file:
        file.seek(begin)
        return file.read(offset - begin).hex()
