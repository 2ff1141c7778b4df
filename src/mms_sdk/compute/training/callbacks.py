"""Callbacks: who else is told what a run logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Options = Mapping[str, Any]
Record = Mapping[str, Any]
"""`step`, `time` in seconds since 1970, and metrics by name; with `epoch` at the end of one."""
Ending = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run that begins, or goes on.

    Attributes:
        job: Its id.
        run: Id of the job that the run first began as; `job`, unless it continues another one.
        dataset: What it is trained on, with the snapshot's number.
        options: Of the trainer, as JSON.
        step: Steps taken before: those of the checkpoint it goes on from, or 0.
        log: Its metric log. It holds what was logged up to that checkpoint, and then each record before a callback is
            told of it.
    """

    job: str
    run: str
    dataset: str
    options: Options
    step: int
    log: Path


class Callback(Protocol):
    """Told of a run, in the thread that trains: what takes long holds it up. What it raises ends the run."""

    def begin(self, run: Begun) -> None:
        """A run begins, or goes on from a checkpoint."""

    def log(self, record: Record) -> None:
        """What the metric log gets too: running means four times a second, and the metrics of each epoch."""

    def end(self, state: Ending, why: str) -> None:
        """The run is over, well or not.

        Args:
            state: What its job is recorded as.
            why: Why it stopped; of one that failed or was cancelled, what its job says of that.
        """
