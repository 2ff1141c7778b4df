"""Shuffling compressed rows: permuted chunks are decoded a window at a time, rows are drawn within the window.

The rows of a split that lie in one chunk are a block. An epoch's blocks are permuted and cut into windows of as many
chunks as fit into memory; the rows of a window are permuted in turn. So the order is a pure function of (snapshot,
split, seed, epoch, position) and of the window's size, every chunk is decoded once an epoch, and seeking decodes one
window.

Rows go from a chunk, while a core's cache holds it, to where the order has them. A batch is then a stretch of the
window, handed out without a copy, and a window's memory is used again once nobody holds a batch of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mms_sdk.storage.permutation import permuted
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_KEPT = 4  # orders of epochs and of windows
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_AT_ONCE = 16  # chunks of a store that is not on this machine: they wait for the network rather than for a core


class _Plan(NamedTuple):
    """How an epoch is cut into windows: window `w` has blocks[bounds[w]:bounds[w + 1]], from position starts[w] on."""

    blocks: Rows
    bounds: Rows
    starts: Rows


class _Window(NamedTuple):
    """A window's order.

    Attributes:
        rows: Their numbers, as they are read.
        places: Where each row is read, block after block.
        blocks: Which blocks it is made of.
        begins: Where each of them begins in `places`, and the end.
    """

    rows: Rows
    places: Rows
    blocks: Rows
    begins: Rows


class _Decoded(NamedTuple):
    """A window that is decoded, or about to be: rows as they are read, of dtype void, by column."""

    buffers: dict[str, Array]
    work: list[Future[None]]


class _Memory:
    """Memory for one column of a window. What nobody looks into any more is used again, its pages already there."""

    def __init__(self, rows: int, row_bytes: int) -> None:
        self._shape = rows
        self._row_bytes = row_bytes
        self._free: deque[Array] = deque(maxlen=2)

    def take(self) -> Array:
        """An array of dtype void, shape (rows,); its memory comes back when it and all views of it are gone."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._shape, f"V{self._row_bytes}")
        lent = _Lent(memory)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.asarray(lent)


class _Lent:
    # What NumPy makes of it keeps it alive: https://numpy.org/doc/stable/reference/arrays.interface.html
    def __init__(self, memory: Array) -> None:
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


