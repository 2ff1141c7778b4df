"""Loading: rows of a split become batches on the devices before the loop asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil

from mms_sdk.compute.data.kinds.rows import RowKind, kind_of
from mms_sdk.compute.data.preprocess.pipeline import Pipeline, in_threads
from mms_sdk.compute.data.preprocess.table import Encode
from mms_sdk.compute.sharding.mesh import batch_share, stacked
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.reader import Block, Position, Reader, batches_together
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_AHEAD = 2
_LEAVE_S = 5.0
_CACHE_SHARE = 0.25  # of the memory that is free: the rest is for the model and for other people
_FIT_ROWS = 4096
_ROW_KINDS = ("image", "text", "audio", "series", "embedding", "table")
_T = TypeVar("_T")


class DeviceBatch(NamedTuple):  # made for every step, and half as dear as a frozen dataclass
    """One batch on the devices; or several for one call, with their number as a first dimension of each array.

    Attributes:
        inputs: uint8 pixels, int32 ids or float32, shape (batch, *host shape).
        labels: int32 codes or float32, shape (batch, *target shape).
        weight: float32, shape (batch,): 0 for padding.
        position: Where the reader stands after it, or after the last of them.
    """

    inputs: Any
    labels: Any
    weight: Any
    position: Position


class Inputs:
    """What a model sees of the rows of a snapshot, after the host part of preprocessing.

    What takes decoding is decoded once and kept, where it fits into memory.

    Args:
        snapshot: Where they lie.
        rows: Which may be asked for, ascending.
        pipeline: Its host part is applied; fitted.
        columns: Names of the columns that a row is made of.

    Raises:
        DataError: Some of the rows have no value.
        InvalidRequest: The columns or the host part do not go together, or rows differ in shape.
    """

    def __init__(
        self, snapshot: OpenSnapshot, rows: Rows, pipeline: Pipeline, columns: Sequence[str] = ("image",)
    ) -> None:
        self._snapshot = snapshot
        self.columns = tuple(snapshot.column(name) for name in columns)
        self.kind = kind_of(self.columns)
        self._pipeline = pipeline
        self._rows = rows
        _refuse_missing(snapshot, rows, self.columns, self.kind)
        self.shape, self.dtype = host_form(pipeline, self.kind)
        stored = self.columns[0]
        self.direct = not pipeline.host and not stored.varies and stored.dtype == self.dtype
        size = len(rows) * int(np.prod(self.shape)) * self.dtype.itemsize
        fits = not self.direct and size <= _CACHE_SHARE * psutil.virtual_memory().available
        self._cache = np.empty((len(rows), *self.shape), self.dtype) if fits else None
        self._cached = np.zeros(len(rows), bool)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def gather(self, rows: Rows) -> Array:
        """Array of shape (n, *shape)."""
        if self.direct:
            return np.asarray(self._snapshot.gather(self.columns[0].name, rows))
        if self._cache is None:
            return self._decoded(rows)
        places = np.searchsorted(self._rows, rows)
        missing = np.unique(places[~self._cached[places]])
        if len(missing):
            self._cache[missing] = self._decoded(self._rows[missing])
            self._cached[missing] = True
        return self._cache[places]

    def _decoded(self, rows: Rows) -> Array:
        return self.prepared([self._snapshot.gather(column.name, rows) for column in self.columns])

    def prepared(self, stored: Sequence[Any]) -> Array:
        """Rows out of what the columns hold, one entry of `stored` a column, after the host part: (n, *shape)."""
        if self.direct:
            return np.asarray(stored[0])
        return on_host(self._pipeline, self.kind, stored).reshape(-1, *self.shape)


class Targets:
    """What a model is to answer: a column of a snapshot.

    Args:
        snapshot: Where it lies.
        rows: Which may be asked for.
        name: Its name; None for a task that has none, which gets zeros.

    Raises:
        DataError: Some of the rows have no value, or the column holds nothing that can be predicted.
    """

    def __init__(self, snapshot: OpenSnapshot, rows: Rows, name: str | None) -> None:
        self._snapshot = snapshot
        self._column = None if name is None else snapshot.column(name)
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.int32)
        if self._column is None:
            return
        if self._column.varies:
            raise DataError(
                f"a target is a label, a category, a number or an array of one shape; column {name!r} of "
                f"{snapshot.ref} is {self._column.kind}, {self._column.form}"
            )
        _refuse_missing(snapshot, rows, (self._column,), None)
        self.shape = self._column.fixed
        if self._column.labels is None:
            self.dtype = np.dtype(np.float32)

    def gather(self, rows: Rows) -> Array:
        """int32 codes of labels and categories, float32 numbers: shape (n, *shape)."""
        if self._column is None:
            return np.zeros(len(rows), np.int32)
        return np.asarray(self._snapshot.gather(self._column.name, rows)).astype(self.dtype, copy=False)


def fitted(snapshot: OpenSnapshot, pipeline: Pipeline, columns: Sequence[str]) -> tuple[Pipeline, Inputs]:
    """The pipeline, fitted on the training rows, and what it makes of them.

    Rows of a table that no host step takes are encoded by `mms.table.Encode()`.

    Args:
        snapshot: Where they lie.
        pipeline: As the person wrote it.
        columns: What a row is made of.
    """
    rows = snapshot.split_rows("train")
    described = tuple(snapshot.column(name) for name in columns)
    kind = kind_of(described)
    if kind.name == "table" and not pipeline.host:
        pipeline = replace(pipeline, host=(Encode(),))
    _refuse_other_kinds(pipeline, kind)
    _refuse_missing(snapshot, rows, described, kind)

    def stored() -> Iterator[Any]:
        for some in _in_pieces(rows):
            yield opened(kind, [snapshot.gather(name, some) for name in columns])

    pipeline = pipeline.fit_host(stored)
    inputs = Inputs(snapshot, rows, pipeline, columns)
    return pipeline.fit(inputs.gather(some) for some in _in_pieces(rows)), inputs


def opened(kind: RowKind, stored: Sequence[Any]) -> Any:
    """Rows out of what the columns hold, as the first host step takes them."""
    rows = kind.rows(stored)
    return rows if isinstance(rows, dict) else [kind.open(row) for row in rows]


def on_host(pipeline: Pipeline, kind: RowKind, stored: Sequence[Any]) -> Array:
    """Rows out of what the columns hold, after the host part: shape (n, *shape), of the dtype the device takes."""
    if pipeline.whole:
        rows = pipeline.on_rows(opened(kind, stored))
    else:
        rows = in_threads(lambda row: pipeline.on_row(kind.open(row)), kind.rows(stored))
    dtype, made = _dtype(pipeline, kind), np.asarray(rows)
    if dtype == np.int32 and made.size and not -(2**31) <= made.min() <= made.max() < 2**31:
        raise InvalidInput(f"ids have 32 bits; there are some from {made.min()} to {made.max()}; number them anew")
    return made.astype(dtype, copy=False)


def host_form(pipeline: Pipeline, kind: RowKind) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a row when it reaches the device.

    Raises:
        InvalidRequest: Rows differ in shape, or the host part is for rows of another kind.
    """
    _refuse_other_kinds(pipeline, kind)
    shape = kind.shape()
    if not pipeline.host and -1 in (shape or ()):
        shape = None
    if kind.name != "image" and not pipeline.host and shape is None:
        raise InvalidRequest(
            f"rows of one batch have one shape; rows of {kind.name} differ; begin preprocess with {kind.first}"
        )
    return pipeline.host_shape(shape), _dtype(pipeline, kind)


