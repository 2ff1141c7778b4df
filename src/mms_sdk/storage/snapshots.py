"""Reading a snapshot: whole small columns, and rows gathered from large ones straight out of the page cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mms_sdk import html, told
from mms_sdk.errors import ColumnNotFound, Damaged, InvalidRequest, SplitNotFound
from mms_sdk.schema.dataset import Column, Part, Snapshot, meant_column
from mms_sdk.storage.chunks import LongTable, Recent, read_table
from mms_sdk.storage.columns import CompressedColumn, Gatherer, RaggedColumn, RawColumn
from mms_sdk.storage.part_files import PartFiles
from mms_sdk.storage.parts import DELETED, is_compressed, is_raw
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.row_numbers import row_numbers
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.remote import at_once
from mms_sdk.types import Array, Rows

_TABLE_BYTES = 64 * 2**20  # of all long tables together: chunks that are kept for the next rows
_KEPT_ROWS = 2**20  # of shorter tables a whole column is kept, whoever asks for rows of it


class Chunked(NamedTuple):
    """Where rows of a compressed column lie, each an int64 array of shape (rows,).

    Attributes:
        part: The part's place in the snapshot.
        chunk: The chunk's number within the part.
        place: The row's place within the chunk.
        chunk_rows: Rows in each chunk of the part.
    """

    part: Rows
    chunk: Rows
    place: Rows
    chunk_rows: Rows


class OpenSnapshot:
    """One snapshot of a dataset, open for reading.

    Rows are numbered from 0 through all parts, past those that were deleted. Reading is safe from several threads.

    Args:
        parts: Where the dataset's parts lie.
        record: The snapshot's description.

    Raises:
        Damaged: A part's file is missing or of the wrong size.
    """

    def __init__(self, parts: Store, record: Snapshot) -> None:
        self.record = record
        self._parts = [_OpenPart(parts, part, record) for part in record.parts]
        self._starts = np.cumsum([0, *(part.live for part in record.parts)])
        self._tables: dict[str, Array] = {}
        self._valid_rows: dict[str, Array] = {}
        self._gatherers: dict[str, list[Gatherer]] = {}
        self._long_tables: dict[str, LongTable] = {}
        self._recent = Recent(_TABLE_BYTES)
        self.local = parts.local
        self._check(content=False)

    def __repr__(self) -> str:
        return f"<snapshot {self.ref}: {told.counted(self.rows, 'row')}, {told.counted(len(self._parts), 'part')}>"

    def _repr_html_(self) -> str:
        rows = [[column.name, column.kind, column.form] for column in self.record.columns]
        return html.table(repr(self).strip("<>"), ["column", "kind", "values"], rows)

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
            columns = self.record.columns
            names, meant = [each.name for each in columns], meant_column(name, columns)
            raise ColumnNotFound(f"{self.ref} has no column {name!r}; it has {names}{meant}")
        return column

    def values(self, name: str) -> Array:
        """A whole column of fixed shape.

        Returns:
            Array of shape (rows, *column.shape), masked where a nullable column has no value. The same array on every
            call: do not write to it.
        """
        column = self.column(name)
        if column.varies:
            raise InvalidRequest(f"column {name!r} has rows of varying length; read them with gather()")
        if name not in self._tables:
            if is_raw(column):
                self._tables[name] = self.gather(name, self._all_rows())
            else:
                values = self._table(column, column.stored, column.fixed, column.dtype)
                values = _masked(values, self._valid(column)) if column.nullable else values
                self._refuse_codes_without_labels(column, values)
                self._tables[name] = values
        return self._tables[name]

    def _refuse_codes_without_labels(self, column: Column, values: Array) -> None:
        # Classes and splits are counted by them; what a category's code names is only looked at.
        if column.labels is None or column.kind not in ("label", "split"):
            return
        codes = np.ma.compressed(values) if column.nullable else values
        if codes.size and not 0 <= codes.min() <= codes.max() < len(column.labels):
            raise Damaged(
                f"{self.ref} is damaged: codes of column {column.name!r} are those of its labels, 0 to "
                f"{len(column.labels) - 1}; there are {codes.min()} to {codes.max()}; {RESTORE}"
            )

    def gather(self, name: str, rows: Rows | Sequence[int]) -> Any:
        """Rows of a column, in the order asked for.

        Args:
            name: The column.
            rows: Row numbers, int64, shape (n,); repeats are allowed.

        Returns:
            A fresh array of shape (n, *column.shape); a list of `bytes` or arrays for a column of varying length. Where
            a nullable column has no value the array is masked, and the list has None.

        Raises:
            Damaged: A row's checksum does not fit its bytes.
        """
        column = self.column(name)
        rows = self._numbers(rows)
        if name in self._tables or not self._large(column):
            return self.values(name)[rows]
        return self.masked(column, self._gather(column, rows), rows)

    def _large(self, column: Column) -> bool:
        # Asked for every batch.
        return column.name in self._gatherers or column.varies or is_raw(column) or is_compressed(column)

    def _numbers(self, rows: Rows | Sequence[int]) -> Rows:
        rows = row_numbers(rows)
        if rows.size and int(rows.view(np.uint64).max()) >= self.rows:  # as such a negative one is beyond all others
            raise InvalidRequest(
                f"row numbers of {self.ref} are 0 to {self.rows - 1}; got {rows.min()} to {rows.max()}"
            )
        return rows

    def lengths(self, name: str, rows: Rows) -> Rows:
        """How many items, or bytes, each of some rows of a column of varying length has; its values are not read."""
        gatherers = [each for each in self._gatherers_of(self.column(name)) if isinstance(each, RaggedColumn)]
        where = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty(len(rows), np.int64)
        for part in np.unique(where).tolist():
            places = np.flatnonzero(where == part)
            out[places] = gatherers[part].lengths(self._parts[part].physical(rows[places] - self._starts[part]))
        return out

    def release(self, name: str) -> None:
        """Lets go of what is kept of a column in memory; it is read again when it is asked for."""
        for kept in (self._tables, self._valid_rows, self._gatherers):
            kept.pop(name, None)

    def has_value(self, name: str, rows: Rows) -> Array:
        """Which of some rows have a value in a column: bool, shape (n,); values are not read."""
        column = self.column(name)
        return self._valid(column)[rows] if column.nullable else np.ones(len(rows), bool)

    def take(self, name: str, rows: Rows) -> Any:
        """Rows of a column as `gather` gives them, for reading through a snapshot once: no long column is kept."""
        column = self.column(name)
        if self.rows <= _KEPT_ROWS or name in self._tables or column.row_bytes == 0:
            return self.gather(name, rows)
        rows = self._numbers(rows)
        large = column.varies or is_raw(column)
        values = self._gather(column, rows) if large else self._few(column, column, rows)
        if column.nullable:
            there = column.model_copy(update={"shape": (), "dtype": "bool", "nullable": False, "profile": "raw"})
            values = _with_missing(column, values, self._few(column, there, rows, array=f"{column.stored}_valid"))
        if not large:
            self._refuse_codes_without_labels(column, values)
        return values

    def _few(self, column: Column, stored: Column, rows: Rows, *, array: str = "") -> Array:
        # Of a table, chunk by chunk.
        array = array or stored.stored
        if array not in self._long_tables:
            files = [part.files_of(column) for part in self._parts]
            self._long_tables[array] = LongTable(files, array, stored, self._recent)
        where = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty(len(rows), f"V{stored.row_bytes}")
        for number in np.unique(where).tolist():
            places = np.flatnonzero(where == number)
            physical = self._parts[number].physical(rows[places] - self._starts[number])
            self._long_tables[array].copy(number, physical, out, places)
        return out.view(stored.dtype).reshape(len(rows), *stored.fixed)

    def masked(self, column: Column, values: Any, rows: Rows) -> Any:
        """Values of some rows, without those that a nullable column has not: masked, or None in a list."""
        if not column.nullable:
            return values
        return _with_missing(column, values, self._valid(column)[rows])

    def _gather(self, column: Column, rows: Rows) -> Any:
        gatherers = self._gatherers_of(column)
        if len(gatherers) == 1:
            return gatherers[0].gather(self._parts[0].physical(rows))
        where = np.searchsorted(self._starts, rows, side="right") - 1
        out: Any = [None] * len(rows) if column.varies else np.empty(len(rows), f"V{column.row_bytes}")
        for part in np.unique(where).tolist():
            places = np.flatnonzero(where == part)
            gatherers[part].copy(self._parts[part].physical(rows[places] - self._starts[part]), out, places)
        return out if column.varies else out.view(column.dtype).reshape(len(rows), *column.fixed)

    def chunked(self, name: str, rows: Rows) -> Chunked:
        """Which chunk of a compressed column holds each of some rows.

        Args:
            name: The column; of fixed shape and not raw.
            rows: Row numbers, int64, shape (n,), ascending.
        """
        column = self.column(name)
        columns = self._compressed(column)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        chunk_rows = np.array([each.chunk_rows for each in columns], np.int64)
        bounds = np.searchsorted(rows, self._starts)
        inside = [
            part.physical(rows[start:end] - first)
            for part, first, start, end in zip(self._parts, self._starts, bounds, bounds[1:], strict=False)
        ]
        physical = np.concatenate([np.empty(0, np.int64), *inside])
        sizes = chunk_rows[parts]
        return Chunked(parts, physical // sizes, physical % sizes, sizes)

    def read_chunk(self, name: str, part: int, number: int, out: Array) -> None:
        """Decodes one chunk of a compressed column.

        Args:
            name: The column.
            part: The part's place in the snapshot.
            number: The chunk's number within the part.
            out: uint8, contiguous, with room for exactly one chunk; the part's last one is padded.

        Raises:
            Damaged: The chunk is not what was written.
        """
        self._compressed(self.column(name))[part].read(number, out)

    def _compressed(self, column: Column) -> list[CompressedColumn]:
        return [each for each in self._gatherers_of(column) if isinstance(each, CompressedColumn)]

    def warm_up(self, name: str) -> int:
        """Compares every checksum of a column now rather than when its rows are first asked for.

        Returns:
            Bytes compared, as they lie.

        Raises:
            Damaged: A row or chunk is not what was written.
        """
        column = self.column(name)
        if not (column.varies or is_raw(column) or is_compressed(column)):
            return int(self.values(name).nbytes)
        return sum(at_once(lambda each: each.warm_up(), self._gatherers_of(column)))

    def places(self, rows: Rows) -> dict[str, Rows]:
        """Where rows lie: for each part that has some of them, by its id, their row numbers within it, ascending."""
        wanted = np.unique(np.asarray(rows, np.int64))
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= self.rows):
            raise InvalidRequest(f"row numbers of {self.ref} are 0 to {self.rows - 1}; got {wanted[0]} to {wanted[-1]}")
        bounds = np.searchsorted(wanted, self._starts)
        found = {}
        for number, part in enumerate(self._parts):
            within = wanted[bounds[number] : bounds[number + 1]] - self._starts[number]
            if len(within):
                found[part.record.id] = part.physical(within)
        return found

    def rows_of(self, part: str) -> tuple[int, Rows]:
        """The number of a part's first row, and where its rows lie within it, ascending."""
        number = next(number for number, each in enumerate(self._parts) if each.record.id == part)
        return int(self._starts[number]), self._parts[number].live

    def snapshots_of(self, part: str) -> Rows:
        """Which snapshot brought each of a part's rows."""
        found = next(each for each in self._parts if each.record.id == part)
        return found.snapshots[found.live]

    def rows_since(self, number: int) -> Rows:
        """Numbers of the rows that came in after an earlier snapshot, ascending."""
        fresh = [part.snapshots[part.live] > number for part in self._parts]
        return np.flatnonzero(np.concatenate([np.empty(0, bool), *fresh]))

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
            return self._all_rows()
        if split not in self.split_names:
            raise SplitNotFound(f"{self.ref} has no rows in split {split!r}; its splits are {dict(self.record.splits)}")
        labels = self.column("split").labels or ()
        return np.flatnonzero(self.values("split") == labels.index(split))

    def _all_rows(self) -> Rows:
        for part in self._parts:
            part.refuse_absent_rows()
        return np.arange(self.rows, dtype=np.int64)

    def verify(self) -> int:
        """Reads every byte of every part and compares digests.

        Returns:
            Bytes read.

        Raises:
            Damaged: Something is not what was written.
        """
        self._check(content=True)
        return self.bytes

    @property
    def bytes(self) -> int:
        """Bytes of the parts of this snapshot, as they lie."""
        return sum(each.size for each in self._files)

    def sizes(self) -> Iterator[tuple[Part, dict[str, int]]]:
        """Of each part the bytes of its arrays, by name; under "" those of descriptions and deletions."""
        for part in self._parts:
            found: Counter[str] = Counter()
            for sealed, files in zip(part.record.folders, part.files, strict=True):
                for array, size in files.array_sizes():
                    found[array if sealed is not part.record.deleted else ""] += size
            yield part.record, found

    @property
    def _files(self) -> list[PartFiles]:
        return [each for part in self._parts for each in part.files]

    def _check(self, *, content: bool) -> None:
        if self.local:
            for each in self._files:
                each.check(content=content)
        else:  # each waits for the network
            at_once(lambda each: each.check(content=content), self._files)

    def _valid(self, column: Column) -> Array:
        if column.name not in self._valid_rows:
            self._valid_rows[column.name] = self._table(column, f"{column.stored}_valid", (), "bool")
        return self._valid_rows[column.name]

    def _table(self, column: Column, array: str, shape: tuple[int, ...], dtype: str) -> Array:
        tables = [part.table(column, array, shape, dtype) for part in self._parts]
        return tables[0] if len(tables) == 1 else np.concatenate([np.empty((0, *shape), dtype), *tables])

    def _gatherers_of(self, column: Column) -> list[Gatherer]:
        if column.name not in self._gatherers:
            kind = RaggedColumn if column.varies else RawColumn if is_raw(column) else CompressedColumn
            self._gatherers[column.name] = [kind(part.files_of(column), column) for part in self._parts]
        return self._gatherers[column.name]


