"""Callbacks: who else is told what a run logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Options = Mapping[str, Any]
Record = Mapping[str, Any]
"""`step`, `time` in seconds since 1970, and metrics by name; with `epoch` at the end of one."""


class Callback(Protocol):
    """Told of a run, in the thread that trains: what takes long holds it up. What it raises ends the run."""

    def begin(self, job: str, options: Options) -> None:
        """A run begins.

        Args:
            job: Its id.
            options: Of the trainer, as JSON.
        """

    def log(self, record: Record) -> None:
        """What the metric log gets too: running means four times a second, and the metrics of each epoch."""

    def end(self, why: str) -> None:
        """The run is over, well or not."""
