"""Classification: its sums against NumPy, its scores, and the data it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_pictures import make_data

from mms_sdk.compute.training.tasks import Classification
from mms_sdk.errors import DataError, InvalidRequest

ROWS, CLASSES = 6, 4
_sums = jax.jit(lambda smoothing, *batch: Classification(label_smoothing=smoothing).sums(*batch), static_argnums=0)


def expected(scores: Any, labels: Any, weight: Any, smoothing: float) -> dict[str, float]:
    shifted = scores.astype(np.float64) - scores.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    targets = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    return {
        "loss": float((weight * -(targets * log_probabilities).sum(1)).sum()),
        "accuracy": float((weight * (scores.argmax(1) == labels)).sum()),
        "weight": float(weight.sum()),
    }


@given(
    scores=arrays.arrays(np.float32, (ROWS, CLASSES), elements=st.floats(-30, 30, width=32, allow_subnormal=False)),
    labels=arrays.arrays(np.int32, ROWS, elements=st.integers(0, CLASSES - 1)),
    weight=arrays.arrays(np.float32, ROWS, elements=st.floats(0, 4, width=32)),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_sums_equal_cross_entropy_and_accuracy_in_numpy(
    scores: Any, labels: Any, weight: Any, smoothing: float
) -> None:
    sums = _sums(smoothing, scores, labels, weight)

    wanted = expected(scores, labels, weight, smoothing)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(wanted, rel=1e-5, abs=1e-4)


def test_rows_of_weight_zero_change_no_sum_whatever_they_hold() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    weight = np.array([1, 1, 1, 1, 0, 0], np.float32)

    one = _sums(0.1, scores, labels, weight)
    other = _sums(0.1, np.where(weight[:, None] == 0, 1e3, scores), np.where(weight == 0, 3, labels), weight)

    assert jax.device_get(one) == jax.device_get(other)


def test_scores_are_the_softmax_and_add_up_to_one() -> None:
    outputs = np.random.default_rng(0).normal(scale=9, size=(5, 4)).astype(np.float32)

    scores = np.asarray(Classification().scores(outputs))

    exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
    np.testing.assert_allclose(scores, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)


def test_one_class_is_refused_and_the_message_says_which_and_what_to_do(tmp_path: Path) -> None:
    alone = make_data(tmp_path / "ws", rows={"train": 4}, labels=("ant",))

    with pytest.raises(DataError) as refused:
        Classification().check(alone.open())

    assert refused.value.message == (
        "classification needs at least two classes; pets@1 has 1: ['ant']; add rows of another class"
    )


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0])
def test_label_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(InvalidRequest, match=f"label_smoothing={smoothing}"):
        Classification(label_smoothing=smoothing)
