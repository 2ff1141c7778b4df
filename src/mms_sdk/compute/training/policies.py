"""Decisions as small objects: when to stop, when to save, what is best.

They look at the history of finished epochs and nothing else, so that a continued run decides as an unbroken one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.tuning import better_way

History = Sequence[Mapping[str, float]]
"""Metrics of each finished epoch, e.g. `{"train/loss": …, "val/loss": …, "val/accuracy": …}`."""

_UNITS_S = {"s": 1.0, "min": 60.0, "h": 3600.0}


class StopPolicy(Protocol):
    """Decides when training has gone far enough."""

    def reason(self, history: History) -> str | None:
        """Why to stop now; None to go on."""


@dataclass(frozen=True)
class NeverStop:
    """Trains all epochs."""

    def reason(self, history: History) -> str | None:
        """Never one."""
        return None


@dataclass(frozen=True)
class EarlyStopping:
    """Stops once a metric has not improved for a while.

    Attributes:
        metric: e.g. `val/accuracy`; losses and errors are better when lower, everything else when higher.
        patience: Epochs without improvement after which to stop.
        min_delta: Smaller changes are not improvements.
    """

    metric: str = "val/loss"
    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise InvalidRequest(f"an early stop waits for at least one epoch; got patience={self.patience}")

    def reason(self, history: History) -> str | None:
        """Why to stop, if the best value is `patience` epochs old."""
        values = [epoch[self.metric] for epoch in history]
        best = 0
        for number, value in enumerate(values):
            if improves(self.metric, value, values[best], self.min_delta):
                best = number
        waited = len(values) - 1 - best
        if waited < self.patience:
            return None
        return f"{self.metric} has not improved for {waited} epochs; best was {values[best]:.4f} in epoch {best + 1}"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save, and what to keep.

    Attributes:
        every: `epoch`, or besides at each epoch's end also `500steps`, `30s`, `5min` or `1h`.
        best: Metric whose best epoch is kept besides the newest ones; if left out `val/loss`, or `train/loss` where the
            dataset has no `val`.
        keep: How many of the newest are kept.
    """

    every: str = "epoch"
    best: str | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        self.interval()
        if self.keep < 1:
            raise InvalidRequest(f"at least the newest checkpoint is kept; got keep={self.keep}")

    def interval(self) -> tuple[int | None, float | None]:
        """Steps and seconds between saves within an epoch; None for never."""
        if self.every == "epoch":
            return None, None
        text = self.every if isinstance(self.every, str) else ""
        if match := re.fullmatch(r"([1-9]\d*)steps", text):
            return int(match[1]), None
        seconds = _duration_s(text)
        if seconds is None:
            raise InvalidRequest(
                f"checkpoints are saved every 'epoch', '500steps', '30s', '5min' or '1h'; got {self.every!r}"
            )
        return None, seconds

    def is_best(self, history: History) -> bool:
        """Whether the last finished epoch is better than all before."""
        assert self.best is not None, "the trainer decides what was left out"
        *before, last = (epoch[self.best] for epoch in history)
        return all(improves(self.best, last, value) for value in before)


def improves(metric: str, value: float, than: float, by: float = 0.0) -> bool:
    """Whether a value is better; NaN never is, and anything is better than NaN."""
    if value != value:
        return False
    if than != than:
        return True
    return value < than - by if better_way(metric) == "minimize" else value > than + by


def check_metric(metric: str | None, available: Sequence[str], *, asked_by: str) -> None:
    """Refuses a metric that will never be measured.

    Raises:
        InvalidRequest: It is not among the available ones.
    """
    if metric not in available:
        raise InvalidRequest(f"{asked_by} watches one of {list(available)}; got {metric!r}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a run goes on at most, over all its continuations.

    Attributes:
        steps: Optimiser steps; None for as many as the epochs have.
        time: `30s`, `5min` or `2h` of training; None for no end.
    """

    steps: int | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and (isinstance(self.steps, bool) or self.steps < 1):
            raise InvalidRequest(f"a run has at least one step; got steps={self.steps}")
        if self.time is not None and _duration_s(self.time) is None:
            raise InvalidRequest(f"a time is '30s', '5min' or '2h'; got time={self.time!r}")

    def reason(self, steps: int, seconds: float) -> str | None:
        """Why to end now; None to go on."""
        if self.steps is not None and steps >= self.steps:
            return f"all {self.steps:,} steps are done"
        if self.time is not None and seconds >= (_duration_s(self.time) or 0):
            return f"the {self.time} are over"
        return None


def _duration_s(text: str) -> float | None:
    match = re.fullmatch(r"([1-9]\d*)(s|min|h)", text)
    return int(match[1]) * _UNITS_S[match[2]] if match else None
