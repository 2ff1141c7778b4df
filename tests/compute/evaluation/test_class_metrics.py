"""Metrics of classes, against scikit-learn and against what is worked out by hand, under any row counts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from mms_sdk.compute.evaluation.classes import RANKED_CELLS, Classes
from mms_sdk.compute.evaluation.labels import Labels


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Scores that lean towards the class a row is of, rounded so that some are equal; float64 and codes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    scores = rng.dirichlet(np.ones(classes), rows) + 0.4 * np.eye(classes)[targets]
    return scores / scores.sum(1, keepdims=True), targets


def counts_of(rows: int, seed: int) -> Any:
    return np.bincount(np.random.default_rng(seed).integers(0, rows, rows), minlength=rows)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_metrics_of_classes_are_scikit_learns_with_the_counts_as_weights(classes: int, seed: int | None) -> None:
    scores, targets = drawn(200, classes)
    counts = np.ones(200, np.int64) if seed is None else counts_of(200, seed)
    sample = Classes(scores, targets)
    said = scores.argmax(1)

    found = sample.measure(counts)

    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, said, sample_weight=counts))
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(targets, said, sample_weight=counts)
    )
    for average in ("macro", "weighted"):
        wanted = metrics.f1_score(targets, said, average=average, sample_weight=counts)
        assert found[f"f1_{average}"] == pytest.approx(wanted)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(targets, scores, sample_weight=counts))
    areas = [metrics.roc_auc_score(targets == code, scores[:, code], sample_weight=counts) for code in range(classes)]
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
    assert sample.areas(counts) == pytest.approx(np.asarray(areas))
    wanted = metrics.confusion_matrix(targets, said, labels=range(classes), sample_weight=counts)
    assert sample.confusion(counts).tolist() == wanted.tolist()
    if classes > 2:
        k = 5 if classes > 5 else 2
        wanted = metrics.top_k_accuracy_score(targets, scores, k=k, labels=range(classes), sample_weight=counts)
        assert found[f"top_{k}_accuracy"] == pytest.approx(wanted)
    else:
        assert not any(name.startswith("top") for name in found)


def test_counting_a_row_twice_is_having_it_twice() -> None:
    scores, targets = drawn(40, 4)
    counts = counts_of(40, 3)
    repeated = np.repeat(np.arange(40), counts)

    told = Classes(scores, targets).measure(counts)

    assert told == pytest.approx(Classes(scores, targets).take(repeated).measure(np.ones(40, np.int64)))


def test_equal_scores_count_half_in_the_area() -> None:
    scores = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    sample = Classes(scores, np.array([0, 1, 1, 0]))
    # Pairs of a row of class 1 and one of class 0: a tie, and three in the right order.
    assert sample.areas(np.ones(4, np.int64)).tolist() == [3.5 / 4, 3.5 / 4]


def test_classes_that_no_row_has_count_in_no_mean_and_have_no_area() -> None:
    scores, targets = drawn(60, 3)
    padded = np.concatenate([scores, np.zeros((60, 1))], axis=1)  # the fourth is never said, and never so

    few, more = (Classes(each, targets).measure(np.ones(60, np.int64)) for each in (scores, padded))

    for name in ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "log_loss", "roc_auc", "ece"):
        assert more[name] == pytest.approx(few[name])
    absent = Classes(padded, targets).by_class(("a", "b", "c", "d"))[3]
    assert (absent.rows, absent.predicted) == (0, 0)
    assert (absent.precision, absent.recall, absent.f1, absent.roc_auc) == (None, None, None, None)


def test_rows_that_are_all_of_one_class_have_no_area() -> None:
    scores, _ = drawn(10, 3)

    told = Classes(scores, np.zeros(10, np.int64)).measure(np.ones(10, np.int64))

    assert np.isnan(told["roc_auc"])
    assert told["balanced_accuracy"] == told["accuracy"]


def test_each_class_has_scikit_learns_precision_recall_and_f1() -> None:
    scores, targets = drawn(150, 5)
    labels = ("a", "b", "c", "d", "e")

    told = Classes(scores, targets).by_class(labels)

    wanted = metrics.precision_recall_fscore_support(targets, scores.argmax(1))
    for at, each in enumerate(told):
        assert each.label == labels[at]
        assert (each.precision, each.recall, each.f1, each.rows) == pytest.approx(tuple(row[at] for row in wanted))


def test_the_calibration_error_is_the_mean_gap_of_fifteen_bins() -> None:
    scores, targets = drawn(300, 3, seed=5)
    sure, right = scores.max(1), scores.argmax(1) == targets
    sample = Classes(scores, targets)
    wanted, bins = 0.0, sample.calibration()
    for at in range(15):  # Guo et al. 2017, eq. 3, one bin after the other
        inside = (sure > at / 15) & (sure <= (at + 1) / 15)
        assert bins[at].rows == inside.sum()
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
            assert bins[at].accuracy == pytest.approx(right[inside].mean())
            assert bins[at].confidence == pytest.approx(sure[inside].mean())
        else:
            assert (bins[at].accuracy, bins[at].confidence) == (None, None)

    assert sample.measure(np.ones(300, np.int64))["ece"] == pytest.approx(wanted)


def test_a_score_of_nothing_for_what_is_so_costs_much_and_not_everything() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0]])
    loss = Classes(scores, np.array([0, 1])).measure(np.ones(2, np.int64))["log_loss"]
    assert loss == pytest.approx(-np.log(np.finfo(np.float32).tiny) / 2)


def test_the_worst_are_wrong_answers_by_falling_score() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.99, 0.01]])
    sample = Classes(scores, np.array([1, 1, 0, 0]))
    assert [each.place for each in sample.worst(5, "abc")] == [0, 2, 1]
    assert [each.place for each in sample.worst(1, "abc")] == [0]


def test_areas_of_many_rows_and_classes_are_told_class_by_class_only() -> None:
    classes = 50
    rows = RANKED_CELLS // classes + 1
    rng = np.random.default_rng(0)
    sample = Classes(rng.random((rows, classes), np.float32), rng.integers(0, classes, rows))

    assert "roc_auc" not in sample.measure(np.ones(rows, np.int64))
    wanted = metrics.roc_auc_score(sample.targets == 7, sample.scores[:, 7])
    assert sample.by_class(tuple(map(str, range(classes))))[7].roc_auc == pytest.approx(wanted)


@pytest.mark.parametrize("seed", [None, 4])
def test_metrics_of_labels_are_scikit_learns_with_the_counts_as_weights(seed: int | None) -> None:
    rng = np.random.default_rng(1)
    targets = rng.random((120, 4)) < [0.2, 0.5, 0.7, 0.4]
    scores = np.clip(rng.random((120, 4)) + 0.3 * targets, 0.01, 0.99)
    counts = np.ones(120, np.int64) if seed is None else counts_of(120, seed)
    said = scores >= 0.6

    found = Labels(scores, targets, threshold=0.6).measure(counts)

    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, said, sample_weight=counts))
    assert found["hamming_loss"] == pytest.approx(metrics.hamming_loss(targets, said, sample_weight=counts))
    for average in ("micro", "macro"):
        wanted = metrics.precision_recall_fscore_support(targets, said, average=average, sample_weight=counts)
        for name, value in zip(("precision", "recall", "f1"), wanted, strict=False):
            assert found[f"{name}_{average}"] == pytest.approx(value)
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(targets, scores, sample_weight=counts))
    losses = [metrics.log_loss(targets[:, at], scores[:, at], sample_weight=counts) for at in range(4)]
    assert found["log_loss"] == pytest.approx(np.mean(losses))


def test_labels_that_no_row_has_count_in_no_mean() -> None:
    targets = np.array([[True, False], [False, False]])
    scores = np.array([[0.9, 0.1], [0.2, 0.3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = Labels(scores, targets).measure(np.ones(2, np.int64))
    assert (told["recall_macro"], told["precision_macro"], told["f1_macro"], told["roc_auc"]) == (1, 1, 1, 1)
    (first, second) = Labels(scores, targets).by_class(("a", "b"))
    assert (first.roc_auc, second.roc_auc, second.recall, second.rows) == (1.0, None, None, 0)
