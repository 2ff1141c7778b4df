"""The order in which rows are read: a pure function of (rows, seed, epoch, position), with a state of two integers.

A keyed permutation (a Feistel network walked until it lands inside the range; Black and Rogaway 2002, section 4)
needs no shuffled index in memory, can start anywhere in O(1), and gives the same order for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows

_ROUNDS = 6
_BLOCK_BYTES = 1 << 20  # fits a core's cache, and is a few hundred small rows at least
_BLOCK_BATCHES = 64
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
    keys = _keys(seed, epoch, _ROUNDS if bits >= 8 else 2 * _ROUNDS)  # halves of a few bits mix slowly
    out = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        out[outside] = _feistel(out[outside], bits, keys)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _keys(seed: int, epoch: int, rounds: int) -> Array:
    return np.random.SeedSequence([seed & 2**63 - 1, epoch]).generate_state(rounds, np.uint32)


def _feistel(values: Array, bits: int, keys: Array) -> Array:
    # Unbalanced halves that swap sizes each round cover any number of bits, so at most half the range is walked.
    low_bits, high_bits = bits // 2, bits - bits // 2
    low = (values & np.uint64((1 << low_bits) - 1)).astype(np.uint32)
    high = (values >> np.uint64(low_bits)).astype(np.uint32)
    for key in keys:
        mixed = _mix(high + key, low_bits)
        mixed ^= low
        low, high = high, mixed
        low_bits, high_bits = high_bits, low_bits
    joined: Array = high.astype(np.uint64) << np.uint64(low_bits) | low
    return joined


def _mix(values: Array, bits: int) -> Array:
    # The top bits of a product depend on all below: two products, with the multipliers of MurmurHash3 (public domain;
    # A. Appleby). In place and in 32 bits, because what this costs is the memory it goes through.
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(15)
    values *= np.uint32(0xC2B2AE35)
    values >>= np.uint32(32 - bits)
    return values


class Position(NamedTuple):
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


@dataclass(frozen=True)
class Block:
    """The rows of several batches that follow one another.

    What costs the same for one row as for a thousand is done once for a block, so that small rows cost little.

    Attributes:
        rows: Row numbers, int64, shape (batches, batch).
        weight: float32, shape (batches, batch): 1 for a row, 0 for padding.
        positions: Where the reader stands after each batch.
    """

    rows: Array
    weight: Array
    positions: tuple[Position, ...]


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
        share = batch_size // count
        self._mine = slice(index * share, (index + 1) * share)
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
        together = batches_together(sum(self._row_bytes(name) for name in self.columns) * self.batch_size)
        while self._position.batch < self.batches:
            block = self.block(self._position, together)
            gathered = {name: self.snapshot.gather(name, block.rows.ravel()) for name in self.columns}
            share = block.rows.shape[1]
            for number, self._position in enumerate(block.positions):
                mine = slice(number * share, (number + 1) * share)
                columns = {name: values[mine] for name, values in gathered.items()}
                yield Batch(columns, block.weight[number], block.rows[number], self._position)
        self._position = Position(epoch=self._position.epoch + 1)

    def block(self, at: Position, batches: int) -> Block:
        """The rows of up to so many batches of one epoch. Leaves the reader where it stands.

        Args:
            at: Where to begin.
            batches: How many; fewer if the epoch ends before.
        """
        batches = min(batches, self.batches - at.batch)
        begin = at.batch * self.batch_size
        end = begin + batches * self.batch_size
        ordered = self._ordered(at.epoch, begin, min(end, self.rows))
        padding = end - begin - len(ordered)
        if padding:
            ordered = np.concatenate([ordered, np.full(padding, -1)])
        rows = ordered.reshape(batches, self.batch_size)[:, self._mine]
        weight = (rows >= 0).astype(np.float32)
        if padding:
            known = rows[-1][rows[-1] >= 0]
            rows[-1] = np.resize(known if len(known) else self._rows[:1], rows.shape[1])
        positions = tuple(Position(epoch=at.epoch, batch=at.batch + number + 1) for number in range(batches))
        return Block(rows, weight, positions)

    def _row_bytes(self, name: str) -> int:
        return self.snapshot.column(name).row_bytes or _BLOCK_BYTES  # rows of varying length may be of any

    def _ordered(self, epoch: int, start: int, stop: int) -> Rows:
        if self.seed is None:
            return self._rows[start:stop]
        window_epoch, begin, order = self._window
        if window_epoch != epoch or not (begin <= start and stop <= begin + len(order)):
            begin = start
            positions = np.arange(begin, min(begin + max(_WINDOW, stop - start), self.rows), dtype=np.int64)
            order = self._rows[permuted(positions, size=self.rows, seed=self.seed, epoch=epoch)]
            self._window = (epoch, begin, order)
        return order[start - begin : stop - begin]


def batches_together(batch_bytes: int) -> int:
    """How many batches of such a size are best gathered and handed on in one go."""
    return min(_BLOCK_BATCHES, max(1, _BLOCK_BYTES // max(1, batch_bytes)))
