"""Bad input and faults on the way, on a disk and in object stores alike: the old state or the new one, and an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_buckets import make_bucket
from small_datasets import COLUMNS, IMAGE, LABEL, SOURCE, add, content_of

from ceph_server import CephServer
from mms_sdk.errors import DatasetNotFound, InvalidRequest, MmsError, StorageFull
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows, write_column
from mms_sdk.storage.retention import collect_garbage, expire
from mms_sdk.storage.stores.base import Store, Stored
from mms_sdk.storage.stores.opening import store_at
from mms_sdk.storage.stores.remote import Objects, RemoteStore
from mms_sdk.storage.writing import begin

Batch = dict[str, Any]
FLOATS = Column(name="x", kind="number", dtype="float32")
ROWS = 4


@pytest.fixture
def flowers(real_store: Store) -> Dataset:
    """Two snapshots."""
    return filled(real_store.below("flowers"))


def filled(store: Store) -> Dataset:
    dataset = Dataset.create(store, "flowers")
    add(dataset, content_of(7, seed=1))
    add(dataset, content_of(5, seed=2))
    return dataset


def assert_as_it_was(dataset: Dataset) -> None:
    images = np.concatenate([content_of(7, seed=1)["image"], content_of(5, seed=2)["image"]])
    np.testing.assert_array_equal(dataset.snapshot(2).values("image"), images)


def files_in(store: Store) -> set[str]:
    return {each.key for each in store.walk("") if not each.key.endswith("/")}


# What does not fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"label": np.zeros(ROWS, np.int64)},
        {"label": np.zeros(ROWS, np.float32)},
        {"label": np.array([None] * ROWS)},
        {"label": np.array(["cat"] * ROWS)},
        {"label": np.array([object()] * ROWS)},
        {"label": np.zeros((ROWS, 1), np.int32)},
        {"label": np.zeros((), np.int32)},
        {"label": np.ma.MaskedArray(np.zeros(ROWS, np.int32), [True, False, False, False])},
        {"image": np.zeros((ROWS, 6, 8, 3), np.uint8)},
        {"image": np.zeros((ROWS, 8, 6), np.uint8)},
        {"image": np.zeros((ROWS, 8, 6, 3, 1), np.uint8)},
        {"image": np.zeros((ROWS, 8, 6, 3), ">u2")},
        {"image": np.zeros((ROWS, 8, 6, 3), np.complex64)},
        {"image": [np.zeros((8, 6, 3), np.uint8), np.zeros((8, 6, 1), np.uint8)] * 2},
        {"source": ["text"] * ROWS},
        {"source": [b"x", None, b"y", b"z"]},
        {"source": [b"x", 7, b"y", b"z"]},
        {"label": np.zeros(ROWS - 1, np.int32)},
        {"more": np.zeros(ROWS)},
        {"label": None},
        {"label": 5},
    ],
)
def test_a_batch_of_another_dtype_shape_rank_or_length_is_refused_and_leaves_nothing(
    flowers: Dataset, change: Batch
) -> None:
    before = files_in(flowers.store)
    with flowers.writer(COLUMNS) as writer:
        writer.write(content_of(ROWS))
        with pytest.raises(InvalidRequest):
            writer.write({**content_of(ROWS), **change})
    assert files_in(flowers.store) == before
    assert_as_it_was(flowers)


def test_no_rows_are_a_part_of_none(flowers: Dataset) -> None:
    assert add(flowers, content_of(0)) == 3
    snapshot = flowers.snapshot()
    assert snapshot.rows == 12
    assert snapshot.gather("source", np.empty(0, np.int64)) == []
    assert_as_it_was(flowers)
    with pytest.raises(InvalidRequest, match="at least one row"):
        delete_rows(flowers, [], of=snapshot)
    delete_rows(flowers, np.arange(12), of=snapshot)
    assert flowers.snapshot().values("image").shape == (0, *IMAGE.fixed)


def test_numbers_that_are_none_and_infinities_come_back_bit_for_bit(real_store: Store) -> None:
    dataset = Dataset.create(real_store.below("floats"), "floats")
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    values.view(np.uint32)[1] |= 0x12345  # another NaN
    add(dataset, {"x": values}, columns=(FLOATS,))
    assert dataset.snapshot().values("x").tobytes() == values.tobytes()


# Killed at each request ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a process no longer does once it was killed."""


class Mortal:
    """Objects whose process is killed before or after the n-th request that changes something; then nothing is done."""

    def __init__(self, objects: Objects, fatal: int, *, after: bool) -> None:
        self._objects = objects
        self._left = fatal
        self._after = after
        self.died = False

    def _change(self, do: Callable[..., None], *arguments: Any) -> None:
        self._left -= 1
        if self.died or (self._left < 1 and not self._after):
            self.died = True
            raise Killed
        do(*arguments)
        if self._left < 1:
            self.died = True
            raise Killed

    @property
    def url(self) -> str:
        return self._objects.url

    def get(self, key: str, start: int, end: int) -> tuple[bytes, int]:
        return self._objects.get(key, start, end)

    def put(self, key: str, data: bytes) -> None:
        self._change(self._objects.put, key, data)

    def create(self, key: str, data: bytes) -> None:
        self._change(self._objects.create, key, data)

    def upload(self, key: str, file: Path) -> None:
        self._change(self._objects.upload, key, file)

    def stat(self, key: str) -> Stored:
        return self._objects.stat(key)

    def names(self, prefix: str) -> list[str]:
        return self._objects.names(prefix)

    def walk(self, prefix: str) -> Iterator[Stored]:
        return self._objects.walk(prefix)

    def delete(self, keys: list[str]) -> None:
        # S3 removes one after the other; so does whoever dies on the way.
        for key in keys:
            self._change(self._objects.delete, [key])


