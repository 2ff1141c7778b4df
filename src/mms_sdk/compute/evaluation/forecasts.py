"""Answers that are the next steps of a series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.numbers import quantiles
from mms_sdk.compute.evaluation.sample import Off, divided
from mms_sdk.schema.evaluation import StepError
from mms_sdk.types import Array

_KEPT = ("absolute", "squared", "naive", "symmetric", "scaled", "varies")


@dataclass(frozen=True)
class Forecasts:
    """Rows of a forecast each, as means over the channels of each step.

    Errors are of the quantile nearest to the median, as in training.

    Args:
        kept: As `kept_of` gives it, float32, shape (rows, horizon, values).
        levels: The quantiles, ascending.
    """

    kept: Array
    levels: tuple[float, ...]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.kept)

    @property
    def shares(self) -> dict[str, Array]:
        """None: a forecast is more or less off."""
        return {}

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`.

        `mase` is the mean absolute scaled error (Hyndman and Koehler 2006, §3) over the series that vary;
        `relative_mae` is the error in units of that of the last value, repeated; `smape` is in [0, 2] (Makridakis and
        Hibon 2000).
        """
        means = counts @ self._by_row / counts.sum()
        named = dict(zip(_KEPT, means.tolist(), strict=False))
        pinball, below = np.split(means[len(_KEPT) : -1], 2)
        told = {
            "mae": named["absolute"],
            "rmse": float(np.sqrt(named["squared"])),
            "smape": named["symmetric"],
            "mase": float(divided(named["scaled"], named["varies"])),
            "relative_mae": float(divided(named["absolute"], named["naive"])),
            "pinball": float(pinball.mean()),
        }
        if len(self.levels) > 1:
            told[f"coverage_{self.levels[0]:g}_to_{self.levels[-1]:g}"] = float(means[-1])
        for level, loss, share in zip(self.levels, pinball, below, strict=True):
            told |= {f"pinball_{level:g}": float(loss), f"coverage_{level:g}": float(share)}
        return told

    def take(self, places: Array) -> Forecasts:
        """Some of the rows, by their places."""
        return replace(self, kept=self.kept[places])

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`: errors by step, and the quantiles of each row's mean absolute error."""
        absolute, squared, naive = (self.kept[..., at].mean(0, dtype=np.float64) for at in range(3))
        each = zip(absolute.tolist(), np.sqrt(squared).tolist(), naive.tolist(), strict=True)
        steps = (StepError(step=at, mae=mae, rmse=rmse, naive_mae=of) for at, (mae, rmse, of) in enumerate(each, 1))
        return {"steps": tuple(steps), "row_errors": quantiles(self._by_row[:, 0])}

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """See `Answers`; the score is a row's mean absolute error."""
        off = self._by_row[:, 0]
        return [Off(at, "", "", float(off[at])) for at in np.argsort(-off, kind="stable")[:count].tolist()]

    def notes(self) -> Iterator[str]:
        """See `Answers`."""
        if constant := int((self._by_row[:, _KEPT.index("varies")] == 0).sum()):
            yield f"series that never change before the forecast have no scale: {constant:,} rows do not count in mase"

    @cached_property
    def _by_row(self) -> Array:
        means: Array = self.kept.mean(1, dtype=np.float64)
        return means


def kept_of(history: Array, targets: Array, given: Array, levels: Sequence[float]) -> Array:
    """What is kept of some forecasts.

    Args:
        history: The steps before, shape (rows, steps, channels).
        targets: What came, shape (rows, horizon, channels).
        given: What was said, shape (rows, horizon, channels, quantiles).
        levels: The quantiles, ascending.

    Returns:
        Means over channels, float32, shape (rows, horizon, values): absolute, squared and the last value's absolute
        error; the symmetric one; the scaled one and the share of channels that have a scale; pinball losses; which
        values lie at a quantile or below; and which between the outermost ones.
    """
    history, targets, given = (each.astype(np.float64) for each in (history, targets, given))
    middle = min(range(len(levels)), key=lambda place: abs(levels[place] - 0.5))
    said = given[..., middle]
    absolute = np.abs(said - targets)
    scale = np.abs(np.diff(history, axis=1)).mean(1, keepdims=True) if history.shape[1] > 1 else np.zeros(())
    scale = np.broadcast_to(scale, absolute.shape)
    above = targets[..., None] - given
    columns = [
        absolute,
        absolute**2,
        np.abs(history[:, -1:] - targets),
        divided(2 * absolute, np.abs(said) + np.abs(targets), otherwise=0.0),
        divided(absolute, scale, otherwise=0.0),
        scale > 0,
        *np.moveaxis(np.maximum(np.asarray(levels) * above, (np.asarray(levels) - 1) * above), -1, 0),
        *np.moveaxis(above <= 0, -1, 0),
        (given[..., 0] <= targets) & (targets <= given[..., -1]),
    ]
    kept: Array = np.stack([column.mean(-1) for column in columns], axis=-1).astype(np.float32)
    return kept
