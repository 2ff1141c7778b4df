"""Loading: rows of a split become batches on the devices before the loop asks for them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil

from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.sharding.mesh import batch_share
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.reader import Block, Position, Reader, batches_together
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_AHEAD = 2
_LEAVE_S = 5.0
_CACHE_SHARE = 0.25  # of the memory that is free: the rest is for the model and for other people
_T = TypeVar("_T")


class DeviceBatch(NamedTuple):  # made for every step, and half as dear as a frozen dataclass
    """One batch on the devices.

    Attributes:
        inputs: uint8 or float, shape (batch, *host shape).
        labels: int32, shape (batch,).
        weight: float32, shape (batch,): 0 for padding.
        position: Where the reader stands after it.
    """

    inputs: Any
    labels: Any
    weight: Any
    position: Position


class Pictures:
    """Pictures of a snapshot after the host part of preprocessing.

    What takes decoding is decoded once and kept, where it fits into memory.

    Args:
        snapshot: Where they lie.
        rows: Which may be asked for, ascending.
        pipeline: Its host part is applied.
    """

    def __init__(self, snapshot: OpenSnapshot, rows: Rows, pipeline: Pipeline) -> None:
        self._snapshot = snapshot
        self._column = snapshot.column("image")
        self._pipeline = pipeline
        self._rows = rows
        self.shape = pipeline.host_shape(_stored_shape(self._column, pipeline))
        self.direct = not self._column.varies and not pipeline.host
        size = len(rows) * int(np.prod(self.shape))
        fits = not self.direct and size <= _CACHE_SHARE * psutil.virtual_memory().available
        self._cache = np.empty((len(rows), *self.shape), np.uint8) if fits else None
        self._cached = np.zeros(len(rows), bool)

    def gather(self, rows: Rows) -> Array:
        """uint8 of shape (n, *shape)."""
        if self.direct:
            return np.asarray(self._snapshot.gather("image", rows))
        if self._cache is None:
            return self._decoded(rows)
        places = np.searchsorted(self._rows, rows)
        missing = np.unique(places[~self._cached[places]])
        if len(missing):
            self._cache[missing] = self._decoded(self._rows[missing])
            self._cached[missing] = True
        return self._cache[places]

    def _decoded(self, rows: Rows) -> Array:
        return self.prepared(self._snapshot.gather("image", rows))

    def prepared(self, stored: Any) -> Array:
        """Pictures as they are stored, after the host part: uint8 of shape (n, *shape)."""
        if self.direct:
            return np.asarray(stored)
        if self._column.varies:
            work: Callable[[Any], Array] = self._decode
        else:
            work = self._pipeline.on_row
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return np.stack(list(pool.map(work, stored)))

    def _decode(self, data: bytes) -> Array:
        return self._pipeline.on_row(image.decode(data, color=self._column.color or "rgb", max_pixels=2**31))


def _stored_shape(column: Column, pipeline: Pipeline) -> tuple[int, ...] | None:
    if column.varies and pipeline.host:
        return (-1, -1, image.CHANNELS[column.color or "rgb"])  # any size; the first host step makes it one
    return None if column.varies else column.fixed


class Loader:
    """Batches of one split on the devices.

    Args:
        snapshot: Where the rows lie.
        split: Which rows.
        pipeline: Its host part is applied.
        batch_size: Rows in a batch over all processes.
        seed: Chooses the order; None for row order.
        sharding: How a batch lies on the devices.
        target: Column that says what the answer is; None for tasks whose inputs do.
        sample: Column of whose values each comes as often as the others; None takes each row once.
    """

    def __init__(
        self,
        snapshot: OpenSnapshot,
        split: str | None,
        *,
        pipeline: Pipeline,
        batch_size: int,
        seed: int | None,
        sharding: Any,
        target: str | None = "label",
        sample: str | None = None,
    ) -> None:
        process = batch_share(sharding)
        self.reader = Reader(
            snapshot, split, columns=("image",), batch_size=batch_size, seed=seed, process=process, sample=sample
        )
        self._target = target
        self.pictures = Pictures(snapshot, snapshot.split_rows(split), pipeline)
        self._snapshot = snapshot
        self._sharding = sharding
        self._shares = process[1]
        self._place = self._as_it_is if _host_is_device(sharding) else self._placed
        share = batch_size // process[1]
        self._together = batches_together(share * int(np.prod(self.pictures.shape)))
        self._full = self._placed(np.ones(share, np.float32))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a row when it reaches the device."""
        return self.pictures.shape

    def epoch(self, at: Position) -> Generator[DeviceBatch]:
        """The rest of an epoch, from a position on."""
        for group in ahead(self._groups(at), _AHEAD):
            yield from group

    def _groups(self, at: Position) -> Iterator[list[DeviceBatch]]:
        while at.batch < self.reader.batches:
            block = self.reader.block(at, self._together)
            rows = block.rows.ravel()
            pictures = self._pictures(block).reshape(*block.rows.shape, *self.pictures.shape)
            labels = self._targets(rows, block)
            # Padding stands at the end of an epoch, so most batches need no weights of their own.
            weights = [self._full if weight[-1] else self._placed(weight) for weight in block.weight]
            placed = map(self._place, pictures), map(self._place, labels)
            yield list(map(DeviceBatch, *placed, weights, block.positions))
            at = block.positions[-1]

    def _targets(self, rows: Rows, block: Block) -> Array:
        if self._target is None:  # the inputs say it
            return np.zeros(block.rows.shape, np.int32)
        found = np.ma.getdata(self._snapshot.gather(self._target, rows))
        found = found.astype(np.float32) if found.dtype.kind == "f" else found.astype(np.int32, copy=False)
        return found.reshape(*block.rows.shape, *found.shape[1:])

    def _pictures(self, block: Block) -> Array:
        # By windows each picture is decoded once an epoch, and there are too many to keep what preprocessing makes.
        if self.pictures.direct or self.reader.rung == "window":
            return self.pictures.prepared(self.reader.gather("image", block))
        return self.pictures.gather(block.rows.ravel())

    def _placed(self, array: Array) -> Any:
        import jax

        if jax.process_count() == 1:
            return jax.device_put(array, self._sharding)
        whole = (len(array) * self._shares, *array.shape[1:])
        return jax.make_array_from_process_local_data(self._sharding, array, whole)

    def _as_it_is(self, array: Array) -> Array:
        return array


def _host_is_device(sharding: Any) -> bool:
    # One CPU reads a NumPy array where it lies; placing it first costs more than a small training step.
    devices = sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def ahead(items: Iterator[_T], count: int) -> Iterator[_T]:
    """The same items, made up to `count` ahead by a thread of their own, which ends when the consumer stops."""
    ready: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(count)
    stop = threading.Event()

    def make() -> None:
        try:
            for item in items:
                if not _put(ready, (item, None), stop):
                    return
            _put(ready, (None, None), stop)
        except BaseException as error:  # noqa: BLE001  (raised again by the consumer)
            _put(ready, (None, error), stop)

    thread = threading.Thread(target=make, name="mms-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join(_LEAVE_S)  # a read that hangs, on a disk that is gone, keeps nobody: the thread is a daemon


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
