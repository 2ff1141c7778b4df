"""Vectors by their neighbours, against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from mms_sdk.compute.evaluation import neighbours as module
from mms_sdk.compute.evaluation.neighbours import neighbours

ROWS, NAMES = 60, ("ant", "bee", "cat")


def made(*, coarse: bool = False) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, ROWS)
    vectors = rng.normal(size=(ROWS, 5))
    vectors[np.arange(ROWS), codes] += 1
    if coarse:  # many that lie equally near
        vectors = np.eye(5)[rng.integers(0, 4, ROWS)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), codes


@pytest.mark.parametrize("bytes_held", [64 * 2**20, 4 * ROWS * 7, 1])
def test_recall_is_that_of_scikit_learns_neighbours_however_many_are_held(
    monkeypatch: pytest.MonkeyPatch, bytes_held: int
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", bytes_held)
    vectors, codes = made()
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(vectors)
    found = search.kneighbors(vectors, return_distance=False)[:, 1:]
    same = codes[found] == codes[:, None]

    sample = neighbours(vectors, codes, NAMES)

    told = sample.measure(np.ones(ROWS, int))
    assert told["recall_at_1"] == same[:, 0].mean()
    assert told["recall_at_5"] == same.any(1).mean()
    assert {name: share.mean() for name, share in sample.shares.items()} == pytest.approx(
        {name: told[name] for name in ("recall_at_1", "recall_at_5")}
    )
    np.testing.assert_array_equal(sample.nearest, codes[found[:, 0]])


@pytest.mark.parametrize("coarse", [False, True])
def test_precision_is_scikit_learns_over_all_others_under_any_row_counts(coarse: bool) -> None:
    vectors, codes = made(coarse=coarse)
    cosines = vectors @ vectors.T
    wanted = np.array(
        [
            average_precision_score(np.delete(codes == codes[row], row), np.delete(cosines[row], row))
            for row in range(ROWS)
        ]
    )
    counts = np.random.default_rng(1).integers(0, 3, ROWS)

    sample = neighbours(vectors, codes, NAMES)

    np.testing.assert_allclose(sample.precision, wanted, rtol=1e-6)
    assert sample.measure(counts)["map"] == pytest.approx(np.average(wanted, weights=counts))


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    codes = np.arange(20) % 2
    told = neighbours(np.full((20, 4), 0.5, np.float32), codes, NAMES[:2]).measure(np.ones(20, int))
    assert told == {"recall_at_1": 0, "recall_at_5": 0, "map": pytest.approx(9 / 19)}


def test_a_row_without_another_of_its_class_counts_nowhere() -> None:
    vectors, codes = made()
    codes[0] = 3
    sample = neighbours(vectors, codes, (*NAMES, "dog"))
    told = sample.measure(np.ones(ROWS, int))
    rest = sample.take(np.arange(1, ROWS))
    assert told == pytest.approx(rest.measure(np.ones(ROWS - 1, int)))
    assert (sample.shares, set(rest.shares)) == ({}, {"recall_at_1", "recall_at_5"})
    assert "1 count in no metric" in next(sample.notes())
    assert all(each.target != "dog" for each in sample.worst(ROWS, ()))
    alone = neighbours(vectors[:1], codes[:1] * 0, ("dog",)).measure(np.ones(1, int))
    assert all(map(math.isnan, alone.values()))


def test_the_worst_lie_nearest_to_a_row_of_another_class() -> None:
    vectors, codes = made()
    worst = neighbours(vectors, codes, NAMES).worst(4, ())
    assert [each.score for each in worst] == sorted((each.score for each in worst), reverse=True)
    for each in worst:
        cosines = np.delete(vectors[each.place] @ vectors.T, each.place)
        assert each.score == pytest.approx(cosines.max(), rel=1e-6)
        assert (each.target, each.predicted) == (
            NAMES[codes[each.place]],
            NAMES[np.delete(codes, each.place)[cosines.argmax()]],
        )
