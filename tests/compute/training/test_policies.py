"""Policies: when to stop, when to save and what is best, by the history alone."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, NeverStop, check_metric, improves
from mms_sdk.errors import InvalidRequest


def history_of(metric: str, *values: float) -> list[dict[str, float]]:
    return [{metric: value, "other": 0.0} for value in values]


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([1.0, 1.0, 1.0], True),
        ([3.0, 1.0, 2.0, 0.5], False),
        ([3.0, 1.0, 2.0, 1.5], True),
        ([nan, nan, nan], True),
        ([nan, 2.0, nan], False),
        ([1.0, nan, nan], True),
        ([inf, 5.0, 6.0], False),
    ],
)
def test_early_stopping_counts_the_epochs_since_the_lowest_loss(values: list[float], stops: bool) -> None:
    reason = EarlyStopping("val/loss", patience=2).reason(history_of("val/loss", *values))

    assert (reason is not None) == stops


def test_early_stopping_says_the_metric_the_wait_and_the_best_epoch() -> None:
    reason = EarlyStopping("val/loss", patience=2).reason(history_of("val/loss", 3.0, 1.0, 2.0, 1.5))

    assert reason == "val/loss has not improved for 2 epochs; best was 1.0000 in epoch 2"


def test_accuracy_is_better_when_higher() -> None:
    stop = EarlyStopping("val/accuracy", patience=1)

    assert stop.reason(history_of("val/accuracy", 0.5, 0.6)) is None
    assert stop.reason(history_of("val/accuracy", 0.6, 0.5)) is not None


def test_changes_below_min_delta_are_no_improvement() -> None:
    losses = history_of("val/loss", 1.0, 0.95, 0.94)

    assert EarlyStopping("val/loss", patience=2, min_delta=0.1).reason(losses) is not None
    assert EarlyStopping("val/loss", patience=2, min_delta=0.01).reason(losses) is None


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=12), st.integers(1, 4))
def test_early_stopping_stops_at_the_first_epoch_that_lies_its_patience_behind_the_lowest_loss(
    values: list[float], patience: int
) -> None:
    stop = EarlyStopping("val/loss", patience=patience)
    first = next(
        (n for n in range(len(values) + 1) if stop.reason(history_of("val/loss", *values[:n])) is not None), None
    )

    wanted = next(
        (
            n
            for n in range(1, len(values) + 1)
            if n - 1 - min(range(n), key=lambda epoch: (values[epoch], epoch)) >= patience
        ),
        None,
    )
    assert first == wanted


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_of_no_epoch_is_refused(patience: int) -> None:
    with pytest.raises(InvalidRequest, match=f"patience={patience}"):
        EarlyStopping(patience=patience)


def test_never_stopping_never_stops() -> None:
    assert NeverStop().reason(history_of("val/loss", 1.0, nan, inf)) is None


@pytest.mark.parametrize(
    ("every", "interval"),
    [
        ("epoch", (None, None)),
        ("1steps", (1, None)),
        ("500steps", (500, None)),
        ("30s", (None, 30.0)),
        ("5min", (None, 300.0)),
        ("2h", (None, 7200.0)),
    ],
)
def test_an_interval_is_read_as_steps_or_seconds(every: str, interval: Any) -> None:
    assert Checkpoints(every=every).interval() == interval


@pytest.mark.parametrize(
    "every", ["", "0steps", "steps", "5", "5 min", "-5s", "1.5h", "5days", "epochs", "05s", "5min "]
)
def test_other_intervals_are_refused_and_the_right_ones_shown(every: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Checkpoints(every=every)

    assert "'epoch', '500steps', '30s', '5min' or '1h'" in refused.value.message
    assert repr(every) in refused.value.message


@pytest.mark.parametrize("keep", [0, -3])
def test_keeping_no_checkpoint_is_refused(keep: int) -> None:
    with pytest.raises(InvalidRequest, match=f"keep={keep}"):
        Checkpoints(keep=keep)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("val/loss", [1.0], True),
        ("val/loss", [2.0, 1.0], True),
        ("val/loss", [1.0, 1.0], False),
        ("val/loss", [1.0, 3.0, 2.0], False),
        ("val/accuracy", [0.5, 0.6], True),
        ("val/accuracy", [0.6, 0.5], False),
        ("val/loss", [nan], True),
        ("val/loss", [nan, 5.0], True),
        ("val/loss", [nan, nan], False),
        ("val/loss", [5.0, nan], False),
    ],
)
def test_an_epoch_is_best_if_it_is_better_than_all_before(metric: str, values: list[float], best: bool) -> None:
    assert Checkpoints(best=metric).is_best(history_of(metric, *values)) is best


@given(st.floats(), st.floats())
def test_of_two_different_values_at_most_one_improves_on_the_other(one: float, other: float) -> None:
    for metric in ("val/loss", "val/accuracy"):
        assert not (improves(metric, one, other) and improves(metric, other, one))
    if one == one and other == other and one != other:
        assert improves("val/loss", one, other) != improves("val/loss", other, one)
        assert improves("val/loss", one, other) == improves("val/accuracy", other, one)


def test_a_metric_that_is_never_measured_is_refused_by_name() -> None:
    check_metric("val/loss", ["train/loss", "val/loss"], asked_by="EarlyStopping")
    with pytest.raises(InvalidRequest, match=r"EarlyStopping watches one of \['train/loss'\]; got 'val/loss'"):
        check_metric("val/loss", ["train/loss"], asked_by="EarlyStopping")


def test_policies_print_and_compare_by_their_options() -> None:
    assert repr(EarlyStopping("val/loss", patience=3)) == "EarlyStopping(metric='val/loss', patience=3, min_delta=0.0)"
    assert Checkpoints(every="5min") == Checkpoints(every="5min")


@pytest.mark.parametrize("every", [10, None, "", "10", "0steps", "-1steps", "1.5h", "steps", ["epoch"]])
def test_what_is_no_interval_is_refused_with_those_that_are(every: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"every 'epoch', '500steps', '30s', '5min' or '1h'; got"):
        Checkpoints(every=every)
