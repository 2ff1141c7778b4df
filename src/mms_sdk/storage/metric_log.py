"""Metrics of one attempt: append-only lines of JSON, read from any byte offset while they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.storage import files


class MetricLog:
    """Writes `{"step": …, "time": …, name: value, …}` lines.

    Args:
        path: The file; continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        with files.writing(path):
            self._file = path.open("ab", buffering=0)
            self._drop_half_a_line(path)
        self.path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line; a single `write` call, so that readers never see half of it."""
        with files.writing(self.path):
            self._file.write(orjson.dumps({key: _plain(value) for key, value in values.items()}) + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _drop_half_a_line(self, path: Path) -> None:
        # A full disk or a kill may have cut the last line short; what is appended to it would be lost as well.
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            self._file.truncate(whole)


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads whole lines from a byte offset.

    Returns:
        The lines, and the offset to go on from.
    """
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [orjson.loads(line) for line in whole.splitlines()], offset + len(whole)


def _plain(value: Any) -> Any:
    # JSON has no NaN; a metric that became one must still be seen.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