def mortal(store: Store, copies: Path, fatal: int, *, after: bool) -> tuple[Dataset, Mortal]:
    assert isinstance(store, RemoteStore)
    _, (make, _, size, prefix) = store.__reduce__()
    objects = Mortal(make(), fatal, after=after)
    seen = RemoteStore(lambda: objects, copies=copies, max_bytes=size, prefix=prefix)
    return Dataset.open(seen, "flowers"), objects


FEW = (LABEL, SOURCE)  # the fewer files, the sooner each was the last


def few(rows: int, seed: int) -> Batch:
    return {column.name: content_of(rows, seed=seed)[column.name] for column in FEW}


def appends(dataset: Dataset) -> None:
    add(dataset, few(3, 3), columns=FEW)


def deletes(dataset: Dataset) -> None:
    delete_rows(dataset, [0, 8], of=dataset.snapshot())


def derives(dataset: Dataset) -> None:
    twice = Column(name="twice", kind="number", dtype="int32")
    write_column(dataset, twice, lambda rows: 2 * rows["label"], inputs=["label"], of=dataset.snapshot())


def compacts(dataset: Dataset) -> None:
    compact(dataset, of=dataset.snapshot())


def writes(dataset: Dataset) -> None:
    writing = begin(dataset, None)
    for key in ("a", "b"):
        with writing.writer(key) as writer:
            writer.write(few(3, 3))
    writing.commit(expect=2)


def tidies(dataset: Dataset) -> None:
    expire(dataset)
    collect_garbage(dataset, grace_s=0)


WORK = {each.__name__: each for each in (appends, deletes, derives, compacts, writes, tidies)}


@pytest.mark.torture
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_work_that_is_killed_at_any_request_leaves_the_old_or_the_new_and_can_be_done_again(
    ceph: CephServer, tmp_path: Path, work: Callable[[Dataset], None], after: bool
) -> None:
    store = store_at(make_bucket(ceph.endpoint), copies=tmp_path / "copies")
    labels = np.concatenate([few(7, 1)["label"], few(5, 2)["label"]])
    steps, killed = 0, True
    while killed:
        steps += 1
        place = store.below(f"{steps}/flowers")
        dataset = Dataset.create(place, "flowers")
        add(dataset, few(7, 1), columns=FEW)
        add(dataset, few(5, 2), columns=FEW)
        reader = dataset.snapshot()
        dying, objects = mortal(place, tmp_path / f"copies-{steps}", steps, after=after)
        with contextlib.suppress(Killed):
            work(dying)
        killed = objects.died
        # Another machine, which has copies of nothing, sees one or the other.
        found, _ = mortal(place, tmp_path / f"others-{steps}", 10**9, after=False)
        assert found.snapshots()[-1] in (2, 3)
        found.verify()
        np.testing.assert_array_equal(reader.values("label"), labels)
        if work is not tidies:
            np.testing.assert_array_equal(found.snapshot(2).values("label"), labels)
        work(found)
        found.verify()
        found.snapshot().values("label")
    print(f"{work.__name__} killed {'after' if after else 'before'} each of {steps - 1} requests: none broken")


# Disks that get full -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "moto", pytest.param("ceph", marks=pytest.mark.slow)])
def test_a_disk_that_fills_in_the_middle_of_an_append_keeps_what_there_was(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk(600)
    if where == "local":
        store = store_at(disk / "store")
    else:  # what is written to a store that is far lies here first
        server = request.getfixturevalue(where)
        store = store_at(make_bucket(server if where == "moto" else server.endpoint), copies=disk / "copies")
    dataset = filled(store.below("flowers"))
    held = dataset.snapshot()
    before = files_in(dataset.store)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(300 * 1024))
    for _ in range(2):
        with pytest.raises(StorageFull, match="no space left"):
            add(dataset, content_of(3000, seed=3))
        assert files_in(dataset.store) == before
        np.testing.assert_array_equal(held.gather("image", [6, 7]), dataset.snapshot(2).gather("image", [6, 7]))
    ballast.unlink()
    assert add(dataset, content_of(300, seed=3)) == 3
    assert dataset.verify()[0] == 3
    assert_as_it_was(dataset)


def test_a_dataset_that_was_never_committed_is_none(real_store: Store) -> None:
    dataset = Dataset.create(real_store.below("flowers"), "flowers")
    with pytest.raises(MmsError, match="has no snapshot yet"):
        dataset.snapshot()
    with pytest.raises(DatasetNotFound):
        Dataset.open(real_store.below("roses"), "roses")
