"""The order in which rows are read: a pure function of (rows, seed, epoch, position), with a state of two integers.

A keyed permutation (a Feistel network walked until it lands inside the range; Black and Rogaway 2002, section 4)
needs no shuffled index in memory, can start anywhere in O(1), and gives the same order for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_ROUNDS = 6
_WINDOW = 1 << 14  # positions permuted at once, so that NumPy's cost a call is spread over many batches


def permuted(positions: Rows, *, size: int, seed: int, epoch: int) -> Rows:
    """Where each position of an epoch's order lies.

    Args:
        positions: Positions in [0, size), int64, shape (n,).
        size: Number of rows.
        seed: Chooses the family of orders.
        epoch: Chooses the order within it.

    Returns:
        Row indices in [0, size), int64, shape (n,); a bijection over all positions.
    """
    if size <= 1:
        return np.zeros_like(positions)
    bits = max(2, int(size - 1).bit_length())
    keys = _keys(seed, epoch)
    out = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        out[outside] = _feistel(out[outside], bits, keys)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _keys(seed: int, epoch: int) -> Array:
    return np.random.SeedSequence([seed & 2**63 - 1, epoch]).generate_state(_ROUNDS, np.uint64)


def _feistel(values: Array, bits: int, keys: Array) -> Array:
    # Unbalanced halves that swap sizes each round cover any number of bits, so at most half the range is walked.
    low_bits, high_bits = bits // 2, bits - bits // 2
    low, high = values & np.uint64((1 << low_bits) - 1), values >> np.uint64(low_bits)
    for key in keys:
        low, high = high, low ^ (_mix(high + key) & np.uint64((1 << low_bits) - 1))
        low_bits, high_bits = high_bits, low_bits
    return high << np.uint64(low_bits) | low


def _mix(values: Array) -> Array:
    # The finaliser of MurmurHash3 (public domain; A. Appleby), which spreads every input bit over all output bits.
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: Array = values ^ values >> np.uint64(33)
    return mixed


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a reader stands: all of its state.

    Attributes:
        epoch: Passes finished.
        batch: Batches of the current pass already given out.
    """

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Batch:
    """Some rows, padded to the batch size.

    Attributes:
        columns: By name: an array of shape (batch, *column.shape), or a list of `bytes`.
        weight: float32, shape (batch,): 1 for a row, 0 for padding.
        rows: Row numbers, int64, shape (batch,).
        position: Where the reader stands after this batch.
    """

    columns: dict[str, Any]
    weight: Array
    rows: Rows
    position: Position


class Reader:
    """Reads a split batch by batch, for ever the same way.

    Args:
        snapshot: What is read.
        split: Which rows; None for all.
        columns: Which columns.
        batch_size: Rows in a batch over all processes; the last one of an epoch is padded with weight 0.
        seed: Chooses the order; None reads in row order.
        process: This process's number and the number of processes. Each takes its share of every batch, so that the
            order over all of them does not depend on their number.

    Raises:
        SplitNotFound: The split has no rows.
        InvalidRequest: The batch does not divide over the processes.
    """

    def __init__(
        self,
        snapshot: OpenSnapshot,
        split: str | None = None,
        *,
        columns: Sequence[str],
        batch_size: int,
        seed: int | None = None,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        index, count = process
        if batch_size < 1 or batch_size % count:
            raise InvalidRequest(
                f"a batch has at least one row for each process; {batch_size} rows do not divide over {count} "
                f"processes; use a multiple of {count}"
            )
        self.snapshot = snapshot
        self.columns = tuple(snapshot.column(name).name for name in columns)
        self.batch_size = batch_size
        self.seed = seed
        self._rows = snapshot.split_rows(split)
        self._share = batch_size // count
        self._first = index * self._share
        self._position = Position()
        self._window: tuple[int, int, Rows] = (-1, -1, np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        """Rows in one epoch."""
        return len(self._rows)

    @property
    def batches(self) -> int:
        """Batches in one epoch."""
        return -(-self.rows // self.batch_size)

    def state(self) -> dict[str, int]:
        """Where it stands, as JSON."""
        return {"epoch": self._position.epoch, "batch": self._position.batch}

    def restore(self, state: dict[str, int]) -> None:
        """Continues from a `state()`, in O(1)."""
        self._position = Position(epoch=state["epoch"], batch=state["batch"])

    def epoch(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards the reader stands at the beginning of the next."""
        while self._position.batch < self.batches:
            batch = self._read(self._position)
            self._position = batch.position
            yield batch
        self._position = Position(epoch=self._position.epoch + 1)

    def _read(self, at: Position) -> Batch:
        start = at.batch * self.batch_size + self._first
        taken = self._ordered(at.epoch, start, min(start + self._share, self.rows))
        weight = np.zeros(self._share, np.float32)
        weight[: len(taken)] = 1
        padded = taken if len(taken) == self._share else np.resize(taken if len(taken) else self._rows[:1], self._share)
        columns = {name: self.snapshot.gather(name, padded) for name in self.columns}
        return Batch(columns, weight, padded, Position(epoch=at.epoch, batch=at.batch + 1))

    def _ordered(self, epoch: int, start: int, stop: int) -> Rows:
        if self.seed is None:
            return self._rows[start:stop]
        window_epoch, begin, order = self._window
        if window_epoch != epoch or not (begin <= start and stop <= begin + len(order)):
            begin = start
            positions = np.arange(begin, min(begin + max(_WINDOW, self._share), self.rows), dtype=np.int64)
            order = self._rows[permuted(positions, size=self.rows, seed=self.seed, epoch=epoch)]
            self._window = (epoch, begin, order)
        return order[start - begin : max(stop, start) - begin]
