"""What each task counts, against scikit-learn, NumPy loops and closed forms; padding never counts."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from mms_sdk.compute.training.tasks import (
    Classification,
    Custom,
    Embedding,
    Forecasting,
    LanguageModelling,
    MultiLabel,
    Reconstruction,
    Regression,
    Task,
)
from mms_sdk.errors import InvalidRequest

ROWS, KEPT = 12, 9
WEIGHT = np.repeat([1, 0], [KEPT, ROWS - KEPT]).astype(np.float32)
rng = np.random.default_rng(0)


def averages(task: Task, outputs: Any, targets: Any, weight: Any = WEIGHT) -> dict[str, float]:
    """Metrics of a batch that comes in two parts, as the loop adds them up."""
    totals: dict[str, float] = {}
    for part in (slice(0, 5), slice(5, None)):
        given = jnp.asarray(outputs[part]), jnp.asarray(targets[part]), jnp.asarray(weight[part])
        for name, value in task.sums(*given).items():
            assert value.shape == ()
            totals[name] = totals.get(name, 0.0) + float(value)
    assert set(totals) == {*task.counted, "weight"}
    return task.averages(totals)


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.normal(size=shape).astype(np.float32)


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_weights_of_classes_and_the_focal_exponent_multiply_the_loss_of_a_row() -> None:
    logits, codes = normal(ROWS, 3), rng.integers(0, 3, ROWS).astype(np.int32)
    p = softmax(logits.astype(np.float64))[np.arange(ROWS), codes]
    weights = np.array([0.5, 1.0, 3.0])
    wanted = (-np.log(p) * (1 - p) ** 2 * weights[codes])[:KEPT].mean()

    told = averages(Classification(class_weight=tuple(weights), focal=2.0), logits, codes)

    assert told["loss"] == pytest.approx(wanted, rel=1e-5)
    assert told["accuracy"] == metrics.accuracy_score(codes[:KEPT], logits[:KEPT].argmax(1))


@pytest.mark.parametrize("focal", [0.5, 1.0, 2.0])
def test_the_focal_loss_and_its_gradient_are_the_closed_form_and_finite_where_a_row_is_certain(focal: float) -> None:
    logits = np.array([[0.3, -1.0, 0.8], [2.0, 1.0, -3.0], [90, 0, -90], [-90, 0, 90]], np.float32)  # right and wrong
    codes, p = np.zeros(4, np.int32), softmax(logits.astype(np.float64))
    right = p[:2, :1]
    slope = focal * (1 - right) ** (focal - 1) * np.log(right) - (1 - right) ** focal / right
    task = Classification(focal=focal)

    def loss(outputs: Any) -> Any:
        return task.sums(outputs, jnp.asarray(codes), jnp.ones(4))["loss"]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))

    np.testing.assert_allclose(gradient[:2], slope * right * (np.eye(3)[codes[:2]] - p[:2]), rtol=1e-4, atol=1e-6)
    assert float(value) == pytest.approx((-np.log(right) * (1 - right) ** focal).sum() + 180, rel=1e-5)
    np.testing.assert_allclose(gradient[2:], [[0, 0, 0], [-1, 0, 1]], atol=1e-3)


def test_multi_label_metrics_are_those_of_scikit_learn() -> None:
    logits, truth = normal(ROWS, 4), rng.integers(0, 2, (ROWS, 4)).astype(np.float32)
    said, true = (logits > 0)[:KEPT], truth[:KEPT]

    told = averages(MultiLabel(), logits, truth)

    each = [metrics.log_loss(true[:, k], 1 / (1 + np.exp(-logits[:KEPT, k])), labels=[0, 1]) for k in range(4)]
    assert told["loss"] == pytest.approx(np.mean(each), rel=1e-5)
    assert told["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))
    for name in ("precision", "recall", "f1"):
        wanted = getattr(metrics, f"{name}_score")(true, said, average="micro")
        assert told[name] == pytest.approx(wanted), name


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_regression_metrics_are_in_the_unit_of_the_target_and_those_of_scikit_learn(loss: Any) -> None:
    mean, std = 1000.0, 20.0
    target = (mean + std * normal(ROWS)).astype(np.float32)
    given = ((target - mean) / std + 0.3 * normal(ROWS)).astype(np.float32)[:, None]
    task = Regression(loss=loss, mean=(mean,), std=(std,))
    own = given[:KEPT, 0].astype(np.float64) * std + mean
    error = given[:KEPT, 0] - (target[:KEPT] - mean) / std
    losses = {
        "squared": error**2,
        "absolute": abs(error),
        "huber": np.where(abs(error) < 1, error**2 / 2, abs(error) - 0.5),
    }

    told = averages(task, given, target)

    assert told["loss"] == pytest.approx(losses[loss].mean(), rel=1e-4)
    assert told["mae"] == pytest.approx(metrics.mean_absolute_error(target[:KEPT], own), rel=1e-3)
    assert told["rmse"] == pytest.approx(metrics.root_mean_squared_error(target[:KEPT], own), rel=1e-3)
    assert told["r2"] == pytest.approx(metrics.r2_score(target[:KEPT], own), rel=1e-3)
    np.testing.assert_allclose(np.asarray(task.scores(jnp.asarray(given)))[:KEPT, 0], own, rtol=1e-5)


def test_the_r2_of_several_numbers_is_the_mean_of_theirs_as_in_scikit_learn() -> None:
    mean, std = np.array([1000.0, -3.0, 5.0]), np.array([20.0, 0.1, 1.0])
    target = (mean + std * normal(ROWS, 3)).astype(np.float32)
    target[:, 2] = 5.0  # which does not vary, and is left out
    given = ((target - mean) / std + np.array([0.1, 0.9, 0.5]) * normal(ROWS, 3)).astype(np.float32)
    own = given[:KEPT].astype(np.float64) * std + mean

    told = averages(Regression(mean=tuple(mean), std=tuple(std)), given, target)

    wanted = metrics.r2_score(target[:KEPT, :2], own[:, :2], multioutput="uniform_average")
    assert told["r2"] == pytest.approx(wanted, rel=1e-4)
    assert told["mae"] == pytest.approx(metrics.mean_absolute_error(target[:KEPT], own), rel=1e-4)
    assert told["rmse"] == pytest.approx(np.sqrt(metrics.mean_squared_error(target[:KEPT], own)), rel=1e-4)


def test_a_model_with_another_number_of_values_than_the_target_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"as many numbers as the target has, \(2,\) a row; got \(3,\)"):
        averages(Regression(), normal(ROWS, 3), normal(ROWS, 2))


def test_the_loss_of_a_forecast_is_the_pinball_loss_of_scikit_learn() -> None:
    task = Forecasting(horizon=3, quantiles=(0.1, 0.5, 0.8))
    series, given = normal(ROWS, 8, 2), normal(ROWS, 3, 2, 3)
    before, after = task.pair(jnp.asarray(series), jnp.asarray(series))
    np.testing.assert_array_equal(np.concatenate([before, after], 1), series)
    assert task.model_shape((8, 2)) == before.shape[1:]
    true = series[:KEPT, -3:].reshape(-1)
    pinball = [
        metrics.mean_pinball_loss(true, given[:KEPT, ..., k].reshape(-1), alpha=quantile)
        for k, quantile in enumerate(task.quantiles)
    ]

    told = averages(task, given, np.asarray(after))

    assert told["loss"] == pytest.approx(np.mean(pinball), rel=1e-5)
    assert told["mae"] == pytest.approx(metrics.mean_absolute_error(true, given[:KEPT, ..., 1].reshape(-1)), rel=1e-5)


def test_a_series_no_longer_than_the_horizon_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"rows have shape \(3, 1\) and horizon is 3"):
        Forecasting(horizon=3).model_shape((3, 1))


def test_the_loss_of_an_embedding_is_equation_2_of_khosla_et_al_written_as_loops() -> None:
    vectors, codes = normal(6, 5), np.array([0, 0, 1, 1, 2, 0], np.int32)
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)  # the last is padding; class 2 is alone
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    losses, right = [], []
    for i in range(5):
        others = [a for a in range(5) if a != i]
        same = [a for a in others if codes[a] == codes[i]]
        if same:
            near = {a: unit[i] @ unit[a] / 0.2 for a in others}
            total = np.log(sum(np.exp(value) for value in near.values()))
            losses.append(-np.mean([near[a] - total for a in same]))
            right.append(codes[max(near, key=lambda a: near[a])] == codes[i])
    task = Embedding(temperature=0.2)

    sums = task.sums(jnp.asarray(vectors), jnp.asarray(codes), jnp.asarray(weight))
    told = task.averages({name: float(value) for name, value in sums.items()})

    assert told == pytest.approx({"loss": np.mean(losses), "recall": np.mean(right)}, rel=1e-5)


def test_a_row_that_is_alone_in_its_batch_counts_for_nothing() -> None:
    sums = Embedding().sums(jnp.ones((1, 3)), jnp.zeros(1, jnp.int32), jnp.ones(1))

    assert {name: float(value) for name, value in sums.items()} == {"loss": 0.0, "recall": 0.0, "weight": 0.0}


def test_the_loss_of_a_language_model_is_of_the_token_behind_each_and_padding_is_not_said() -> None:
    tokens = np.array([[5, 3, 2, 0], [1, 4, 0, 0], [2, 2, 2, 2]], np.int32)
    logits = normal(3, 4, 6)
    weight = np.array([1, 1, 0], np.float32)
    p = softmax(logits.astype(np.float64))
    said = [(0, 0, 3), (0, 1, 2), (1, 0, 4)]  # row, place, the token behind it
    loss = -np.mean([np.log(p[row, place, token]) for row, place, token in said])
    right = np.mean([p[row, place].argmax() == token for row, place, token in said])
    task = LanguageModelling()

    sums = task.sums(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(weight))
    told = task.averages({name: float(value) for name, value in sums.items()})

    assert float(sums["weight"]) == 3
    assert told == pytest.approx({"loss": loss, "accuracy": right, "perplexity": np.exp(loss)}, rel=1e-5)


def test_a_reconstruction_is_compared_with_what_went_in() -> None:
    inputs, given = normal(ROWS, 4, 2), normal(ROWS, 4, 2)
    task = Reconstruction()
    assert task.pair(jnp.asarray(inputs), jnp.zeros(ROWS))[1].shape == inputs.shape

    told = averages(task, given, inputs)

    error = (given - inputs)[:KEPT]
    assert told == pytest.approx({"loss": (error**2).mean(), "mae": abs(error).mean()}, rel=1e-5)


def test_a_loss_of_ones_own_may_weigh_rows() -> None:
    def loss(outputs: Any, targets: Any) -> Any:
        return abs(outputs - targets), targets  # rows weigh as much as their target says

    outputs, targets = normal(ROWS), rng.integers(1, 4, ROWS).astype(np.float32)

    told = averages(Custom(loss=loss, measured={"bias": lambda outputs, targets: outputs - targets}), outputs, targets)

    off = (outputs - targets)[:KEPT]
    assert told["loss"] == pytest.approx(np.average(abs(off), weights=targets[:KEPT]), rel=1e-5)
    assert told["bias"] == pytest.approx(np.average(off, weights=targets[:KEPT]), rel=1e-5)


def twice(outputs: Any, targets: Any, *, by: float = 2.0) -> Any:
    return by * abs(outputs - targets) if by not in {"a", "b"} else outputs


def between(low: float) -> Any:
    return lambda outputs, targets: abs(outputs - targets) + low


def test_a_loss_of_ones_own_is_told_the_same_in_every_process() -> None:
    told = """
