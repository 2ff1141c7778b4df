"""Rows of one column in one part: gathered from mapped files, decoded chunk by chunk, or cut out of all items."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.chunks import Chunks, MappedChunks, read_table, refuse_beyond_memory
from mms_sdk.storage.part_files import PartFiles
from mms_sdk.storage.parts import LARGE_ROW_BYTES, crc32c, row_stride
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.types import Array, Rows

_PIECE_BYTES = 2**20
_COPIERS = 4  # threads that copy large rows, at most


class Gatherer(Protocol):
    """Reads rows of a column in one part. Safe from several threads."""

    def gather(self, rows: Rows) -> Any:
        """Rows of one part, numbered within the part."""

    def copy(self, rows: Rows, out: Any, places: Rows) -> None:
        """Puts rows of the part to places of `out`: an array with one void a row, or a list where lengths vary."""

    def warm_up(self) -> int:
        """Compares all checksums; returns how many bytes that were."""


def _pieces(where: Rows, row_bytes: int) -> Iterator[tuple[int, Rows]]:
    # Rows that lie in one place, a few at a time: what is gathered is still in a core's cache when it is put in order.
    step = max(1, _PIECE_BYTES // max(1, row_bytes))
    for place in np.unique(where).tolist():
        found = np.flatnonzero(where == place)
        for start in range(0, len(found), step):
            yield place, found[start : start + step]


class _Shard(NamedTuple):
    """A mapped file of raw rows.

    Attributes:
        values: The rows, each one element, so that fancy indexing copies it as a whole: void, shape (rows,).
        bytes: The same, uint8, shape (rows, row_bytes).
        sums: Their checksums.
    """

    values: Array
    bytes: Array
    sums: Array


def _threads() -> int:
    # Half of the cores: the others have to do with what is read. Of two, one that copies is faster than one that wakes
    # another.
    return max(1, min(_COPIERS, (os.cpu_count() or 1) // 2))


@cache
def _copiers(process: int) -> ThreadPoolExecutor:
    # Of a process that was forked off there are none of its parent's.
    return ThreadPoolExecutor(_COPIERS - 1, thread_name_prefix="mms-copy")


class RawColumn:
    """Shards of checksummed rows, mapped; a row's checksum is compared the first time it is touched."""

    def __init__(self, part: PartFiles, column: Column) -> None:
        assert column.row_bytes is not None
        self._part = part
        self._column = column
        self._shape = column.fixed
        self._row_bytes = column.row_bytes
        self._large = column.row_bytes >= LARGE_ROW_BYTES
        self._shard_rows = part.lies_as(column.stored, part.rows, column.fixed, column.dtype).file_rows
        self._shards: dict[int, _Shard] = {}
        self._unverified = np.ones(part.rows, bool)
        self._left = True  # whether any is unverified

    def gather(self, rows: Rows) -> Array:
        """See `Gatherer`; shape (rows, *column.shape)."""
        if len(rows) and self._part.rows <= self._shard_rows and not (self._large and _threads() > 1):
            shard = self._mapped(0)
            out = shard.values[rows]
            self._verify(out, shard.sums, rows, first=0)
        else:
            out = np.empty(len(rows), f"V{self._row_bytes}")
            self.copy(rows, out, np.arange(len(rows)))
        return out.view(self._column.dtype).reshape(len(rows), *self._shape)

    def copy(self, rows: Rows, out: Array, places: Rows) -> None:
        """See `Gatherer`."""
        if self._large:
            self._copy_side_by_side(rows, out, places)
            return
        for number, some in _pieces(rows // self._shard_rows, self._row_bytes):
            shard = self._mapped(number)
            first = number * self._shard_rows
            found = shard.values[rows[some] - first]
            self._verify(found, shard.sums, rows[some], first=first)
            out[places[some]] = found

    def warm_up(self) -> int:
        """See `Gatherer`."""
        step = max(1, _PIECE_BYTES // self._row_bytes)
        for start in range(0, self._part.rows, step):
            self.gather(np.arange(start, min(start + step, self._part.rows)))
        return self._part.rows * row_stride(self._row_bytes)

    def _copy_side_by_side(self, rows: Rows, out: Array, places: Rows) -> None:
        pool = _copiers(os.getpid())
        pieces = max(1, min(_threads(), len(rows) * self._row_bytes // _PIECE_BYTES))
        mine, *others = np.array_split(np.arange(len(rows)), pieces)
        work = [pool.submit(self._copy_one_by_one, rows[some], out, places[some]) for some in others]
        try:
            self._copy_one_by_one(rows[mine], out, places[mine])
        finally:
            wait(work)
        for each in work:
            each.result()

    def _copy_one_by_one(self, rows: Rows, out: Array, places: Rows) -> None:
        # Straight to its place: a second copy of a large row costs more than a step of Python. As bytes, not as void:
        # NumPy copies those without holding Python's lock.
        found = out.view(np.uint8).reshape(len(out), self._row_bytes)
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            number, local = divmod(row, self._shard_rows)
            shard = self._mapped(number)
            found[place] = shard.bytes[local]
            if self._left and self._unverified[row]:
                self._verify(out[place : place + 1], shard.sums, np.array([row]), first=row - local)

    def _verify(self, values: Array, sums: Array, rows: Rows, *, first: int) -> None:
        if not self._left:
            return
        unverified = self._unverified
        fresh = np.flatnonzero(unverified[rows])
        if self._wrong(values, sums, rows, fresh, first) is not None:
            self._read_anew(values, rows, first)
            return
        unverified[rows[fresh]] = False
        if len(fresh):
            self._left = bool(unverified.any())

    def _wrong(self, values: Array, sums: Array, rows: Rows, places: Rows, first: int) -> Damaged | None:
        found = values.view(np.uint8).reshape(len(values), self._row_bytes)
        for place in places.tolist():
            if crc32c(found[place]) != sums[rows[place] - first]:
                return Damaged(
                    f"row {rows[place]} of column {self._column.name!r} in {self._part.what} is damaged: its checksum "
                    f"does not fit its bytes; {RESTORE}"
                )
        return None

    def _read_anew(self, values: Array, rows: Rows, first: int) -> None:
        number = first // self._shard_rows

        def read() -> None:
            shard = self._mapped(number)
            values[:] = shard.values[rows - first]
            if (wrong := self._wrong(values, shard.sums, rows, np.arange(len(rows)), first)) is not None:
                self._shards.pop(number, None)
                self._unverified, self._left = np.ones(self._part.rows, bool), True  # of another copy, none is verified
                raise wrong

        self._part.of_sound_copy(self._column.stored, number, 1 + len(self._shape), read)

    def _mapped(self, number: int) -> _Shard:
        found = self._shards.get(number)
        if found is None:
            rows = min(self._shard_rows, self._part.rows - number * self._shard_rows)
            stride = row_stride(self._row_bytes)
            dimensions = 1 + len(self._shape)
            data = self._part.of_sound_copy(
                self._column.stored,
                number,
                dimensions,
                lambda: self._part.chunk(self._column.stored, number, dimensions, size=rows * stride),
            )
            found = self._shards[number] = _Shard(
                values=np.ndarray((rows,), f"V{self._row_bytes}", data, 0, (stride,)),
                bytes=np.ndarray((rows, self._row_bytes), np.uint8, data, 0, (stride, 1)),
                sums=np.ndarray((rows,), "<u4", data, self._row_bytes, (stride,)),
            )
        return found


class CompressedColumn:
    """Chunks of many rows, decoded when they are needed; the last few stay decoded."""

    def __init__(self, part: PartFiles, column: Column) -> None:
        assert column.row_bytes is not None
        self._part = part
        self._column = column
        self._row_bytes = column.row_bytes
        self._chunks = Chunks(part, column.stored, 1 + len(column.fixed), column.row_bytes)
        part.lies_as(column.stored, part.rows, column.fixed, column.dtype)
        self.chunk_rows = self._chunks.rows

    def gather(self, rows: Rows) -> Array:
        """See `Gatherer`; shape (rows, *column.shape)."""
        out = np.empty(len(rows), f"V{self._row_bytes}")
        self.copy(rows, out, np.arange(len(rows)))
        return out.view(self._column.dtype).reshape(len(rows), *self._column.fixed)

    def copy(self, rows: Rows, out: Array, places: Rows) -> None:
        """See `Gatherer`."""
        chunks = rows // self.chunk_rows
        for number in np.unique(chunks).tolist():
            some = np.flatnonzero(chunks == number)
            values = self._chunks.decoded(number).view(out.dtype)
            out[places[some]] = values[rows[some] - number * self.chunk_rows]

    def read(self, number: int, out: Array) -> None:
        """Decodes a chunk into `out`, uint8, contiguous, of its size."""
        self._chunks.read(number, out)

    def warm_up(self) -> int:
        """See `Gatherer`."""
        return self._chunks.warm_up(-(-self._part.rows // self.chunk_rows))


class RaggedColumn:
    """Items of all rows end to end, in checksummed chunks that are compared the first time they are touched."""

    def __init__(self, part: PartFiles, column: Column) -> None:
        self._part = part
        self._column = column
        self._name = f"{column.stored}_data"
        items = part.lies_as(self._name, None, column.fixed, column.dtype)
        bounds = read_table(part, f"{column.stored}_offsets", (), "uint64", part.rows + 1)
        if bounds[0] != 0 or bounds[-1] > items.items or (bounds[:-1] > bounds[1:]).any():
            rule = f"rows of column {column.name!r} lie one after another in {items.items} items"
            raise Damaged(f"{part.what} is damaged: {rule}; its offsets say otherwise; {RESTORE}")
        self._bounds = bounds.astype(np.int64) * column.item_bytes
        self._chunk_bytes = items.rows * column.item_bytes
        self._chunks = MappedChunks(part, self._name, 1 + len(column.fixed), self._chunk_bytes)
        self._compressed = (
            None if column.profile == "raw" else Chunks(part, self._name, 1 + len(column.fixed), column.item_bytes)
        )

    def gather(self, rows: Rows) -> list[Any]:
        """See `Gatherer`; bytes or arrays."""
        found = [self._slice(int(self._bounds[row]), int(self._bounds[row + 1])) for row in rows]
        if self._column.shape is None:
            return found
        return [np.frombuffer(data, self._column.dtype).reshape(-1, *self._column.fixed) for data in found]

    def lengths(self, rows: Rows) -> Rows:
        """Items, or bytes, of rows."""
        found: Rows = (self._bounds[rows + 1] - self._bounds[rows]) // self._column.item_bytes
        return found

    def copy(self, rows: Rows, out: list[Any], places: Rows) -> None:
        """See `Gatherer`."""
        for place, value in zip(places.tolist(), self.gather(rows), strict=True):
            out[place] = value

    def warm_up(self) -> int:
        """See `Gatherer`."""
        size = int(self._bounds[-1])
        count = -(-size // self._chunk_bytes)
        if self._compressed is not None:
            return self._compressed.warm_up(count)
        for number in range(count):
            self._chunk(number)
        return size

    def _slice(self, start: int, end: int) -> bytes:
        refuse_beyond_memory(f"a row of column {self._column.name!r} in {self._part.what}", end - start)
        pieces = []
        while start < end:
            number, offset = divmod(start, self._chunk_bytes)
            piece = self._chunk(number)[offset : offset + end - start]
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def _chunk(self, number: int) -> memoryview:
        if self._compressed is not None:
            return memoryview(self._compressed.decoded(number).data)
        return self._chunks[number]