def _dtype(pipeline: Pipeline, kind: RowKind) -> np.dtype[Any]:
    return np.dtype(getattr(pipeline.host[-1], "dtype", kind.dtype) if pipeline.host else kind.dtype)


def _refuse_other_kinds(pipeline: Pipeline, kind: RowKind) -> None:
    for step in pipeline.host:
        takes, _, rest = step.name.partition(".")
        if rest and takes in _ROW_KINDS and takes != kind.name:
            raise InvalidRequest(
                f"host steps are for rows of their own kind; {step.name} is for {takes}, these are {kind.name}; begin "
                f"preprocess with {kind.first}, or say inputs="
            )
    # Other device steps suit whatever has their axes, such as `series.standardize` what `audio.log-mel` makes.
    pictures = [step.name for step in pipeline.device if step.name.startswith("image.")]
    if pictures and kind.name != "image":
        raise InvalidRequest(f"{pictures} are for pictures; these rows are {kind.name}; leave them out, or say inputs=")


def _refuse_missing(snapshot: OpenSnapshot, rows: Rows, columns: Sequence[Column], kind: RowKind | None) -> None:
    for column in columns if kind is None or kind.name != "table" else ():
        missing = len(rows) - int(snapshot.has_value(column.name, rows).sum())
        if missing:
            raise DataError(
                f"every row that is trained on has a value in column {column.name!r}; {missing:,} of {len(rows):,} "
                f"rows of {snapshot.ref} have none; drop them with clean=[mms.drop_missing(columns=[{column.name!r}])]"
            )


