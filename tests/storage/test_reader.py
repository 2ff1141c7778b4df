from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import ColumnNotFound, Damaged, InvalidRequest, SplitNotFound
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import chunks
from mms_sdk.storage import columns as gathering
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.permutation import permuted
from mms_sdk.storage.reader import Batch, Memory, Reader, Rung
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

SIZE = 41


def order(size: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(size, dtype=np.int64), size=size, seed=seed, epoch=epoch)


def valid(batch: Batch) -> list[int]:
    """Row numbers of a batch without its padding."""
    return batch.rows[batch.weight == 1].tolist()


def merged(shares: tuple[Batch, ...]) -> list[int]:
    return [row for share in shares for row in valid(share)]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    dataset = Dataset.create(LocalStore(tmp_path_factory.mktemp("dataset") / "flowers"), "flowers")
    add(dataset, content_of(30))
    add(dataset, content_of(SIZE - 30, seed=1))
    return dataset.snapshot()


class Numbers:
    """A snapshot of so many rows without a byte on disk."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def column(self, name: str) -> Column:
        return Column(name=name, kind="number", dtype="int64")

    def split_rows(self, _split: str | None) -> np.ndarray:
        return np.arange(self.rows, dtype=np.int64)

    def gather(self, _name: str, rows: np.ndarray) -> np.ndarray:
        return rows * 2


# The order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**63, 7), (-5, 1000)])
def test_every_row_comes_once_whatever_the_size(seed: int, epoch: int) -> None:
    for size in range(1, 301):
        np.testing.assert_array_equal(np.sort(order(size, seed=seed, epoch=epoch)), np.arange(size))


@given(size=st.integers(1, 20_000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
@settings(max_examples=40)
def test_every_row_comes_once_whatever_the_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    assert len(np.unique(order(size, seed=seed, epoch=epoch))) == size


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32), chosen=st.data())
@settings(max_examples=40)
def test_a_position_has_its_row_whichever_others_are_asked_with_it(size: int, seed: int, chosen: st.DataObject) -> None:
    positions = np.array(chosen.draw(st.lists(st.integers(0, size - 1), max_size=20)), np.int64)

    found = permuted(positions, size=size, seed=seed, epoch=3)

    np.testing.assert_array_equal(found, order(size, seed=seed, epoch=3)[positions])


def test_the_order_is_the_published_one_so_that_runs_can_be_continued_after_an_upgrade() -> None:
    """Written a second time with Python's whole numbers: Feistel rounds, keys of NumPy's SeedSequence, two products."""
    everything = 2**32 - 1

    def mix(value: int, bits: int) -> int:
        value = value * 0x85EBCA6B & everything
        value = (value ^ value >> 15) * 0xC2B2AE35 & everything
        return value >> 32 - bits

    def at(position: int, size: int, seed: int, epoch: int) -> int:
        bits = max(2, (size - 1).bit_length())
        rounds = 6 if bits >= 8 else 12
        keys = np.random.SeedSequence([seed, epoch]).generate_state(rounds, np.uint32).tolist()
        while True:
            low_bits = bits // 2
            high, low = divmod(position, 2**low_bits)
            for key in keys:
                low, high = high, low ^ mix((high + key) & everything, low_bits)
                low_bits = bits - low_bits
            position = high * 2 ** (bits // 2) + low
            if position < size:
                return position

    for size, seed, epoch in ((2, 0, 0), (3, 1, 2), (100, 7, 3), (1797, 0, 0), (1025, 2**40, 9)):
        expected = [at(position, size, seed, epoch) for position in range(size)]
        assert order(size, seed=seed, epoch=epoch).tolist() == expected


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {tuple(order(60, seed=seed, epoch=epoch)) for seed in range(30) for epoch in range(30)}

    assert len(orders) == 900


@pytest.mark.parametrize(("size", "bound"), [(10, 33.7), (17, 49.0), (33, 74.5)])
def test_every_row_comes_first_about_as_often(size: int, bound: float) -> None:
    # `bound`: the 99.99 % quantile of chi-square with size - 1 degrees of freedom.
    draws = 100 * size
    firsts = Counter(int(permuted(np.zeros(1, np.int64), size=size, seed=seed, epoch=0)[0]) for seed in range(draws))

    assert sum((firsts[row] - 100) ** 2 / 100 for row in range(size)) < bound


@pytest.mark.parametrize("size", [5, 6, 16])
def test_every_pair_of_rows_comes_first_about_as_often(size: int) -> None:
    pairs = size * (size - 1)
    draws = (tuple(permuted(np.arange(2), size=size, seed=3, epoch=epoch).tolist()) for epoch in range(20 * pairs))

    counts = Counter(draws)

    assert len(counts) == pairs
    chi_square = sum((count - 20) ** 2 / 20 for count in counts.values())
    assert chi_square < pairs + 4.5 * (2 * pairs) ** 0.5 + 5  # mean and standard deviation of chi-square


def test_neighbours_are_torn_apart() -> None:
    shuffled = order(10_000, seed=1)

    # For a random order, neighbours are n/3 apart on average, one position stays in place on average.
    assert abs(np.abs(np.diff(shuffled)).mean() - 10_000 / 3) < 150
    assert np.sum(shuffled == np.arange(10_000)) < 8
    assert abs(np.corrcoef(shuffled, np.arange(10_000))[0, 1]) < 0.04


# The reader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 41, 64])
def test_an_epoch_gives_every_row_once_and_padding_without_weight(
    snapshot: OpenSnapshot, seed: int | None, batch_size: int
) -> None:
    reader = Reader(snapshot, columns=("image", "label", "source"), batch_size=batch_size, seed=seed)
    images, labels = snapshot.values("image"), snapshot.values("label")

    batches = list(reader.epoch())

    assert sorted(row for batch in batches for row in valid(batch)) == list(range(SIZE))
    assert len(batches) == reader.batches == -(-SIZE // batch_size)
    for batch in batches:
        assert len(batch.rows) == len(batch.weight) == batch_size
        assert set(batch.weight.tolist()) <= {0.0, 1.0}
        assert batch.weight.dtype == np.float32
        np.testing.assert_array_equal(batch.columns["image"], images[batch.rows])
        np.testing.assert_array_equal(batch.columns["label"], labels[batch.rows])
        assert batch.columns["source"] == snapshot.gather("source", batch.rows)


def test_without_a_seed_rows_come_in_row_order(snapshot: OpenSnapshot) -> None:
    reader = Reader(snapshot, columns=("label",), batch_size=8)

    for _ in range(2):
        assert [row for batch in reader.epoch() for row in valid(batch)] == list(range(SIZE))


def test_a_split_is_read_and_nothing_else(snapshot: OpenSnapshot) -> None:
    reader = Reader(snapshot, "val", columns=("label",), batch_size=4, seed=5)

    found = [row for batch in reader.epoch() for row in valid(batch)]

    assert sorted(found) == np.flatnonzero(snapshot.values("split") == 1).tolist()
    assert reader.rows == len(found)


@given(
    rows=st.integers(1, 70),
    batch_size=st.sampled_from([4, 8, 12, 24]),
    count=st.sampled_from([2, 4]),
    seed=st.one_of(st.none(), st.integers(0, 100)),
)
@settings(max_examples=60)
def test_the_order_does_not_depend_on_the_number_of_processes(
    rows: int, batch_size: int, count: int, seed: int | None
) -> None:
    def batches(process: tuple[int, int]) -> list[Batch]:
        reader = Reader(Numbers(rows), columns=("number",), batch_size=batch_size, seed=seed, process=process)  # type: ignore[arg-type]
        return [*reader.epoch(), *reader.epoch()]

    alone = batches((0, 1))
    shared = list(zip(*(batches((index, count)) for index in range(count)), strict=True))

    assert [merged(shares) for shares in shared] == [valid(batch) for batch in alone]
    assert all(len(share.rows) == batch_size // count for shares in shared for share in shares)


@given(
    stop=st.integers(0, 17),
    batch_size=st.sampled_from([1, 3, 8, 50]),
    rows=st.integers(1, 50),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
@settings(max_examples=80)
def test_a_restored_reader_goes_on_as_if_nothing_had_happened(
    stop: int, batch_size: int, rows: int, seed: int | None
) -> None:
    def reader() -> Reader:
        return Reader(Numbers(rows), columns=("number",), batch_size=batch_size, seed=seed)  # type: ignore[arg-type]

    def forever(one: Reader) -> Any:
        while True:
            yield from one.epoch()

    whole = list(islice(forever(reader()), stop + 10))
    interrupted = reader()
    stream = forever(interrupted)
    for _ in range(stop):
        next(stream)
    state = json.loads(json.dumps(interrupted.state()))
    again = reader()
    again.restore(state)

    rest = list(islice(forever(again), 10))

    assert [valid(batch) for batch in rest] == [valid(batch) for batch in whole[stop:]]
    assert [batch.position for batch in rest] == [batch.position for batch in whole[stop:]]


def test_the_position_in_a_batch_is_where_to_go_on_after_it(snapshot: OpenSnapshot) -> None:
    reader = Reader(snapshot, columns=("label",), batch_size=8, seed=0)
    batches = list(reader.epoch())

    for number, batch in enumerate(batches[:-1]):
        again = Reader(snapshot, columns=("label",), batch_size=8, seed=0)
        again.restore({"epoch": batch.position.epoch, "batch": batch.position.batch})
        np.testing.assert_array_equal(next(again.epoch()).rows, batches[number + 1].rows)


def test_reading_far_into_a_large_epoch_neither_walks_there_nor_keeps_its_order() -> None:
    rows = 2_000_000
    reader = Reader(Numbers(rows), columns=("number",), batch_size=256, seed=0)  # type: ignore[arg-type]
    expected = permuted(np.arange(7000 * 256, 7001 * 256), size=rows, seed=0, epoch=3)

    tracemalloc.start()
    reader.restore({"epoch": 3, "batch": 7000})
    batch = next(reader.epoch())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    np.testing.assert_array_equal(batch.rows, expected)
    assert peak < rows  # bytes; an order kept for the epoch would take eight a row


def test_the_state_is_two_integers(snapshot: OpenSnapshot) -> None:
    reader = Reader(snapshot, columns=("label",), batch_size=8, seed=0)
    next(reader.epoch())

    assert reader.state() == {"epoch": 0, "batch": 1, "window_rows": 0}


@pytest.mark.parametrize(("batch_size", "count"), [(0, 1), (-1, 1), (6, 4), (1, 2)])
def test_a_batch_that_does_not_divide_over_the_processes_is_refused(
    snapshot: OpenSnapshot, batch_size: int, count: int
) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"{batch_size} rows do not divide over {count} processes; use a multiple"
    ):
        Reader(snapshot, columns=("label",), batch_size=batch_size, process=(0, count))


def test_columns_and_splits_that_do_not_exist_are_refused_before_anything_is_read(snapshot: OpenSnapshot) -> None:
    with pytest.raises(ColumnNotFound):
        Reader(snapshot, columns=("label", "audio"), batch_size=8)
    with pytest.raises(SplitNotFound):
        Reader(snapshot, "holdout", columns=("label",), batch_size=8)


@pytest.mark.parametrize(
    ("profile", "rung"), [("raw", "mmap"), ("raw", "ram"), ("blosc", "ram"), ("blosc", "window"), ("zstd", "window")]
)
def test_after_a_warm_up_no_checksum_is_compared_any_more(
    tmp_path: Path, profile: str, rung: Rung, monkeypatch: pytest.MonkeyPatch, many_chunks: None
) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    columns = tuple(column.model_copy(update={"profile": profile}) for column in COLUMNS)
    for seed in (0, 1):
        add(dataset, content_of(23, seed=seed), columns=columns)
    memory = Memory(rung=rung)
    reader = Reader(dataset.snapshot(), columns=("image", "source", "label"), batch_size=4, seed=0, memory=memory)
    assert reader.warm_up() > 46 * 144 / 2

    def refused(_: bytes) -> int:
        raise AssertionError("a checksum was compared")

    monkeypatch.setattr(chunks, "crc32c", refused)
    monkeypatch.setattr(gathering, "crc32c", refused)
    assert sum(len(valid(batch)) for batch in reader.epoch()) == 46


@pytest.mark.parametrize("profile", ["raw", "blosc"])
@pytest.mark.parametrize("array", ["image", "source_data", "label"])
def test_a_warm_up_finds_what_is_damaged(tmp_path: Path, profile: str, array: str, many_chunks: None) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    add(dataset, content_of(23), columns=tuple(column.model_copy(update={"profile": profile}) for column in COLUMNS))
    path = max(path for path in (tmp_path / "flowers").rglob(f"{array}/c/**/*") if path.is_file())
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    reader = Reader(dataset.snapshot(), columns=("image", "source", "label"), batch_size=4, seed=0)
    with pytest.raises(Damaged, match="checksum"):
        reader.warm_up()
