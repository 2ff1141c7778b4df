"""Forecasts, against scikit-learn where it has the metric, and loops where it has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from mms_sdk.compute.evaluation.forecasts import Forecasts, kept_of

ROWS, STEPS, HORIZON, CHANNELS = 30, 12, 4, 2
LEVELS = (0.1, 0.5, 0.9)


def made(seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    series = rng.normal(5, 1, (ROWS, STEPS + HORIZON, CHANNELS)).cumsum(1)
    targets = series[:, STEPS:]
    given = targets[..., None] + rng.normal(0, 2, targets.shape)[..., None] + np.array([-2.0, 0.0, 2.0])
    return series[:, :STEPS], targets, given


def sample(history: Any, targets: Any, given: Any, levels: tuple[float, ...] = LEVELS) -> Forecasts:
    return Forecasts(kept_of(history, targets, given, levels), levels)


def test_errors_are_those_of_scikit_learn_under_any_row_counts() -> None:
    history, targets, given = made()
    counts = np.random.default_rng(1).integers(0, 4, ROWS)
    said, so = np.repeat(given, counts, 0), np.repeat(targets, counts, 0)

    told = sample(history, targets, given).measure(counts)

    assert told["mae"] == pytest.approx(mean_absolute_error(so.ravel(), said[..., 1].ravel()), rel=1e-5)
    assert told["rmse"] == pytest.approx(math.sqrt(mean_squared_error(so.ravel(), said[..., 1].ravel())), rel=1e-5)
    losses = [mean_pinball_loss(so.ravel(), said[..., at].ravel(), alpha=level) for at, level in enumerate(LEVELS)]
    assert [told[f"pinball_{level}"] for level in LEVELS] == pytest.approx(losses, rel=1e-5)
    assert told["pinball"] == pytest.approx(np.mean(losses), rel=1e-5)
    for at, level in enumerate(LEVELS):
        assert told[f"coverage_{level}"] == pytest.approx(np.mean(so <= said[..., at]), abs=1e-6)
    inside = (said[..., 0] <= so) & (so <= said[..., 2])
    assert told["coverage_0.1_to_0.9"] == pytest.approx(inside.mean(), abs=1e-6)


def test_errors_are_scaled_by_the_last_value_and_by_the_steps_before() -> None:
    history, targets, given = made()
    said = given[..., 1]
    scaled, symmetric = [], []
    for row in range(ROWS):
        for channel in range(CHANNELS):
            before = history[row, :, channel]
            scale = sum(abs(before[at] - before[at - 1]) for at in range(1, STEPS)) / (STEPS - 1)
            for step in range(HORIZON):
                off = abs(said[row, step, channel] - targets[row, step, channel])
                scaled.append(off / scale)
                symmetric.append(2 * off / (abs(said[row, step, channel]) + abs(targets[row, step, channel])))

    told = sample(history, targets, given).measure(np.ones(ROWS, int))

    assert told["mase"] == pytest.approx(np.mean(scaled), rel=1e-5)
    assert told["smape"] == pytest.approx(np.mean(symmetric), rel=1e-5)
    naive = mean_absolute_error(targets.ravel(), np.repeat(history[:, -1:], HORIZON, 1).ravel())
    assert told["relative_mae"] == pytest.approx(told["mae"] / naive, rel=1e-5)


def test_the_last_value_repeated_is_as_good_as_itself() -> None:
    history, targets, _ = made()
    given = np.repeat(history[:, -1:], HORIZON, 1)[..., None]
    told = sample(history, targets, given, (0.5,)).measure(np.ones(ROWS, int))
    assert told["relative_mae"] == pytest.approx(1)
    assert told["pinball"] == pytest.approx(told["mae"] / 2)
    assert not any("_to_" in name for name in told)


def test_series_that_never_change_have_no_scale_and_say_so() -> None:
    history, targets, given = made()
    history[:3] = 7.0
    some = sample(history, targets, given)
    told = some.measure(np.ones(ROWS, int))
    assert told["mase"] == pytest.approx(some.take(np.arange(3, ROWS)).measure(np.ones(ROWS - 3, int))["mase"])
    assert [*some.notes()] == [
        "series that never change before the forecast have no scale: 3 rows do not count in mase"
    ]
    still = some.take(np.arange(3))
    assert math.isnan(still.measure(np.ones(3, int))["mase"])


def test_zeros_that_are_said_to_be_zeros_cost_nothing() -> None:
    zeros = np.zeros((2, HORIZON, 1))
    told = sample(np.zeros((2, STEPS, 1)), zeros, zeros[..., None], (0.5,)).measure(np.ones(2, int))
    assert (told["mae"], told["smape"], told["coverage_0.5"]) == (0, 0, 1)
    assert math.isnan(told["relative_mae"])


def test_errors_are_told_by_step() -> None:
    history, targets, given = made()
    some = sample(history, targets, given)
    steps = some.parts(())["steps"]
    assert [each.step for each in steps] == [1, 2, 3, 4]
    for at, each in enumerate(steps):
        assert each.mae == pytest.approx(mean_absolute_error(targets[:, at], given[:, at, :, 1]), rel=1e-5)
        assert each.naive_mae == pytest.approx(mean_absolute_error(targets[:, at], history[:, -1]), rel=1e-5)
    rows = np.abs(targets - given[..., 1]).mean((1, 2))
    assert some.parts(())["row_errors"]["50%"] == pytest.approx(np.median(rows), rel=1e-5)
    assert [each.place for each in some.worst(3, ())] == np.argsort(-rows)[:3].tolist()


def test_one_step_before_is_enough() -> None:
    history, targets, given = made()
    told = sample(history[:, -1:], targets, given).measure(np.ones(ROWS, int))
    assert math.isnan(told["mase"])
    assert told["relative_mae"] > 0
