"""A run's metrics as a CSV file; `mms.loggers.CSV`."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import orjson

from mms_sdk.compute.training.callbacks import Begun, Ending, Record
from mms_sdk.compute.training.loggers.on_disk import OnDisk
from mms_sdk.compute.training.loggers.records import numbers
from mms_sdk.errors import InvalidRequest, NotWritable
from mms_sdk.storage import metric_log

_FIRST = ("step", "time", "epoch")


@dataclass
class CSV(OnDisk):
    """A file with a row for each record, and a column for each metric; empty where a record has none.

    What is not finite is `nan`, `inf` or `-inf`. Beside the file, `metrics.run.json` holds the job, the options and how
    the run ended. A run that is continued writes the file anew, with what was logged up to its checkpoint. So does
    another run: then the file is of that one, unless `{run}` is in the path. A file that is no such CSV is left alone.

    Attributes:
        path: The file, `….csv`. `{run}` stands for the id of the job that the run began as.

    Raises:
        InvalidRequest: The name does not end in `.csv`.
    """

    path: str | Path
    _names: list[str] = field(default_factory=list, init=False, repr=False)
    _file: TextIO | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if Path(self.path).suffix != ".csv":
            raise InvalidRequest(f"the name of a CSV file ends in .csv; got {str(self.path)!r}")

    def begin(self, run: Begun) -> None:
        """Writes what was logged before.

        Raises:
            InvalidRequest: The file is there and was written by somebody else.
            NotWritable: It cannot be written.
        """
        self._run, self._missed = run, None
        self._refuse_a_foreign_file()
        try:
            self._at.parent.mkdir(parents=True, exist_ok=True)
            self._tell("running", "")
            self._write_anew()
        except OSError as error:
            raise NotWritable(
                f"{self._at} cannot be written: {error.strerror}; give CSV() another path, or this user the permission"
            ) from error

    @property
    def _at(self) -> Path:
        assert self._run is not None
        return Path(str(self.path).replace("{run}", self._run.run)).expanduser()

    def _refuse_a_foreign_file(self) -> None:
        if not self._at.is_file():
            return
        with self._at.open(encoding="utf-8", errors="replace") as file:
            header = file.readline(200)
        if header and not header.startswith(",".join(_FIRST)):
            raise InvalidRequest(
                f"CSV() writes over metrics only; {self._at} begins with {header[:40]!r}; give it another path"
            )

    def _write_anew(self) -> None:
        assert self._run is not None
        self._close()
        self._names = list(_FIRST)
        for record in metric_log.records(self._run.log):
            self._names += sorted(record.keys() - set(self._names))
        draft = self._at.with_name(f".{self._at.name}.{self._run.job}")
        try:
            with draft.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(self._names)
                for record in metric_log.records(self._run.log):
                    self._row(file, record)
            os.replace(draft, self._at)
        finally:
            draft.unlink(missing_ok=True)
        self._file = self._at.open("a", newline="", encoding="utf-8")

    def _add(self, record: Record) -> None:
        if self._file is None or not record.keys() <= set(self._names):  # a name that is new makes a column
            self._write_anew()
        else:
            self._row(self._file, record)
            self._file.flush()

    def _row(self, file: TextIO, record: Record) -> None:
        row = {"step": record["step"], "time": record["time"], **numbers(record)}
        csv.writer(file).writerow([row.get(name, "") for name in self._names])

    def _tell_end(self, state: Ending, why: str) -> None:
        self._tell(state, why)

    def _tell(self, state: str, why: str) -> None:
        assert self._run is not None
        told = {"job": self._run.job, "run": self._run.run, "dataset": self._run.dataset, "state": state, "why": why}
        data = orjson.dumps({**told, "options": dict(self._run.options)}, option=orjson.OPT_INDENT_2)
        self._at.with_suffix(".run.json").write_bytes(data + b"\n")

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be flushed is in the metric log
                self._file.close()
            self._file = None
