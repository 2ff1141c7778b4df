"""What loggers that write files have in common: a full disk holds no run up, and is made good when there is room."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from mms_sdk.compute.training.callbacks import Begun, Ending, Record

_log = logging.getLogger("mms.training")


@dataclass
class OnDisk(ABC):
    """Writes each record as it comes; after one that could not be written all of them anew, from the metric log."""

    _run: Begun | None = field(default=None, init=False, repr=False)
    _missed: OSError | None = field(default=None, init=False, repr=False)

    def log(self, record: Record) -> None:
        """Writes a record; where that fails, a warning says so once, and the end of an epoch tries again."""
        if self._missed and "epoch" not in record:
            return
        try:
            if self._missed:
                self._write_anew()
            else:
                self._add(record)
            self._missed = None
        except OSError as error:
            if not self._missed:
                _log.warning("%s cannot be written (%s); the run goes on, and its own log is whole", self._at, error)
            self._missed = error

    def end(self, state: Ending, why: str) -> None:
        """Writes what could not be written before, and how the run ended."""
        try:
            if self._missed:
                self._write_anew()
            self._tell_end(state, why)
        except OSError as error:
            _log.warning("%s lacks the last of the run (%s); job.log_to(…) writes it later", self._at, error)
        self._close()

    @property
    @abstractmethod
    def _at(self) -> Path:
        """The file or folder."""

    @abstractmethod
    def _write_anew(self) -> None:
        """Writes all that the metric log holds, which has each record before a callback is told of it."""

    @abstractmethod
    def _add(self, record: Record) -> None:
        """Writes one record behind the others."""

    @abstractmethod
    def _tell_end(self, state: Ending, why: str) -> None:
        """Writes how the run ended."""

    @abstractmethod
    def _close(self) -> None:
        """Closes what is open, whatever could not be written."""
