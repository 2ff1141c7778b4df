from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, add, content_of

from mms_sdk.errors import Damaged, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import edits, parts
from mms_sdk.storage import reader as readers
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Batch, Memory, Reader
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

CHUNK = 5  # pictures
SIZES = (33, 2, 18)
NAMES = ("image", "wide", "label", "source")
WIDE = Column(name="wide", kind="embedding", dtype="float32", shape=(20,), profile="zstd")
SPLITS = st.sampled_from([None, "train", "val"])
SEEDS = st.one_of(st.none(), st.integers(0, 2**40))
WINDOWS = st.sampled_from([1, 2 * 224 * CHUNK, 4 * 224 * CHUNK, 2 * 224 * CHUNK * 7, 2**20])


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    """Three parts of compressed rows, some of them deleted."""
    dataset = Dataset.create(LocalStore(tmp_path_factory.mktemp("dataset") / "flowers"), "flowers")
    columns = (*(column.model_copy(update={"profile": "blosc"}) for column in COLUMNS), WIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "COMPRESSED_CHUNK_BYTES", CHUNK * 144)
        for seed, rows in enumerate(SIZES):
            wide = np.random.default_rng(seed).normal(size=(rows, 20)).astype(np.float32)
            add(dataset, {**content_of(rows, seed=seed), "wide": wide}, columns=columns)
    edits.delete_rows(dataset, [0, 5, 6, 7, 8, 9, 32, 40], of=dataset.snapshot())  # a whole chunk is among them
    return dataset.snapshot()


def windowed(snapshot: OpenSnapshot, window_bytes: int = 2**12, **options: Any) -> Reader:
    memory = Memory(rung="window", window_bytes=window_bytes)
    return Reader(snapshot, **{"columns": ("image",), "batch_size": 4, "seed": 0, "memory": memory, **options})


def valid(batch: Batch) -> list[int]:
    return batch.rows[batch.weight == 1].tolist()


def memory_of(batch: Batch) -> int | None:
    """Where the memory of the window begins that a batch is a view of; None if it is a copy, of two windows."""
    array = batch.columns["image"]
    while isinstance(array.base, np.ndarray):
        array = array.base
    return None if array.base is None else array.base.__array_interface__["data"][0]


def forever(reader: Reader) -> Any:
    while True:
        yield from reader.epoch()


def assert_same(batch: Batch, other: Batch) -> None:
    assert batch.position == other.position
    np.testing.assert_array_equal(batch.weight, other.weight)
    np.testing.assert_array_equal(batch.rows, other.rows)
    np.testing.assert_array_equal(batch.columns["image"], other.columns["image"])


@given(split=SPLITS, seed=SEEDS, window_bytes=WINDOWS, batch_size=st.sampled_from([1, 4, 13, 64]))
@settings(max_examples=50, deadline=None)
def test_an_epoch_gives_every_row_of_the_split_once_with_its_values(
    snapshot: OpenSnapshot, split: str | None, seed: int | None, window_bytes: int, batch_size: int
) -> None:
    reader = windowed(snapshot, window_bytes, split=split, seed=seed, batch_size=batch_size, columns=NAMES)
    expected = {name: snapshot.values(name) for name in ("image", "wide", "label")}

    for _ in range(2):
        batches = list(reader.epoch())
        rows = [row for batch in batches for row in valid(batch)]
        assert sorted(rows) == snapshot.split_rows(split).tolist()
        if seed is None:
            assert rows == sorted(rows)
        for batch in batches:
            for name, values in expected.items():
                np.testing.assert_array_equal(batch.columns[name], values[batch.rows])
            assert batch.columns["source"] == snapshot.gather("source", batch.rows)


@given(split=SPLITS, seed=SEEDS, window_bytes=WINDOWS, count=st.sampled_from([2, 3, 6]))
@settings(max_examples=30, deadline=None)
def test_processes_take_disjoint_shares_of_one_order(
    snapshot: OpenSnapshot, split: str | None, seed: int | None, window_bytes: int, count: int
) -> None:
    def batches(process: tuple[int, int]) -> list[Batch]:
        reader = windowed(snapshot, window_bytes, split=split, seed=seed, batch_size=12, process=process)
        return [*reader.epoch(), *reader.epoch()]

    alone = batches((0, 1))
    shared = list(zip(*(batches((index, count)) for index in range(count)), strict=True))

    assert [[row for share in shares for row in valid(share)] for shares in shared] == [valid(each) for each in alone]
    images = snapshot.values("image")
    for share in (share for shares in shared for share in shares):
        np.testing.assert_array_equal(share.columns["image"], images[share.rows])