from functools import partial
from mms_sdk.compute.training.tasks.custom import Custom
def twice(outputs, targets, *, by=2.0):
    return by * abs(outputs - targets) if by not in {"a", "b", "c"} else outputs
def between(low):
    return lambda outputs, targets: abs(outputs - targets) + low
print(Custom(loss=between(1.0), measured={"twice": partial(twice, by=3.0)}))
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", told],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert said[0] == said[1]
    assert "__main__.between.<locals>.<lambda> " in said[0]
    assert " at 0x" not in said[0]


def test_another_loss_of_ones_own_is_told_apart() -> None:
    losses = [
        *(lambda outputs, targets: abs(outputs - targets), lambda outputs, targets: (outputs - targets) ** 2),
        *(lambda outputs, targets: 2.0 * (outputs - targets), lambda outputs, targets: 3.0 * (outputs - targets)),
        *(between(1.0), between(2.0), partial(twice, by=1.0), partial(twice, by=2.0), twice, jax.jit(twice)),
    ]

    assert len({repr(Custom(loss=loss)) for loss in losses}) == len(losses) - 1  # compiled or not, it is the same


def test_a_loss_of_ones_own_that_is_one_number_for_all_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"one value a row, shape \(5,\); got \(\); take the mean over the other"):
        averages(Custom(loss=lambda outputs, targets: outputs.mean()), normal(ROWS), normal(ROWS))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Classification(focal=-1.0), "exponent from 0; got focal=-1.0"),
        (lambda: Classification(class_weight="even"), "'balanced' or a weight a class; got 'even'"),
        (lambda: MultiLabel(threshold=1.0), r"share in \(0, 1\); got threshold=1.0"),
        (lambda: Regression(loss="cubed"), "squared, absolute or huber; got loss='cubed'"),
        (lambda: Forecasting(horizon=0), "at least one step; got horizon=0"),
        (lambda: Forecasting(horizon=1, quantiles=(0.9, 0.1)), r"ascend and lie in \(0, 1\); got"),
        (lambda: Embedding(temperature=0.0), "positive number; got temperature=0.0"),
        (lambda: Custom(loss="mse"), r"a function loss\(outputs, targets\)"),
    ],
)
def test_options_of_a_task_that_cannot_work_are_refused(make: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        make()
