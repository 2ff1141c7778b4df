"""Reading a snapshot: whole small columns, and rows gathered from large ones straight out of the page cache."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mms_sdk.errors import ColumnNotFound, Damaged, InvalidRequest, SplitNotFound
from mms_sdk.schema.dataset import Column, Part, Snapshot
from mms_sdk.storage import manifest
from mms_sdk.storage.parts import CHUNK_BYTES, CRC_BYTES, GROUP, crc32c, is_raw, rows_per_shard
from mms_sdk.types import Array, Rows


class OpenSnapshot:
    """One snapshot of a dataset, open for reading.

    Rows are numbered from 0 through all parts. Reading is safe from several threads.

    Args:
        parts: The dataset's `parts/` folder.
        record: The snapshot's description.

    Raises:
        Damaged: A part's file is missing or of the wrong size.
    """

    def __init__(self, parts: Path, record: Snapshot) -> None:
        self.record = record
        self._folders = [parts / part.id for part in record.parts]
        self._starts = np.cumsum([0, *(part.rows for part in record.parts)])
        self._tables: dict[str, Array] = {}
        self._gatherers: dict[str, list[_Gatherer]] = {}
        for folder, part in zip(self._folders, record.parts, strict=True):
            manifest.check(folder, what=self._what(part), expected=part.manifest)

    def __repr__(self) -> str:
        return f"<snapshot {self.ref}: {self.rows:,} rows, {len(self._folders)} parts>"

    @property
    def ref(self) -> str:
        """The reference that names exactly these rows, e.g. `flowers@7`."""
        return f"{self.record.dataset}@{self.record.number}"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.record.rows

    def column(self, name: str) -> Column:
        """The description of a column.

        Raises:
            ColumnNotFound: The snapshot has no such column.
        """
        column = self.record.column(name)
        if column is None:
            names = [column.name for column in self.record.columns]
            raise ColumnNotFound(f"{self.ref} has no column {name!r}; it has {names}")
        return column

    def values(self, name: str) -> Array:
        """A whole column of fixed shape.

        Returns:
            Array of shape (rows, *column.shape). The same array on every call: do not write to it.
        """
        column = self.column(name)
        if column.shape is None:
            raise InvalidRequest(f"column {name!r} has rows of varying length; read them with gather()")
        if name not in self._tables:
            if is_raw(column):
                self._tables[name] = self.gather(name, np.arange(self.rows))
            else:
                tables = [
                    _read_table(folder / GROUP / name, column.shape, column.dtype, part.rows, self._what(part))
                    for folder, part in zip(self._folders, self.record.parts, strict=True)
                ]
                empty = np.empty((0, *column.shape), column.dtype)
                self._tables[name] = np.concatenate([empty, *tables])
        return self._tables[name]

    def gather(self, name: str, rows: Rows) -> Any:
        """Rows of a column, in the order asked for.

        Args:
            name: The column.
            rows: Row numbers, int64, shape (n,); repeats are allowed.

        Returns:
            A fresh array of shape (n, *column.shape); a list of `bytes` for a column of varying length.

        Raises:
            Damaged: A row's checksum does not fit its bytes.
        """
        column = self.column(name)
        if rows.size and not (0 <= int(rows.min()) and int(rows.max()) < self.rows):
            raise InvalidRequest(f"row numbers of {self.ref} are 0 to {self.rows - 1}; got {rows.min()} to {rows.max()}")
        if column.shape is not None and not is_raw(column):
            return self.values(name)[rows]
        gatherers = self._gatherers_of(column)
        if len(gatherers) == 1:
            return gatherers[0].gather(rows)
        where = np.searchsorted(self._starts, rows, side="right") - 1
        if column.shape is None:
            texts: list[bytes] = [b""] * len(rows)
            for part in np.unique(where):
                places = np.flatnonzero(where == part)
                found = gatherers[part].gather(rows[places] - self._starts[part])
                for place, value in zip(places, found, strict=True):
                    texts[place] = value
            return texts
        out = np.empty((len(rows), *column.shape), column.dtype)
        for part in np.unique(where):
            places = np.flatnonzero(where == part)
            out[places] = gatherers[part].gather(rows[places] - self._starts[part])
        return out

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits that have rows."""
        return tuple(name for name, rows in self.record.splits.items() if rows)

    def split_rows(self, split: str | None) -> Rows:
        """Row numbers of a split, ascending; all rows for None.

        Raises:
            SplitNotFound: The snapshot has no such split, or it is empty.
        """
        if split is None:
            return np.arange(self.rows, dtype=np.int64)
        if split not in self.split_names:
            raise SplitNotFound(f"{self.ref} has no rows in split {split!r}; its splits are {dict(self.record.splits)}")
        labels = self.column("split").labels or ()
        return np.flatnonzero(self.values("split") == labels.index(split))

    def verify(self) -> int:
        """Reads every byte of every part and compares digests.

        Returns:
            Bytes read.

        Raises:
            Damaged: Something is not what was written.
        """
        for folder, part in zip(self._folders, self.record.parts, strict=True):
            manifest.check(folder, what=self._what(part), expected=part.manifest, content=True)
        return self.bytes

    @property
    def bytes(self) -> int:
        """Bytes on disk of the parts of this snapshot."""
        return sum(path.stat().st_size for folder in self._folders for path in folder.rglob("*") if path.is_file())

    def _gatherers_of(self, column: Column) -> list[_Gatherer]:
        if column.name not in self._gatherers:
            kind = _RaggedColumn if column.shape is None else _RawColumn
            self._gatherers[column.name] = [
                kind(folder / GROUP, column, part.rows, self._what(part))
                for folder, part in zip(self._folders, self.record.parts, strict=True)
            ]
        return self._gatherers[column.name]

    def _what(self, part: Part) -> str:
        return f"part {part.id} of dataset {self.record.dataset!r}"


