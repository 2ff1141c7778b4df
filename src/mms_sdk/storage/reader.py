"""The order in which rows are read: a pure function of (rows, seed, epoch, position), with a state of two integers.

Rows come from one of three rungs, by how the columns lie: `mmap` gathers raw rows from mapped files, `ram` decodes
compressed columns once where they are small enough, `window` decodes some chunks at a time. The first two read in one
global order, the third shuffles chunks and then rows within a window; `mms_sdk.storage.windows` tells how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.parts import is_compressed
from mms_sdk.storage.permutation import permuted
from mms_sdk.storage.sampling import Draws
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.windows import Windows
from mms_sdk.types import Array, Rows

_BLOCK_BYTES = 1 << 20  # fits a core's cache, and is a few hundred small rows at least
_BLOCK_BATCHES = 64
_WINDOW = 1 << 14  # positions permuted at once, so that NumPy's cost a call is spread over many batches


Rung = Literal["ram", "mmap", "window"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a reader may hold of compressed columns. Part of what the order depends on: go on with the same.

    Attributes:
        rung: Where rows come from; None chooses by the sizes below. `ram` suits every column, `mmap` raw ones, `window`
            compressed ones.
        ram_bytes: Columns are decoded as a whole up to so many bytes. Not a share of the memory that happens to be
            free: the order must be the same on another machine.
        window_bytes: Otherwise so many bytes are decoded at a time: half of them are read, the other half is the next
            window. One chunk is the least.
    """

    rung: Rung | None = None
    ram_bytes: int = 2**30
    window_bytes: int = 2**27


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
        columns: By name: an array of shape (batch, *column.shape), not to be written to, or a list of `bytes`.
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
        places: Where they stand in the order of the epoch, int64, shape (batches, batch).
        weight: float32, shape (batches, batch): 1 for a row, 0 for padding.
        epoch: Which epoch.
        positions: Where the reader stands after each batch.
    """

    rows: Array
    places: Array
    weight: Array
    epoch: int
    positions: tuple[Position, ...]

    def batches(self, start: int, stop: int) -> Block:
        """Some of its batches, by their numbers within it."""
        some = slice(start, stop)
        return Block(self.rows[some], self.places[some], self.weight[some], self.epoch, self.positions[some])


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
        memory: What it may hold of compressed columns.
        sample: Draws rows with replacement instead, as many in an epoch as the split has: the name of a label column,
            whose classes then come equally often, or how often each row of the snapshot comes, shape (rows,), in any
            unit. Nothing to do with the weight in a batch, which marks padding.

    Raises:
        SplitNotFound: The split has no rows.
        InvalidRequest: The batch does not divide over the processes; or the rung does not suit the columns or the
            sampling.
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
        memory: Memory = Memory(),
        sample: str | Array | None = None,
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
        self.rung = _rung(snapshot, self.columns, memory)
        self._windows = self._draws = None
        if sample is not None:
            self._draws = Draws(_weights(snapshot, self._rows, sample), seed=seed or 0)
        if self.rung == "window":
            if sample is not None:
                raise InvalidRequest(
                    f"sampling draws rows from anywhere, so that columns are raw or decoded as a whole; {snapshot.ref} "
                    f"is read by windows; raise ram_bytes above {memory.ram_bytes}, or leave sample out"
                )
            compressed = [name for name in self.columns if is_compressed(snapshot.column(name))]
            self._windows = Windows(
                snapshot, self._rows, columns=compressed, seed=seed, window_bytes=memory.window_bytes
            )
        self._window: tuple[int, int, Rows] = (-1, -1, np.empty(0, np.int64))

    def __repr__(self) -> str:
        return f"<reader of {self.snapshot.ref}: {self.rows:,} rows, batch {self.batch_size}, rung {self.rung}>"

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
        return {"epoch": self._position.epoch, "batch": self._position.batch, "window_rows": self._window_rows}

    def restore(self, state: dict[str, int]) -> None:
        """Continues from a `state()`, or from the fields of a `Position`, in O(1).

        Raises:
            InvalidRequest: The rest of the epoch would come in another order, since its windows are of another size.
        """
        if state["batch"] and state.get("window_rows", self._window_rows) != self._window_rows:
            said, here = (
                f"windows of {rows:,} rows" if rows else "no windows"
                for rows in (
                    state["window_rows"],
                    self._window_rows,
                )
            )
            raise InvalidRequest(
                f"an epoch is ended with the memory it was begun with, which decides its order; batch {state['batch']} "
                f"of epoch {state['epoch']} was reached with {said}, this reader of {self.snapshot.ref} has {here}; "
                f"give it the same memory="
            )
        self._position = Position(epoch=state["epoch"], batch=state["batch"])

    @property
    def _window_rows(self) -> int:
        return self._windows.rows if self._windows is not None else 0

    def warm_up(self) -> int:
        """Makes the first epoch as fast as those after it: compares all checksums, copies what is far, fills the RAM.

        Returns:
            Bytes that were compared, or that are in RAM now.

        Raises:
            Damaged: Something is not what was written.
        """
        in_ram = [name for name in self.columns if self.rung == "ram" and not self.snapshot.column(name).varies]
        held = sum(int(self.snapshot.values(name).nbytes) for name in in_ram)
        return held + sum(self.snapshot.warm_up(name) for name in self.columns if name not in in_ram)

    def epoch(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards the reader stands at the beginning of the next."""
        while self._position.batch < self.batches:
            block = self.block(self._position, _BLOCK_BATCHES)
            gathered = [self._gathered(name, block) for name in self.columns]
            for number, position in enumerate(block.positions):
                columns = dict(zip(self.columns, map(next, gathered), strict=True))
                self._position = position  # once the batch is there: one that cannot be read is not passed over
                yield Batch(columns, block.weight[number], block.rows[number], position)
                del columns  # before the next batch is made, so that its memory is this one's
        self._position = Position(epoch=self._position.epoch + 1)

    def _gathered(self, name: str, block: Block) -> Iterator[Any]:
        # Batch by batch; those of small rows are gathered several at a time.
        count, share = block.rows.shape
        together = batches_together(self._row_bytes(name) * share)
        for start in range(0, count, together):
            some = block.batches(start, start + together)
            values = self.gather(name, some)
            for at in range(0, len(some.rows) * share, share):
                yield values[at : at + share]
            del values

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
        places = np.arange(begin, end, dtype=np.int64).reshape(batches, self.batch_size)
        there = (places < self.rows)[:, self._mine]
        whole = end <= self.rows
        if not whole:  # the rows of the batch again, so that padding is the same for any number of processes
            places[-1] = np.resize(places[-1][places[-1] < self.rows], self.batch_size)
        places = places[:, self._mine]
        rows = ordered.reshape(batches, self.batch_size)[:, self._mine] if whole else ordered[places - begin]
        weight = there.astype(np.float32)
        positions = tuple(Position(epoch=at.epoch, batch=at.batch + number + 1) for number in range(batches))
        return Block(rows, places, weight, at.epoch, positions)

    def gather(self, name: str, block: Block) -> Any:
        """Rows of a column for a block. One thread at a time; fastest where blocks follow one another.

        Returns:
            An array of shape (batches * batch, *column.shape), not to be written to, or a list of `bytes`.
        """
        column = self.snapshot.column(name)
        if self._windows is not None and name in self._windows.columns:
            found = self._windows.gather(name, epoch=block.epoch, places=block.places.ravel())
            values = found.view(column.dtype).reshape(-1, *column.fixed)
            return self.snapshot.masked(column, values, block.rows.ravel())
        if self.rung == "ram" and not column.varies:
            return self.snapshot.values(name)[block.rows.ravel()]
        return self.snapshot.gather(name, block.rows.ravel())

    def _row_bytes(self, name: str) -> int:
        return self.snapshot.column(name).row_bytes or _BLOCK_BYTES  # rows of varying length may be of any

    def _ordered(self, epoch: int, start: int, stop: int) -> Rows:
        if self._draws is not None:
            return self._rows[self._draws.at(start, stop, epoch=epoch)]
        if self._windows is not None:
            return self._windows.ordered(start, stop, epoch=epoch)
        if self.seed is None:
            return self._rows[start:stop]
        window_epoch, begin, order = self._window
        if window_epoch != epoch or not (begin <= start and stop <= begin + len(order)):
            begin = start
            positions = np.arange(begin, min(begin + max(_WINDOW, stop - start), self.rows), dtype=np.int64)
            order = self._rows[permuted(positions, size=self.rows, seed=self.seed, epoch=epoch)]
            self._window = (epoch, begin, order)
        return order[start - begin : stop - begin]


