"""Shuffling compressed rows: permuted chunks are decoded a window at a time, rows are drawn within the window.

The rows of a split that lie in one chunk are a block. An epoch's blocks are permuted and cut into windows of as many
chunks as fit into memory; the rows of a window are permuted in turn. So the order is a pure function of (snapshot,
split, seed, epoch, position) and of the window's size, every chunk is decoded once an epoch, and seeking decodes one
window.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mms_sdk.storage.permutation import permuted
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_AT_ONCE = 16  # chunks of a store that is not on this machine: they wait for the network rather than for a core


class _Plan(NamedTuple):
    """How an epoch is cut into windows: window `w` has blocks[bounds[w]:bounds[w + 1]], from position starts[w] on."""

    blocks: Rows
    bounds: Rows
    starts: Rows


class _Window(NamedTuple):
    """In the order in which they are read: numbers of a window's rows, and their slots in its buffer."""

    rows: Rows
    slots: Rows


class _Decoded(NamedTuple):
    """A window that is decoded, or about to be."""

    buffers: dict[str, Array]
    work: list[tuple[Future[None], int, int]]


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
        threads = os.cpu_count() if snapshot.local else _AT_ONCE
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mms-window")
        self._plan = lru_cache(maxsize=4)(self._planned)
        self._window = lru_cache(maxsize=4)(self._drawn)

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
        """Rows of a column by their positions in an epoch, of dtype void, shape (n,)."""
        plan = self._plan(epoch)
        first, last = np.searchsorted(plan.starts, [places.min(), places.max()], side="right") - 1
        if first == last:
            found = self._from_window(name, epoch, int(first), places - plan.starts[first])
            self._decode_ahead(epoch, int(first), windows=len(plan.starts) - 1)
            return found
        out = np.empty(len(places), f"V{self._row_bytes[name]}")
        numbers = np.searchsorted(plan.starts, places, side="right") - 1
        for number in range(first, last + 1):
            here = np.flatnonzero(numbers == number)
            if len(here):
                out[here] = self._from_window(name, epoch, number, places[here] - plan.starts[number])
        return out

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

    def _blocks(self, epoch: int, number: int) -> tuple[Rows, Rows]:
        plan = self._plan(epoch)
        blocks = plan.blocks[plan.bounds[number] : plan.bounds[number + 1]]
        sizes = self._sizes[blocks]
        return blocks, np.cumsum(sizes) - sizes

    def _drawn(self, epoch: int, number: int) -> _Window:
        blocks, begins = self._blocks(epoch, number)
        picked = [slice(self._edges[block], self._edges[block + 1]) for block in blocks]
        rows = np.concatenate([self._rows[each] for each in picked])
        slots = np.concatenate([self._places[each] + begin for each, begin in zip(picked, begins, strict=True)])
        if self._seed is None:
            return _Window(rows, slots)
        order = permuted(np.arange(len(rows)), size=len(rows), seed=self._seed, epoch=epoch, window=number)
        return _Window(rows[order], slots[order])

    def _from_window(self, name: str, epoch: int, number: int, places: Rows) -> Array:
        if (epoch, number) not in self._decoded:
            self._begin(epoch, number, keep=None)
        decoded = self._decoded[epoch, number]
        while decoded.work:  # asked once, not for every batch
            future, block, begin = decoded.work[-1]
            if future.cancel():  # nobody has begun it: done here rather than waited for
                self._decode(block, begin, decoded.buffers)
            else:
                future.result()
            decoded.work.pop()
        found: Array = decoded.buffers[name][self._window(epoch, number).slots[places]]
        return found

    def _decode_ahead(self, epoch: int, number: int, *, windows: int) -> None:
        coming = (epoch, number + 1) if number + 1 < windows else (epoch + 1, 0)
        if coming not in self._decoded:
            self._begin(*coming, keep=(epoch, number))

    def _begin(self, epoch: int, number: int, *, keep: tuple[int, int] | None) -> None:
        if len(self._decoded) < 2:
            # Made once, so that the pages of a buffer are faulted in once.
            sizes = self._row_bytes.items()
            buffers = {name: np.empty(self.rows, f"V{row_bytes}") for name, row_bytes in sizes}
        else:
            gone = self._decoded.pop(next(key for key in self._decoded if key != keep))
            wait([future for future, _, _ in gone.work])
            buffers = gone.buffers
        blocks, begins = self._blocks(epoch, number)
        pairs = zip(blocks.tolist(), begins.tolist(), strict=True)
        work = [(self._pool.submit(self._decode, block, begin, buffers), block, begin) for block, begin in pairs]
        self._decoded[epoch, number] = _Decoded(buffers, work)

    def _decode(self, block: int, begin: int, buffers: dict[str, Array]) -> None:
        for name, buffer in buffers.items():
            if name == self._lead:
                out = buffer[begin : begin + self._sizes[block]].view(np.uint8)
                self._snapshot.read_chunk(name, int(self._parts[block]), int(self._chunks[block]), out)
                continue
            picked = slice(self._edges[block], self._edges[block + 1])
            values = self._snapshot.gather(name, self._rows[picked])
            buffer[self._places[picked] + begin] = values.reshape(len(values), -1).view(buffer.dtype)[:, 0]