@given(stop=st.integers(0, 30), seed=SEEDS, window_bytes=WINDOWS, batch_size=st.sampled_from([3, 8, 50]))
@settings(max_examples=40, deadline=None)
def test_a_restored_reader_goes_on_bit_for_bit(
    snapshot: OpenSnapshot, stop: int, seed: int | None, window_bytes: int, batch_size: int
) -> None:
    def reader() -> Reader:
        return windowed(snapshot, window_bytes, seed=seed, batch_size=batch_size)

    whole = list(islice(forever(reader()), stop + 12))
    interrupted = reader()
    list(islice(forever(interrupted), stop))
    again = reader()
    again.restore(json.loads(json.dumps(interrupted.state())))

    for batch, expected in zip(islice(forever(again), 12), whole[stop:], strict=True):
        assert_same(batch, expected)


@given(jumps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), max_size=12), window_bytes=WINDOWS)
@settings(max_examples=20, deadline=None)
def test_any_position_may_be_read_in_any_order(
    snapshot: OpenSnapshot, jumps: list[tuple[int, int]], window_bytes: int
) -> None:
    reader = windowed(snapshot, window_bytes)
    images = snapshot.values("image")

    for epoch, number in jumps:
        reader.restore({**reader.state(), "epoch": epoch, "batch": number})
        batch = next(reader.epoch())
        np.testing.assert_array_equal(batch.columns["image"], images[batch.rows])


def test_an_epoch_is_not_ended_with_windows_of_another_size(snapshot: OpenSnapshot) -> None:
    begun = windowed(snapshot, 1, batch_size=3)
    next(begun.epoch())
    other = windowed(snapshot, 2**30, batch_size=3)

    with pytest.raises(InvalidRequest, match=r"batch 1 of epoch 0 .* windows of .* rows, this reader .* memory="):
        other.restore(begun.state())

    list(begun.epoch())  # to the end, from where any reader may go on
    other.restore(begun.state())
    assert other.state()["epoch"] == 1


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 9), chunks=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_rows_of_a_chunk_come_within_one_window_and_windows_are_bounded(
    snapshot: OpenSnapshot, seed: int, epoch: int, chunks: int
) -> None:
    """Windows found a second time, by greedily filling them with the chunks in the order in which they come."""
    reader = windowed(snapshot, 2 * chunks * CHUNK * 144, seed=seed)
    reader.restore({"epoch": epoch, "batch": 0})
    rows = [row for batch in reader.epoch() for row in valid(batch)]
    live = np.delete(np.arange(sum(SIZES)), [0, 5, 6, 7, 8, 9, 32, 40])
    starts = np.cumsum([0, *SIZES])
    chunk_of, rows_of = {}, {}
    for row, place in enumerate(live.tolist()):
        part = int(np.searchsorted(starts, place, side="right")) - 1
        chunk_of[row] = (part, (place - int(starts[part])) // min(CHUNK, SIZES[part]))
        rows_of.setdefault(chunk_of[row], set()).add(row)

    at = 0
    while at < len(rows):
        window: set[int] = set()
        held = 0
        while at + len(window) < len(rows):  # as long as the rows so far are whole chunks, one more may begin
            chunk = next(chunk_of[row] for row in rows[at:] if row not in window)
            size = min(CHUNK, SIZES[chunk[0]])
            if window == set(rows[at : at + len(window)]) and window and held + size > chunks * CHUNK:
                break
            window |= rows_of[chunk]
            held += size
        assert held <= chunks * CHUNK
        assert set(rows[at : at + len(window)]) == window
        at += len(window)


def test_seeds_and_epochs_and_windows_have_orders_of_their_own(snapshot: OpenSnapshot) -> None:
    orders = set()
    for seed in range(20):
        reader = windowed(snapshot, seed=seed)
        for _ in range(5):
            orders.add(tuple(row for batch in reader.epoch() for row in valid(batch)))

    assert len(orders) == 100


def test_the_rung_is_chosen_by_size_and_told(snapshot: OpenSnapshot) -> None:
    def reader(columns: tuple[str, ...], **sizes: Any) -> Reader:
        return Reader(snapshot, columns=columns, batch_size=4, seed=0, memory=Memory(**sizes))

    size = snapshot.rows * 144
    assert reader(("image",)).rung == "ram"
    assert reader(("image",), ram_bytes=size).rung == "ram"
    assert reader(("image",), ram_bytes=size - 1).rung == "window"
    assert reader(("label", "source"), ram_bytes=0).rung == "mmap"
    assert "rung window" in repr(reader(("image",), ram_bytes=0))
    with pytest.raises(InvalidRequest, match=r"\['image'\] are compressed; use 'ram' or 'window'"):
        reader(("image",), rung="mmap")
    with pytest.raises(InvalidRequest, match="use 'ram' or 'mmap'"):
        reader(("label",), rung="window")


def test_decoded_in_ram_rows_come_in_the_order_of_raw_ones(snapshot: OpenSnapshot, dataset: Dataset) -> None:
    add(dataset, {**content_of(snapshot.rows), "image": snapshot.values("image")})
    raw, ram = (Reader(each, columns=("image",), batch_size=4, seed=3) for each in (dataset.snapshot(), snapshot))

    assert (raw.rung, ram.rung) == ("mmap", "ram")
    for one, other in zip(raw.epoch(), ram.epoch(), strict=True):
        assert_same(one, other)


def test_damage_in_a_window_is_an_error_of_the_batch_that_needs_it(tmp_path: Path) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    add(dataset, content_of(20), columns=tuple(each.model_copy(update={"profile": "zstd"}) for each in COLUMNS))
    path = next((dataset.store.folder / "parts").glob("*/data.zarr/image/c/0/0/0/0"))
    whole = path.read_bytes()
    for at, what in ((-1, "index of shard 0"), (0, "checksum of chunk 0")):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=what):
            list(windowed(dataset.snapshot()).epoch())