def _rung(snapshot: OpenSnapshot, names: Sequence[str], memory: Memory) -> Rung:
    compressed = [name for name in names if is_compressed(snapshot.column(name))]
    if memory.rung == "mmap" and compressed:
        raise InvalidRequest(f"rung 'mmap' reads raw columns; {compressed} are compressed; use 'ram' or 'window'")
    if memory.rung == "window" and not compressed:
        raise InvalidRequest(f"rung 'window' reads compressed columns; {list(names)} are not; use 'ram' or 'mmap'")
    if memory.rung is not None or not compressed:
        return memory.rung or "mmap"
    decoded = snapshot.rows * sum(snapshot.column(name).row_bytes or 0 for name in compressed)
    return "ram" if decoded <= memory.ram_bytes else "window"


def _weights(snapshot: OpenSnapshot, rows: Rows, sample: str | Array) -> Array:
    if isinstance(sample, str):
        _, codes, counts = np.unique(snapshot.values(sample)[rows], return_inverse=True, return_counts=True)
        return np.asarray(1 / counts)[codes]
    if np.shape(sample) != (snapshot.rows,):
        raise InvalidRequest(
            f"sample has one number for each of the {snapshot.rows} rows of {snapshot.ref}; got shape "
            f"{np.shape(sample)}; give 0 to rows that never come"
        )
    return np.asarray(sample, np.float64)[rows]


def batches_together(batch_bytes: int) -> int:
    """How many batches of such a size are best gathered and handed on in one go."""
    return min(_BLOCK_BATCHES, max(1, _BLOCK_BYTES // max(1, batch_bytes)))