class Windows:
    """The rows of compressed columns in a shuffled order. One thread at a time reads; others decode ahead of it.

    Args:
        snapshot: Where they lie.
        rows: Numbers of the rows, ascending.
        columns: Names of the columns. Blocks are the chunks of the one with the largest rows.
        seed: Chooses the order; None is row order.
        window_bytes: Decoded at a time, in two halves: the window that is read and the next.

    Attributes:
        rows: A window has at most so many; the order depends on it.
    """

    def __init__(
        self, snapshot: OpenSnapshot, rows: Rows, *, columns: Sequence[str], seed: int | None, window_bytes: int
    ) -> None:
        self.columns = tuple(columns)
        self._snapshot = snapshot
        self._rows = rows
        self._seed = seed
        self._row_bytes = {name: snapshot.column(name).row_bytes or 1 for name in columns}
        self._lead = max(columns, key=self._row_bytes.__getitem__)
        where = snapshot.chunked(self._lead, rows)
        edges = np.flatnonzero(np.diff(where.part) | np.diff(where.chunk)) + 1
        self._edges = np.concatenate([[0], edges, [len(rows)]]).astype(np.int64)
        first = self._edges[:-1]
        self._parts, self._chunks, self._sizes = where.part[first], where.chunk[first], where.chunk_rows[first]
        self._places = where.place
        window_rows = window_bytes // 2 // sum(self._row_bytes.values())
        self.rows = max(window_rows, int(self._sizes.max()))
        self._decoded: dict[tuple[int, int], _Decoded] = {}
        self._memory = {name: _Memory(self.rows, row_bytes) for name, row_bytes in self._row_bytes.items()}
        self._scratch = threading.local()
        threads = os.cpu_count() if snapshot.local else _AT_ONCE
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mms-window")
        self._plans: dict[int, _Plan] = {}
        self._drawn: dict[tuple[int, int], _Window] = {}

    def ordered(self, start: int, stop: int, *, epoch: int) -> Rows:
        """Row numbers at positions from `start` to before `stop` of an epoch."""
        plan = self._plan(epoch)
        first, last = np.searchsorted(plan.starts, [start, stop - 1], side="right") - 1
        begin = int(plan.starts[first])
        if first == last:  # without a copy of the window's
            return self._window(epoch, int(first)).rows[start - begin : stop - begin]
        rows = np.concatenate([self._window(epoch, number).rows for number in range(first, last + 1)])
        return rows[start - begin : stop - begin]

    def gather(self, name: str, *, epoch: int, places: Rows) -> Array:
        """Rows of a column by their positions in an epoch, of dtype void, shape (n,); not to be written to."""
        plan = self._plan(epoch)
        first, last = np.searchsorted(plan.starts, [places.min(), places.max()], side="right") - 1
        if first == last:
            return self._from_window(name, epoch, int(first), places - plan.starts[first])
        out = np.empty(len(places), f"V{self._row_bytes[name]}")
        numbers = np.searchsorted(plan.starts, places, side="right") - 1
        for number in range(first, last + 1):
            here = np.flatnonzero(numbers == number)
            if len(here):
                found = self._from_window(name, epoch, number, places[here] - plan.starts[number])
                _as_bytes(out)[here] = _as_bytes(found)
        return out

    def _plan(self, epoch: int) -> _Plan:
        found = self._plans.get(epoch)
        if found is None:
            found = self._planned(epoch)
            _put(self._plans, epoch, found)
        return found

    def _window(self, epoch: int, number: int) -> _Window:
        found = self._drawn.get((epoch, number))
        if found is None:
            found = self._draw(epoch, number)
            _put(self._drawn, (epoch, number), found)
        return found

    def _planned(self, epoch: int) -> _Plan:
        blocks = np.arange(len(self._sizes))
        if self._seed is not None:
            blocks = permuted(blocks, size=len(blocks), seed=self._seed, epoch=epoch)
        filled = np.concatenate([[0], np.cumsum(self._sizes[blocks])])
        bounds = [0]
        while bounds[-1] < len(blocks):
            fits = int(np.searchsorted(filled, filled[bounds[-1]] + self.rows, side="right")) - 1
            bounds.append(max(fits, bounds[-1] + 1))
        ends = np.concatenate([[0], np.cumsum(np.diff(self._edges)[blocks])])
        return _Plan(blocks, np.array(bounds), ends[bounds])

    def _draw(self, epoch: int, number: int) -> _Window:
        plan = self._plan(epoch)
        blocks = plan.blocks[plan.bounds[number] : plan.bounds[number + 1]]
        rows = np.concatenate([self._rows[self._edges[block] : self._edges[block + 1]] for block in blocks])
        begins = np.concatenate([[0], np.cumsum(self._edges[blocks + 1] - self._edges[blocks])])
        places = np.arange(len(rows))
        if self._seed is None:
            return _Window(rows, places, blocks, begins)
        order = permuted(places, size=len(rows), seed=self._seed, epoch=epoch, window=number)
        places[order] = np.arange(len(rows))
        return _Window(rows[order], places, blocks, begins)

    def _from_window(self, name: str, epoch: int, number: int, places: Rows) -> Array:
        self._begin_next(epoch, number)  # first of all, so that no thread waits between this window and the next
        decoded = self._decoded[epoch, number]
        try:
            while decoded.work:  # asked once, not for every batch
                decoded.work[-1].result()
                decoded.work.pop()
        except BaseException:  # the next who asks tries again
            wait(self._decoded.pop((epoch, number)).work)
            raise
        return _some(decoded.buffers[name], places)

    def _begin_next(self, epoch: int, number: int) -> None:
        windows = len(self._plan(epoch).starts) - 1
        coming = (epoch, number + 1) if number + 1 < windows else (epoch + 1, 0)
        if (epoch, number) not in self._decoded:
            self._begin(epoch, number, keep=None)
        if coming not in self._decoded:
            self._begin(*coming, keep=(epoch, number))

    def _begin(self, epoch: int, number: int, *, keep: tuple[int, int] | None) -> None:
        if len(self._decoded) == 2:
            gone = self._decoded.pop(next(key for key in self._decoded if key != keep))
            wait(gone.work)
        window = self._window(epoch, number)
        buffers = {name: memory.take() for name, memory in self._memory.items()}
        work = [self._pool.submit(self._decode, window, at, buffers) for at in range(len(window.blocks))]
        self._decoded[epoch, number] = _Decoded(buffers, work)
        if number + 2 < len(self._plan(epoch).starts):
            self._pool.submit(self._window, epoch, number + 1)  # its order is there when it is begun

    def _decode(self, window: _Window, at: int, buffers: dict[str, Array]) -> None:
        block = window.blocks[at]
        picked = slice(self._edges[block], self._edges[block + 1])
        places = window.places[window.begins[at] : window.begins[at + 1]]
        for name, buffer in buffers.items():
            if name == self._lead:
                values = _some(self._chunk(int(block)), self._places[picked])
            else:
                # What a masked row lacks is said elsewhere.
                gathered = np.ma.getdata(self._snapshot.gather(name, self._rows[picked]))
                values = gathered.reshape(len(places), -1).view(np.uint8)
            _as_bytes(buffer)[places] = values

    def _chunk(self, block: int) -> Array:
        # Into the same memory each time: it stays in the core's cache.
        row_bytes, rows = self._row_bytes[self._lead], self._sizes[block]
        if not hasattr(self._scratch, "bytes"):
            self._scratch.bytes = np.empty(int(self._sizes.max()) * row_bytes, np.uint8)
        out: Array = self._scratch.bytes[: rows * row_bytes]
        self._snapshot.read_chunk(self._lead, int(self._parts[block]), int(self._chunks[block]), out)
        return out.reshape(rows, row_bytes)


def _as_bytes(rows: Array) -> Array:
    # Not as void: NumPy copies bytes without holding Python's lock.
    seen: Array = rows.view(np.uint8).reshape(len(rows), -1)
    return seen


def _some(values: Array, places: Rows) -> Array:
    # Without a copy where they follow one another.
    first, last = int(places[0]), int(places[-1])
    if last - first == len(places) - 1 and (np.diff(places) == 1).all():
        view: Array = values[first : last + 1]
        view.flags.writeable = False
        return view
    found: Array = values.take(places, axis=0)
    return found


def _put(cache: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    # Threads that decode ask as well: what goes is the oldest, and whoever holds it keeps it.
    cache[key] = value
    while len(cache) > _KEPT:
        with contextlib.suppress(StopIteration, RuntimeError):
            cache.pop(next(iter(cache)), None)