def test_the_memory_of_a_window_is_used_again_only_when_nobody_holds_a_batch_of_it(
    snapshot: OpenSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 1)  # so that batches are gathered one by one
    images = snapshot.values("image")
    reader = windowed(snapshot, 4 * CHUNK * 144, seed=1, batch_size=3)
    held = [batch for _ in range(4) for batch in reader.epoch()]
    for batch in held:
        np.testing.assert_array_equal(batch.columns["image"], images[batch.rows])

    del held, batch
    used = {memory_of(batch) for _ in range(4) for batch in reader.epoch()} - {None}
    assert 2 <= len(used) <= 4  # what is read, what is decoded, and what this loop and the reader hold; of 12 windows


def test_columns_beside_the_largest_may_be_without_values(tmp_path: Path) -> None:
    dataset = Dataset.create(LocalStore(tmp_path / "flowers"), "flowers")
    side = Column(name="side", kind="embedding", dtype="float32", shape=(20,), profile="zstd", nullable=True)
    image = COLUMNS[0].model_copy(update={"profile": "blosc"})
    values = np.ma.MaskedArray(np.random.default_rng(0).normal(size=(33, 20)).astype(np.float32), mask=False)
    values[3:9] = np.ma.masked
    add(dataset, {"image": content_of(33)["image"], "side": values}, columns=(image, side))
    reader = Reader(dataset.snapshot(), columns=("image", "side"), batch_size=8, seed=0, memory=Memory(rung="window"))
    for batch in reader.epoch():
        np.testing.assert_array_equal(batch.columns["side"].mask, values.mask[batch.rows])
        np.testing.assert_array_equal(batch.columns["side"].filled(0), values.filled(0)[batch.rows])


def test_a_window_that_could_not_be_read_is_read_when_it_is_asked_for_again(
    snapshot: OpenSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = OpenSnapshot.read_chunk, [1, 2]

    def away(opened: OpenSnapshot, *arguments: Any) -> None:
        if left:
            left.pop()
            raise OSError("the store is away")
        read(opened, *arguments)

    reader = windowed(snapshot, 2**20)
    monkeypatch.setattr(OpenSnapshot, "read_chunk", away)
    with pytest.raises(OSError, match="away"):
        list(reader.epoch())
    left.clear()
    assert sum(len(valid(batch)) for batch in reader.epoch()) == snapshot.rows


def test_a_batch_of_a_window_cannot_be_changed_under_those_who_read_it_again(
    snapshot: OpenSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 1)
    batch = next(iter(windowed(snapshot, 2**20).epoch()))
    with pytest.raises(ValueError, match="read-only"):
        batch.columns["image"][:] = 0
