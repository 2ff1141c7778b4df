from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Memory, Reader
from mms_sdk.storage.sampling import Draws
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

ROWS = 60


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    """Sixty rows, most of them cats."""
    dataset = Dataset.create(LocalStore(tmp_path_factory.mktemp("dataset") / "flowers"), "flowers")
    labels = np.repeat([0, 1, 2], [45, 10, 5]).astype(np.int32)
    columns = tuple(column.model_copy(update={"profile": "blosc"}) for column in COLUMNS)
    add(dataset, {**content_of(ROWS), "label": labels}, columns=columns)
    return dataset.snapshot()


def reader_of(snapshot: OpenSnapshot, **options: Any) -> Reader:
    return Reader(snapshot, **{"columns": ("image", "label"), "batch_size": 8, "seed": 1, **options})


def drawn(reader: Reader, epochs: int) -> np.ndarray:
    batches = [batch for _ in range(epochs) for batch in reader.epoch()]
    return np.concatenate([batch.rows[batch.weight == 1] for batch in batches])


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_rows_come_as_often_as_their_weights_say() -> None:
    weights = np.array([1.0, 0, 2, 3, 0.5, 0, 8])
    count = 200_000

    found = np.bincount(Draws(weights, seed=3).at(0, count, epoch=0), minlength=7)

    there = weights > 0
    assert not found[~there].any()
    # 23.5: the 99.99 % quantile of chi-square with 4 degrees of freedom.
    assert chi_square(found[there], count * weights[there] / weights.sum()) < 23.5


@pytest.mark.parametrize("split", [None, "train"])
def test_balanced_classes_come_equally_often_within_the_split(snapshot: OpenSnapshot, split: str | None) -> None:
    rows = drawn(reader_of(snapshot, split=split, sample="label"), 300)

    counts = np.bincount(snapshot.values("label")[rows], minlength=3)
    present = np.unique(snapshot.values("label")[snapshot.split_rows(split)])
    assert set(rows.tolist()) <= set(snapshot.split_rows(split).tolist())
    assert len(rows) == 300 * len(snapshot.split_rows(split))
    assert chi_square(counts[present], np.full(len(present), len(rows) / len(present))) < 18.4  # 99.99 %, 2 degrees


@given(cuts=st.lists(st.integers(0, 500), max_size=6), seed=st.integers(0, 2**70), epoch=st.integers(0, 2**40))
@settings(max_examples=50)
def test_a_draw_depends_on_its_position_alone(cuts: list[int], seed: int, epoch: int) -> None:
    draws = Draws(np.arange(50.0), seed=seed)
    bounds = [0, *sorted(cuts), 500]

    pieces = [draws.at(start, stop, epoch=epoch) for start, stop in pairwise(bounds)]

    np.testing.assert_array_equal(np.concatenate(pieces), draws.at(0, 500, epoch=epoch))
    assert not np.array_equal(draws.at(0, 500, epoch=epoch), draws.at(0, 500, epoch=epoch + 1))


def test_a_restored_reader_draws_on_and_processes_share_the_draws(snapshot: OpenSnapshot) -> None:
    weights = np.random.default_rng(0).random(ROWS)
    whole = [batch.rows for batch in reader_of(snapshot, sample=weights).epoch()]
    again = reader_of(snapshot, sample=weights)
    again.restore({"epoch": 0, "batch": 3})
    halves = [reader_of(snapshot, sample=weights, process=(index, 2)).epoch() for index in range(2)]

    for batch, expected in zip(again.epoch(), whole[3:], strict=True):
        np.testing.assert_array_equal(batch.rows, expected)
        np.testing.assert_array_equal(batch.columns["image"], snapshot.values("image")[batch.rows])
    for one, other, expected in zip(*halves, whole[:-1], strict=False):
        np.testing.assert_array_equal(np.concatenate([one.rows, other.rows]), expected)


def test_the_weight_of_a_sampled_batch_still_marks_padding_and_nothing_else(snapshot: OpenSnapshot) -> None:
    batches = list(reader_of(snapshot, sample="label").epoch())

    assert [batch.weight.tolist() for batch in batches[:-1]] == [[1.0] * 8] * 7
    assert batches[-1].weight.tolist() == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (np.ones(ROWS - 1), "one number for each of the 60 rows"),
        (np.zeros(ROWS), "not all 0"),
        (np.full(ROWS, -1.0), "at least 0"),
        (np.full(ROWS, np.nan), "finite"),
    ],
)
def test_weights_that_say_nothing_are_refused(snapshot: OpenSnapshot, sample: np.ndarray, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        reader_of(snapshot, sample=sample)


def test_sampling_from_windows_is_refused(snapshot: OpenSnapshot) -> None:
    with pytest.raises(InvalidRequest, match="raise ram_bytes above 5"):
        reader_of(snapshot, sample="label", memory=Memory(ram_bytes=5))