def _in_pieces(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + _FIT_ROWS] for start in range(0, len(rows), _FIT_ROWS))


class Loader:
    """Batches of one split on the devices.

    Args:
        snapshot: Where the rows lie.
        split: Which rows.
        pipeline: Its host part is applied.
        batch_size: Rows in a batch over all processes.
        seed: Chooses the order; None for row order.
        sharding: How a batch lies on the devices.
        inputs: Names of the columns that the model sees.
        target: Name of the column that it is to answer; None for a task without.
        sample: Column of whose values each comes as often as the others; None takes each row once.
        stack: Batches that a call takes at most. Above 1 they are stacked, and a call that takes fewer is filled up
            with zeros, which nobody looks at.
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
        inputs: Sequence[str] = ("image",),
        target: str | None = "label",
        sample: str | None = None,
        stack: int = 1,
    ) -> None:
        process = batch_share(sharding)
        self.reader = Reader(
            snapshot, split, columns=inputs, batch_size=batch_size, seed=seed, process=process, sample=sample
        )
        rows = snapshot.split_rows(split)
        self.inputs = Inputs(snapshot, rows, pipeline, inputs)
        self.targets = Targets(snapshot, rows, target)
        self._stack = stack
        self._sharding = sharding if stack == 1 else stacked(sharding)
        self._shares = process[1]
        self._place = self._as_it_is if _host_is_device(sharding) else self._placed
        share = batch_size // process[1]
        self._together = batches_together(share * self.inputs.row_bytes)
        self._full = self._placed(np.ones(share if stack == 1 else (stack, share), np.float32))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a row when it reaches the device."""
        return self.inputs.shape

    def epoch(self, at: Position, calls: Iterable[int] = repeat(1)) -> Generator[DeviceBatch]:
        """The rest of an epoch, from a position on.

        Args:
            at: The position.
            calls: How many batches each call takes.
        """
        for group in ahead(self._groups(at, iter(calls)), _AHEAD):
            yield from group

    def _groups(self, at: Position, calls: Iterator[int]) -> Iterator[list[DeviceBatch]]:
        while at.batch < self.reader.batches:
            taken = _drawn(calls, min(self._together, self.reader.batches - at.batch))
            block = self.reader.block(at, sum(taken))
            rows = block.rows.ravel()
            inputs = self._inputs(block).reshape(*block.rows.shape, *self.inputs.shape)
            labels = self.targets.gather(rows).reshape(*block.rows.shape, *self.targets.shape)
            last = [end - 1 for end in accumulate(taken)]
            # Padding stands at the end of an epoch, so most batches need no weights of their own.
            weights = [
                self._full if block.weight[number][-1] else self._placed(weight)
                for number, weight in zip(last, self._cut(block.weight, taken), strict=True)
            ]
            placed = (map(self._place, self._cut(array, taken)) for array in (inputs, labels))
            yield list(map(DeviceBatch, *placed, weights, [block.positions[number] for number in last]))
            at = block.positions[-1]

    def _cut(self, batches: Array, taken: Sequence[int]) -> Iterator[Array]:
        # Into what each call takes: a batch, or several and zeros up to the number that a call can take.
        if self._stack == 1:
            yield from batches
            return
        for count, end in zip(taken, accumulate(taken), strict=True):
            some = batches[end - count : end]
            missing = np.zeros((self._stack - count, *batches.shape[1:]), batches.dtype)
            yield np.concatenate([some, missing]) if len(missing) else some

    def _inputs(self, block: Block) -> Array:
        # By windows each row is decoded once an epoch, and there are too many to keep what preprocessing makes.
        if self.inputs.direct or self.reader.rung == "window":
            return self.inputs.prepared([self.reader.gather(column.name, block) for column in self.inputs.columns])
        return self.inputs.gather(block.rows.ravel())

    def _placed(self, array: Array) -> Any:
        import jax

        if jax.process_count() == 1:
            return jax.device_put(array, self._sharding)
        rows = 0 if self._stack == 1 else 1  # the axis that the processes share
        whole = (*array.shape[:rows], array.shape[rows] * self._shares, *array.shape[rows + 1 :])
        return jax.make_array_from_process_local_data(self._sharding, array, whole)

    def _as_it_is(self, array: Array) -> Array:
        return array


def _host_is_device(sharding: Any) -> bool:
    # One CPU reads a NumPy array where it lies; placing it first costs more than a small training step.
    devices = sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _drawn(calls: Iterator[int], batches: int) -> list[int]:
    # What the next calls take, until that is so many batches or more.
    taken = []
    while batches > 0:
        taken.append(next(calls))
        batches -= taken[-1]
    return taken


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