class _Gatherer(Protocol):
    def gather(self, rows: Rows) -> Any:
        """Rows of one part, numbered within the part."""


class _RawColumn:
    """Shards of checksummed rows, mapped; a row's checksum is compared the first time it is touched."""

    def __init__(self, group: Path, column: Column, rows: int, what: str) -> None:
        assert column.row_bytes is not None and column.shape is not None
        self._column = column
        self._shape = column.shape
        self._row_bytes = column.row_bytes
        self._root = group / column.name / "c"
        self._what = what
        self._shard_rows = rows_per_shard(column)
        self._rows = rows
        self._shards: dict[int, tuple[Array, Array]] = {}
        self._unverified = np.ones(rows, bool)

    def gather(self, rows: Rows) -> Array:
        if self._rows <= self._shard_rows:
            out = self._from_shard(0, rows)
        else:
            out = np.empty(len(rows), f"V{self._row_bytes}")
            shards = rows // self._shard_rows
            for shard in np.unique(shards):
                places = np.flatnonzero(shards == shard)
                out[places] = self._from_shard(int(shard), rows[places])
        return out.view(self._column.dtype).reshape(len(rows), *self._shape)

    def _from_shard(self, shard: int, rows: Rows) -> Array:
        values, sums = self._mapped(shard)
        local = rows - shard * self._shard_rows
        out = values[local]
        fresh = np.flatnonzero(self._unverified[rows])
        if len(fresh):
            self._verify(out, sums[local], rows, fresh)
        return out

    def _verify(self, values: Array, sums: Array, rows: Rows, fresh: Rows) -> None:
        for place in fresh:
            if crc32c(values[place].tobytes()) != sums[place]:
                raise Damaged(
                    f"row {rows[place]} of column {self._column.name!r} in {self._what} is damaged: its checksum does "
                    f"not fit its bytes; restore the part from a backup"
                )
        self._unverified[rows[fresh]] = False

    def _mapped(self, shard: int) -> tuple[Array, Array]:
        if shard not in self._shards:
            rows = min(self._shard_rows, self._rows - shard * self._shard_rows)
            stride = self._row_bytes + CRC_BYTES
            data = _map(self._root.joinpath(str(shard), *("0" for _ in self._shape)))
            # A void dtype makes one row one element, so that fancy indexing copies whole rows.
            values = np.ndarray((rows,), f"V{self._row_bytes}", data, 0, (stride,))
            sums = np.ndarray((rows,), "<u4", data, self._row_bytes, (stride,))
            self._shards[shard] = values, sums
        return self._shards[shard]


class _RaggedColumn:
    """Bytes of all rows end to end, in checksummed chunks that are compared the first time they are touched."""

    def __init__(self, group: Path, column: Column, rows: int, what: str) -> None:
        self._name = column.name
        self._what = what
        self._root = group / f"{column.name}_data" / "c"
        self._bounds = _read_table(group / f"{column.name}_offsets", (), "uint64", rows + 1, what).astype(np.int64)
        self._chunk_bytes = _declared_chunk(int(self._bounds[-1]))
        self._chunks: dict[int, memoryview] = {}

    def gather(self, rows: Rows) -> list[bytes]:
        return [self._slice(int(self._bounds[row]), int(self._bounds[row + 1])) for row in rows]

    def _slice(self, start: int, end: int) -> bytes:
        pieces = []
        while start < end:
            number, offset = divmod(start, self._chunk_bytes)
            piece = self._chunk(number)[offset : offset + end - start]
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def _chunk(self, number: int) -> memoryview:
        if number not in self._chunks:
            whole = memoryview(_map(self._root / str(number)))
            self._chunks[number] = _checked_chunk(whole, self._name, self._what)
        return self._chunks[number]


def _declared_chunk(total: int) -> int:
    return CHUNK_BYTES if total >= CHUNK_BYTES else max(1, total)


def _read_table(root: Path, shape: Sequence[int], dtype: str, rows: int, what: str) -> Array:
    # Chunk files by number: every one but the last is full, and the last is padded.
    row_bytes = max(1, int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64)))
    chunk_rows = max(1, CHUNK_BYTES // row_bytes)
    chunks = -(-rows // chunk_rows) if rows else 0
    pieces = []
    for number in range(chunks):
        data = root.joinpath("c", str(number), *("0" for _ in shape)).read_bytes()
        pieces.append(_checked_chunk(memoryview(data), root.name, what))
    return np.frombuffer(b"".join(pieces), dtype)[: rows * max(1, int(np.prod(shape)))].reshape(rows, *shape)


def _checked_chunk(whole: memoryview, name: str, what: str) -> memoryview:
    data, stored = whole[:-CRC_BYTES], whole[-CRC_BYTES:]
    if crc32c(bytes(data)) != int.from_bytes(stored, "little"):
        raise Damaged(
            f"column {name!r} in {what} is damaged: a chunk's checksum does not fit its bytes; restore the part from a "
            f"backup"
        )
    return data


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
