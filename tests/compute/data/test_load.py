from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from make_datasets import ingested
from make_pictures import noise, write

from mms_sdk.compute.data import load
from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.load import Inputs, Loader, ahead
from mms_sdk.compute.data.preprocess.image import Resize
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.storage import edits, parts
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Memory, Position, Reader
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

ROWS = 30


def make(root: Path, *, sizes: list[tuple[int, int]]) -> OpenSnapshot:
    for number in range(ROWS):
        size = sizes[number % len(sizes)]
        write(root / "photos" / "cd"[number % 2] / f"{number:02d}.png", noise(*size, seed=number))
    return ingested(root, root / "photos")[0].snapshot()


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    """Pictures of one size, kept as pixels."""
    return make(tmp_path_factory.mktemp("same"), sizes=[(6, 5)])


@pytest.fixture(scope="module")
def various(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    """Pictures of three sizes, kept as the bytes of their files."""
    return make(tmp_path_factory.mktemp("various"), sizes=[(6, 5), (9, 4), (7, 11)])


def stored(snapshot: OpenSnapshot) -> list[np.ndarray]:
    """Every picture as its file was made."""
    numbers = [int(source[2:4]) for source in snapshot.gather("source", np.arange(ROWS))]
    sizes = [(6, 5)] if snapshot.column("image").shape else [(6, 5), (9, 4), (7, 11)]
    return [noise(*sizes[number % len(sizes)], seed=number) for number in numbers]


def resized(snapshot: OpenSnapshot, *size: int) -> np.ndarray:
    return np.stack([image.resize(picture, size) for picture in stored(snapshot)])  # type: ignore[arg-type]


def one_device() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def spread() -> Any:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


# Pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_kept_as_pixels_come_out_as_they_went_in(same: OpenSnapshot) -> None:
    pictures = Inputs(same, np.arange(ROWS), Pipeline())

    np.testing.assert_array_equal(pictures.gather(np.array([3, 0, 29, 3])), np.stack(stored(same))[[3, 0, 29, 3]])
    assert pictures.shape == (6, 5, 3)


@pytest.mark.parametrize("name", ["same", "various"])
def test_pictures_that_are_prepared_are_the_same_whether_they_are_kept_or_made_anew(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = request.getfixturevalue(name)
    pipeline = Pipeline.of([Resize(8, 4)])
    expected = resized(snapshot, 8, 4)
    orders = [np.random.default_rng(seed).integers(0, ROWS, 12) for seed in range(4)]

    kept = Inputs(snapshot, np.arange(ROWS), pipeline)
    monkeypatch.setattr(load, "_CACHE_SHARE", 0.0)
    anew = Inputs(snapshot, np.arange(ROWS), pipeline)

    for rows in orders:
        np.testing.assert_array_equal(kept.gather(rows), expected[rows])
        np.testing.assert_array_equal(anew.gather(rows), expected[rows])


def test_what_was_decoded_is_not_decoded_again(various: OpenSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = image.decode
    monkeypatch.setattr(image, "decode", lambda data, **named: (decoded.append(data), decode(data, **named))[1])
    rows = np.array([2, 5, 7, 11, 20])
    pictures = Inputs(various, rows, Pipeline.of([Resize(4)]))

    first = pictures.gather(np.array([5, 5, 20]))
    again = pictures.gather(np.array([20, 11, 5]))

    assert len(decoded) == 3
    np.testing.assert_array_equal(again[[2, 2, 0]], first)
    np.testing.assert_array_equal(pictures.gather(rows), resized(various, 4, 4)[rows])
    assert len(decoded) == 5


def test_what_was_gathered_may_be_changed_without_spoiling_what_is_kept(various: OpenSnapshot) -> None:
    pictures = Inputs(various, np.arange(ROWS), Pipeline.of([Resize(4)]))
    pictures.gather(np.arange(5))[:] = 0

    np.testing.assert_array_equal(pictures.gather(np.arange(5)), resized(various, 4, 4)[:5])


# Loader -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharding", [one_device, spread])
@pytest.mark.parametrize("name", ["same", "various"])
def test_an_epoch_brings_every_row_of_the_split_once_with_its_label(
    sharding: Any, name: str, request: pytest.FixtureRequest
) -> None:
    snapshot = request.getfixturevalue(name)
    pipeline = Pipeline.of([Resize(8, 4)])
    loader = Loader(snapshot, "train", pipeline=pipeline, batch_size=8, seed=3, sharding=sharding())
    expected, labels = resized(snapshot, 8, 4), snapshot.values("label")

    batches = list(loader.epoch(Position()))

    seen = []
    for batch in batches:
        for picture, label, weight in zip(*map(np.asarray, (batch.inputs, batch.labels, batch.weight)), strict=True):
            matches = np.flatnonzero((expected == picture).all((1, 2, 3)))
            assert len(matches) == 1
            assert labels[matches[0]] == label
            if weight:
                seen.append(int(matches[0]))
    assert sorted(seen) == snapshot.split_rows("train").tolist()
    assert loader.input_shape == (8, 4, 3)
    assert [batch.position.batch for batch in batches] == list(range(1, len(batches) + 1))


def test_batches_lie_on_the_devices_as_they_were_asked_to(same: OpenSnapshot) -> None:
    loader = Loader(same, "train", pipeline=Pipeline(), batch_size=8, seed=0, sharding=spread())

    batch = next(loader.epoch(Position()))

    for array in (batch.inputs, batch.labels, batch.weight):
        assert array.sharding.is_equivalent_to(spread(), array.ndim)
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {1}


def test_an_epoch_goes_on_from_any_position_as_if_it_had_not_stopped(same: OpenSnapshot) -> None:
    def batches(at: Position) -> list[Any]:
        loader = Loader(same, "train", pipeline=Pipeline(), batch_size=4, seed=0, sharding=one_device())
        return list(loader.epoch(at))

    for epoch in (0, 2):
        whole = batches(Position(epoch=epoch))
        for stop in range(len(whole)):
            rest = batches(Position(epoch=epoch, batch=stop))
            assert len(rest) == len(whole) - stop
            for one, other in zip(rest, whole[stop:], strict=True):
                np.testing.assert_array_equal(one.inputs, other.inputs)
                np.testing.assert_array_equal(one.weight, other.weight)
                assert one.position == other.position


@pytest.mark.parametrize("rung", ["ram", "window"])
@pytest.mark.parametrize("pipeline", [Pipeline(), Pipeline.of([Resize(8, 4)])])
def test_compressed_pictures_are_loaded_by_every_rung(
    tmp_path: Path, rung: Any, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make(tmp_path, sizes=[(6, 5)])
    dataset = Dataset.open(LocalStore(tmp_path / "flowers"), "flowers")
    column = raw.column("image").model_copy(update={"profile": "blosc"})
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 4 * 90)
    monkeypatch.setattr(load, "Reader", partial(Reader, memory=Memory(rung=rung, window_bytes=3 * 2 * 4 * 90)))
    edits.write_column(dataset, column, lambda batch: batch["image"], inputs=("image",), of=raw)
    snapshot = dataset.snapshot()
    loader = Loader(snapshot, "train", pipeline=pipeline, batch_size=4, seed=3, sharding=one_device())

    batches = list(loader.epoch(Position()))

    expected = resized(snapshot, 8, 4) if pipeline.host else snapshot.values("image")
    rows = [loader.reader.block(Position(batch=number), 1).rows[0] for number in range(len(batches))]
    assert loader.reader.rung == rung
    for batch, numbers in zip(batches, rows, strict=True):
        np.testing.assert_array_equal(batch.inputs, expected[numbers])
        np.testing.assert_array_equal(batch.labels, snapshot.values("label")[numbers])


# ahead ------------------------------------------------------------------------------------------------------------


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mms-ahead"]


def test_the_items_are_the_same_in_the_same_order() -> None:
    assert list(ahead(iter(range(100)), 3)) == list(range(100))
    assert list(ahead(iter(()), 3)) == []
    assert reading_threads() == []


def test_items_are_made_while_the_consumer_works_and_no_more_than_so_many() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    stream = ahead(items(), 3)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)

    assert len(made) == 5  # one was taken, three are ready, one waits for room
    stream.close()


def test_the_thread_ends_when_the_consumer_stops_early() -> None:
    def forever() -> Iterator[int]:
        while True:
            yield 1

    stream = ahead(forever(), 2)
    assert next(stream) == 1
    assert len(reading_threads()) == 1

    stream.close()
    assert reading_threads() == []


def test_the_thread_ends_when_the_consumer_fails() -> None:
    def consume() -> None:
        for number in ahead(iter(range(1000)), 2):
            if number == 3:
                raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        consume()
    deadline = time.monotonic() + 10
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert reading_threads() == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_error_of_the_producer_reaches_the_consumer_after_what_was_made_before(kind: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise kind("the disk is gone")

    stream = ahead(items(), 8)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(kind, match="the disk is gone"):
        next(stream)
    assert reading_threads() == []