class _OpenPart:
    """A part with its layers, and which of its rows are still there."""

    def __init__(self, parts: Store, part: Part, snapshot: Snapshot) -> None:
        self.record = part
        self._columns = snapshot.columns
        what = "part {} of dataset " + repr(snapshot.dataset)
        self.files = [PartFiles(parts.below(each.id), each, what.format(each.id)) for each in part.folders]

    def files_of(self, column: Column) -> PartFiles:
        layers = zip(self.record.layers, self.files[1:], strict=False)
        return next((files for layer, files in layers if column.stored in layer.arrays), self.files[0])

    def table(self, column: Column, array: str, shape: tuple[int, ...], dtype: str) -> Array:
        found = read_table(self.files_of(column), array, shape, dtype, self.record.rows)
        return found if self.record.deleted is None else found[self.live]

    def physical(self, rows: Rows) -> Rows:
        return rows if self.record.deleted is None else self.live[rows]

    def refuse_absent_rows(self) -> None:
        """Makes sure that there are as many rows as are told of before there is a number for each.

        Raises:
            Damaged: There are not.
        """
        for column in self._columns[:1]:
            array = f"{column.stored}_offsets" if column.varies else column.stored
            bounds = (self.record.rows + 1, (), "uint64")
            rows, shape, dtype = bounds if column.varies else (self.record.rows, column.fixed, column.dtype)
            self.files_of(column).lies_as(array, rows, shape, dtype)

    @cached_property
    def live(self) -> Rows:
        self.refuse_absent_rows()
        if self.record.deleted is None:
            return np.arange(self.record.rows)
        gone = read_table(self.files[-1], DELETED.name, (), DELETED.dtype, self.record.deleted.rows)
        if len(gone) and (gone[0] < 0 or gone[-1] >= self.record.rows or (gone[:-1] >= gone[1:]).any()):
            raise Damaged(
                f"{self.files[-1].what} is damaged: it lists rows of a part of {self.record.rows}, ascending; it has "
                f"others; {RESTORE}"
            )
        there = np.ones(self.record.rows, bool)
        there[gone] = False
        return np.flatnonzero(there)

    @cached_property
    def snapshots(self) -> Rows:
        runs = self.record.since
        return np.repeat([run.snapshot for run in runs], [run.rows for run in runs])


def _with_missing(column: Column, values: Any, valid: Array) -> Any:
    if not column.varies:
        return _masked(values, valid)
    return [value if there else None for value, there in zip(values, valid, strict=True)]


def _masked(values: Array, valid: Array) -> Array:
    mask = np.broadcast_to(~valid.reshape(-1, *(1 for _ in values.shape[1:])), values.shape)
    return np.ma.MaskedArray(values, mask)
