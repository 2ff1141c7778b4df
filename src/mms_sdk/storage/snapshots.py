"""Reading a snapshot: whole small columns, and rows gathered from large ones straight out of the page cache."""

from __future__ import annotations

import mmap
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import orjson
import psutil

from mms_sdk import html, told
from mms_sdk.errors import ColumnNotFound, Damaged, InvalidRequest, SplitNotFound, TooLarge
from mms_sdk.schema.dataset import Column, Part, Sealed, Snapshot
from mms_sdk.storage import codecs, manifest
from mms_sdk.storage.parts import CRC_BYTES, DELETED, GROUP, crc32c, is_compressed, is_raw
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.remote import at_once, of_sound_copy
from mms_sdk.types import Array, Rows

MAX_CHUNK_BYTES = 2**30  # decoded; larger ones are taken for a mistake in the metadata
_DECODED_BYTES = 64 * 2**20  # of each column that is compressed: chunks that are kept decoded for the next gather
_TABLE_BYTES = 16 * 2**20  # of each array of a long table: chunks that are kept for the next rows
_KEPT_ROWS = 2**20  # of shorter tables a whole column is kept, whoever asks for rows of it
_PIECE_BYTES = 2**20
_LARGE_ROW_BYTES = 2**14
_Read = TypeVar("_Read")


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
        self._gatherers: dict[str, list[_Gatherer]] = {}
        self._long_tables: dict[str, _LongTable] = {}
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
            names = [column.name for column in self.record.columns]
            raise ColumnNotFound(f"{self.ref} has no column {name!r}; it has {names}")
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
                f"{len(column.labels) - 1}; there are {codes.min()} to {codes.max()}; restore it from a backup"
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
        rows = np.asarray(rows, np.int64)
        if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= self.rows):
            raise InvalidRequest(
                f"row numbers of {self.ref} are 0 to {self.rows - 1}; got {rows.min()} to {rows.max()}"
            )
        if name in self._tables or not (column.varies or is_raw(column) or is_compressed(column)):
            return self.values(name)[rows]
        return self.masked(column, self._gather(column, rows), rows)

    def lengths(self, name: str, rows: Rows) -> Rows:
        """How many items, or bytes, each of some rows of a column of varying length has; its values are not read."""
        gatherers = [each for each in self._gatherers_of(self.column(name)) if isinstance(each, _RaggedColumn)]
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
        values = self._gather(column, rows) if column.varies or is_raw(column) else self._few(column, column, rows)
        if not column.nullable:
            return values
        there = column.model_copy(update={"shape": (), "dtype": "bool", "nullable": False, "profile": "raw"})
        return _with_missing(column, values, self._few(column, there, rows, array=f"{column.stored}_valid"))

    def _few(self, column: Column, stored: Column, rows: Rows, *, array: str = "") -> Array:
        # Of a table, chunk by chunk.
        array = array or stored.stored
        if array not in self._long_tables:
            self._long_tables[array] = _LongTable([part.files_of(column) for part in self._parts], array, stored)
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

    def _compressed(self, column: Column) -> list[_CompressedColumn]:
        return [each for each in self._gatherers_of(column) if isinstance(each, _CompressedColumn)]

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
    def _files(self) -> list[_PartFiles]:
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

    def _gatherers_of(self, column: Column) -> list[_Gatherer]:
        if column.name not in self._gatherers:
            kind = _RaggedColumn if column.varies else _RawColumn if is_raw(column) else _CompressedColumn
            self._gatherers[column.name] = [kind(part.files_of(column), column) for part in self._parts]
        return self._gatherers[column.name]


class _OpenPart:
    """A part with its layers, and which of its rows are still there."""

    def __init__(self, parts: Store, part: Part, snapshot: Snapshot) -> None:
        self.record = part
        self._columns = snapshot.columns
        what = "part {} of dataset " + repr(snapshot.dataset)
        self.files = [_PartFiles(parts.below(each.id), each, what.format(each.id)) for each in part.folders]

    def files_of(self, column: Column) -> _PartFiles:
        layers = zip(self.record.layers, self.files[1:], strict=False)
        return next((files for layer, files in layers if column.stored in layer.arrays), self.files[0])

    def table(self, column: Column, array: str, shape: tuple[int, ...], dtype: str) -> Array:
        found = _read_table(self.files_of(column), array, shape, dtype, self.record.rows)
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
        gone = _read_table(self.files[-1], DELETED.name, (), DELETED.dtype, self.record.deleted.rows)
        if len(gone) and (gone[0] < 0 or gone[-1] >= self.record.rows or (gone[:-1] >= gone[1:]).any()):
            raise Damaged(
                f"{self.files[-1].what} is damaged: it lists rows of a part of {self.record.rows}, ascending; it has "
                f"others; restore the part from a backup"
            )
        there = np.ones(self.record.rows, bool)
        there[gone] = False
        return np.flatnonzero(there)

    @cached_property
    def snapshots(self) -> Rows:
        runs = self.record.since
        return np.repeat([run.snapshot for run in runs], [run.rows for run in runs])


class _PartFiles:
    """A part's files, and what its Zarr metadata says of how the arrays in it lie."""

    def __init__(self, store: Store, part: Sealed, what: str) -> None:
        self._store = store
        self.rows = part.rows
        self.what = what
        self._manifest = part.manifest
        self._layouts: dict[str, _Layout] = {}

    def check(self, *, content: bool) -> None:
        manifest.check(self._store, what=self.what, expected=self._manifest, content=content)

    @property
    def size(self) -> int:
        return sum(each.bytes for each in self._store.walk(""))

    def array_sizes(self) -> Iterator[tuple[str, int]]:
        for path, size in manifest.sizes(self._store, what=self.what, expected=self._manifest).items():
            place = path.split("/")
            yield place[1] if place[0] == GROUP and len(place) > 2 else "", size

    def lies_as(self, array: str, items: int | None, shape: Sequence[int], dtype: str) -> _Layout:
        """How an array lies in its files, once that is what its column says, and so many files are there.

        Args:
            array: Which.
            items: How many it has along its first axis; None for as many as it says.
            shape: Of one of them.
            dtype: Of one value.

        Raises:
            Damaged: The metadata says otherwise, or has what no reader reads.
        """
        found = self.layout(array)
        wanted = (found.items if items is None else items, tuple(shape), dtype)
        if (found.items, found.shape, found.dtype) != wanted:
            rule = f"data_type {dtype}, shape {(wanted[0], *shape)} and chunks of whole rows, as its column"
            raise self.odd(array, rule, f"{found.dtype} and {(found.items, *found.shape)}, or parts of rows")
        files = -(-found.items // found.file_rows)
        if found.files != files and 0 not in found.shape:
            raise self.odd(array, f"{files} chunks for {found.items} rows", f"{found.files} are in the manifest")
        if found.sharded and found.bytes < (index := 16 * -(-found.items // found.rows)):
            raise self.odd(array, f"shards with {index} bytes of index", f"they have {found.bytes} in all")
        return found

    def layout(self, array: str) -> _Layout:
        """How the array lies in its files."""
        # Read, not computed: a part stays readable when the sizes that new parts are written with change.
        if array not in self._layouts:
            self._layouts[array] = self._read_layout(array)
        return self._layouts[array]

    def _read_layout(self, array: str) -> _Layout:
        name = f"{GROUP}/{array}/zarr.json"
        body = manifest.check_file(self._store, name, what=self.what, expected=self._manifest)
        try:
            told = orjson.loads(body)
            (items, *shape), dtype = told["shape"], told["data_type"]
            (file_rows, *file_shape), chain = told["chunk_grid"]["configuration"]["chunk_shape"], told["codecs"]
            names = tuple(each["name"] for each in chain)
            sharded = names == ("sharding_indexed",)
            rows, *chunk_shape = chain[0]["configuration"]["chunk_shape"] if sharded else (file_rows, *file_shape)
            inner = tuple(each["name"] for each in chain[0]["configuration"]["codecs"]) if sharded else names
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError) as error:
            raise self.odd(array, "shape, data_type, chunk_shape and codecs", "nothing that can be read") from error
        for each in (file_rows, rows):
            if type(each) is not int or each < 1:
                raise self.odd(array, "chunk_shape[0], at least 1", each)
        if type(items) is not int or items < 0:
            raise self.odd(array, "shape[0], 0 or more", items)
        if file_rows % rows:
            raise self.odd(array, "shards of whole chunks", f"{file_rows} and {rows} rows")
        if not shape == file_shape == chunk_shape:
            raise self.odd(array, "chunks of whole rows", f"{shape}, {file_shape} and {chunk_shape}")
        if inner not in _CODECS:
            allowed = " or ".join(" → ".join(chain) for chain in _CODECS)
            raise self.odd(array, f"codecs {allowed}", " → ".join(map(str, inner)))
        paths = manifest.sizes(self._store, what=self.what, expected=self._manifest)
        files = [size for path, size in paths.items() if path.startswith(f"{GROUP}/{array}/c/")]
        return _Layout(file_rows, rows, _CODECS[inner], sharded, items, tuple(shape), dtype, len(files), sum(files))

    def of_sound_copy(self, array: str, number: int, dimensions: int, read: Callable[[], _Read]) -> _Read:
        """What is read of a file of an array; from the store anew, if this machine's copy of it turns out damaged."""
        return of_sound_copy(self._store, _chunk_key(array, number, dimensions), read)

    def odd(self, array: str, rule: str, value: Any) -> Damaged:
        return Damaged(
            f"{self.what} is damaged: the metadata of array {array!r} has {rule}; it says {value}; restore the part "
            f"from a backup, or upgrade mms-sdk if a newer one wrote it"
        )

    def chunk(self, array: str, number: int, dimensions: int, *, size: int = 0) -> mmap.mmap:
        """A file of the array, mapped; at least so many bytes of it."""
        key = _chunk_key(array, number, dimensions)
        try:
            with self._store.open(key) as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError) as error:  # the second: an empty file cannot be mapped
            raise self._gone(key) from error
        if len(data) < size:
            raise self._gone(key)
        return data

    def _gone(self, key: str) -> Damaged:
        where = f"{self._store.url}/{key}"
        return Damaged(f"{self.what} is damaged: {where} is gone or cut short; restore the part from a backup")


def _chunk_key(array: str, number: int, dimensions: int) -> str:
    return "/".join((GROUP, array, "c", str(number), *("0" for _ in range(dimensions - 1))))


class _Layout(NamedTuple):
    """How an array lies in its files.

    Attributes:
        file_rows: Rows of a file.
        rows: Rows of a chunk; a shard has several of them.
        codec: How chunks are compressed.
        sharded: Whether files are shards.
        items: How many rows, or items of rows, it says it has.
        shape: Of one of them.
        dtype: Of one value.
        files: How many files the manifest lists.
        bytes: Their size.
    """

    file_rows: int
    rows: int
    codec: codecs.Codec | None
    sharded: bool
    items: int
    shape: tuple[int, ...]
    dtype: str
    files: int
    bytes: int


_CODECS: dict[tuple[str, ...], codecs.Codec | None] = {
    ("bytes", "crc32c"): None,
    ("bytes", "blosc", "crc32c"): "blosc",
    ("bytes", "zstd", "crc32c"): "zstd",
}


class _Gatherer(Protocol):
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


class _RawColumn:
    """Shards of checksummed rows, mapped; a row's checksum is compared the first time it is touched."""

    def __init__(self, part: _PartFiles, column: Column) -> None:
        assert column.row_bytes is not None
        self._part = part
        self._column = column
        self._shape = column.fixed
        self._row_bytes = column.row_bytes
        self._shard_rows = part.lies_as(column.stored, part.rows, column.fixed, column.dtype).file_rows
        self._shards: dict[int, tuple[Array, Array]] = {}
        self._unverified = np.ones(part.rows, bool)
        self._left = True  # whether any is unverified

    def gather(self, rows: Rows) -> Array:
        if len(rows) and self._part.rows <= self._shard_rows:
            values, sums = self._mapped(0)
            out = values[rows]
            self._verify(out, sums, rows, first=0)
        else:
            out = np.empty(len(rows), f"V{self._row_bytes}")
            self.copy(rows, out, np.arange(len(rows)))
        return out.view(self._column.dtype).reshape(len(rows), *self._shape)

    def copy(self, rows: Rows, out: Array, places: Rows) -> None:
        if self._row_bytes >= _LARGE_ROW_BYTES:
            self._copy_one_by_one(rows, out, places)
            return
        for shard, some in _pieces(rows // self._shard_rows, self._row_bytes):
            values, sums = self._mapped(shard)
            first = shard * self._shard_rows
            found = values[rows[some] - first]
            self._verify(found, sums, rows[some], first=first)
            out[places[some]] = found

    def warm_up(self) -> int:
        step = max(1, _PIECE_BYTES // self._row_bytes)
        for start in range(0, self._part.rows, step):
            self.gather(np.arange(start, min(start + step, self._part.rows)))
        return self._part.rows * (self._row_bytes + CRC_BYTES)

    def _copy_one_by_one(self, rows: Rows, out: Array, places: Rows) -> None:
        # Straight to its place: a second copy of a large row costs more than a step of Python.
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            shard, local = divmod(row, self._shard_rows)
            values, sums = self._mapped(shard)
            out[place : place + 1] = values[local : local + 1]
            if self._left and self._unverified[row]:
                self._verify(out[place : place + 1], sums, np.array([row]), first=row - local)

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
        for place in places.tolist():
            if crc32c(values[place].tobytes()) != sums[rows[place] - first]:
                return Damaged(
                    f"row {rows[place]} of column {self._column.name!r} in {self._part.what} is damaged: its checksum "
                    f"does not fit its bytes; restore the part from a backup"
                )
        return None

    def _read_anew(self, values: Array, rows: Rows, first: int) -> None:
        shard = first // self._shard_rows

        def read() -> None:
            mapped, sums = self._mapped(shard)
            values[:] = mapped[rows - first]
            if (wrong := self._wrong(values, sums, rows, np.arange(len(rows)), first)) is not None:
                self._shards.pop(shard, None)
                self._unverified, self._left = np.ones(self._part.rows, bool), True  # of another copy, none is verified
                raise wrong

        self._part.of_sound_copy(self._column.stored, shard, 1 + len(self._shape), read)

    def _mapped(self, shard: int) -> tuple[Array, Array]:
        if shard not in self._shards:
            rows = min(self._shard_rows, self._part.rows - shard * self._shard_rows)
            stride = self._row_bytes + CRC_BYTES
            dimensions = 1 + len(self._shape)
            data = self._part.of_sound_copy(
                self._column.stored,
                shard,
                dimensions,
                lambda: self._part.chunk(self._column.stored, shard, dimensions, size=rows * stride),
            )
            # A void dtype makes one row one element, so that fancy indexing copies whole rows.
            values = np.ndarray((rows,), f"V{self._row_bytes}", data, 0, (stride,))
            sums = np.ndarray((rows,), "<u4", data, self._row_bytes, (stride,))
            self._shards[shard] = values, sums
        return self._shards[shard]


class _CompressedColumn:
    """Chunks of many rows, decoded when they are needed; the last few stay decoded."""

    def __init__(self, part: _PartFiles, column: Column) -> None:
        assert column.row_bytes is not None
        self._part = part
        self._column = column
        self._row_bytes = column.row_bytes
        self._chunks = _Chunks(part, column.stored, 1 + len(column.fixed), column.row_bytes)
        part.lies_as(column.stored, part.rows, column.fixed, column.dtype)
        self.chunk_rows = self._chunks.rows

    def gather(self, rows: Rows) -> Array:
        out = np.empty(len(rows), f"V{self._row_bytes}")
        self.copy(rows, out, np.arange(len(rows)))
        return out.view(self._column.dtype).reshape(len(rows), *self._column.fixed)

    def copy(self, rows: Rows, out: Array, places: Rows) -> None:
        chunks = rows // self.chunk_rows
        for number in np.unique(chunks).tolist():
            some = np.flatnonzero(chunks == number)
            values = self._chunks.decoded(number).view(out.dtype)
            out[places[some]] = values[rows[some] - number * self.chunk_rows]

    def read(self, number: int, out: Array) -> None:
        self._chunks.read(number, out)

    def warm_up(self) -> int:
        return self._chunks.warm_up(-(-self._part.rows // self.chunk_rows))


class _Chunks:
    """The compressed chunks of one array; those decoded last are kept, in bounded memory."""

    def __init__(self, part: _PartFiles, array: str, dimensions: int, row_bytes: int) -> None:
        self._part = part
        self._array = array
        self._dimensions = dimensions
        layout = part.layout(array)
        self.rows = layout.rows
        self._bytes = self.rows * row_bytes
        self._in_shard = layout.file_rows // layout.rows
        if layout.codec is None or not layout.sharded or self._bytes > MAX_CHUNK_BYTES:
            rule = f"shards, a compressing codec and chunks of at most {MAX_CHUNK_BYTES} bytes"
            told = f"{'shards' if layout.sharded else 'none'}, {layout.codec or 'no codec'} and {self._bytes} bytes"
            raise part.odd(array, rule, told)
        self._codec: codecs.Codec = layout.codec
        self._shards: dict[int, tuple[memoryview, Array]] = {}
        self._verified: set[int] = set()  # as with raw rows, the first time they are touched
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.Lock()

    def decoded(self, number: int) -> Array:
        """A chunk's bytes; not to be written to."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        out = np.empty(self._bytes, np.uint8)
        self.read(number, out)
        with self._lock:
            self._kept[number] = out
            while len(self._kept) > max(1, _DECODED_BYTES // self._bytes):
                self._kept.popitem(last=False)
        return out

    def read(self, number: int, out: Array) -> None:
        """Decodes a chunk into `out`, uint8, contiguous, of its size."""
        data = self._verified_chunk(number)
        try:
            codecs.decode(self._codec, data, out)
        except ValueError as error:
            raise Damaged(
                f"array {self._array!r} in {self._part.what} is damaged: chunk {number} holds {self._bytes} bytes of "
                f"values; {error}; restore the part from a backup"
            ) from error

    def warm_up(self, count: int) -> int:
        """Compares the checksums of the first so many chunks; returns how many bytes that were."""
        return sum(len(self._verified_chunk(number)) for number in range(count))

    def _verified_chunk(self, number: int) -> memoryview:
        shard = number // self._in_shard

        def read() -> memoryview:
            try:
                return self._compared(number)
            except Damaged:
                self._shards.pop(shard, None)
                self._verified = set()  # of another copy, none is verified
                raise

        return self._part.of_sound_copy(self._array, shard, self._dimensions, read)

    def _compared(self, number: int) -> memoryview:
        verified = self._verified
        framed = self._framed(number)
        data = framed[:-CRC_BYTES]
        if number not in verified:
            if crc32c(data.tobytes()) != int.from_bytes(framed[-CRC_BYTES:], "little"):
                raise _bad_sum(self._part, self._array, number)
            verified.add(number)
        return data

    def _framed(self, number: int) -> memoryview:
        shard, place = divmod(number, self._in_shard)
        if shard not in self._shards:
            self._shards[shard] = self._opened(shard)
        file, index = self._shards[shard]
        begin, size = index[place].tolist()
        if size <= CRC_BYTES or begin + size > len(file):
            raise _bad_sum(self._part, self._array, number)
        return file[begin : begin + size]

    def _opened(self, shard: int) -> tuple[memoryview, Array]:
        index_bytes = 16 * self._in_shard
        mapped = self._part.chunk(self._array, shard, self._dimensions, size=index_bytes + CRC_BYTES)
        file, index = memoryview(mapped), mapped[-index_bytes - CRC_BYTES : -CRC_BYTES]
        if crc32c(index) != int.from_bytes(file[-CRC_BYTES:], "little"):
            raise Damaged(
                f"array {self._array!r} in {self._part.what} is damaged: the checksum of the index of shard {shard} "
                f"does not fit it; restore the part from a backup"
            )
        return file[: -index_bytes - CRC_BYTES], np.frombuffer(index, "<u8").reshape(-1, 2)

    def all(self, count: int) -> Array:
        """The bytes of the first so many chunks, decoded side by side."""
        out = np.empty((count, self._bytes), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(self.read, range(count), out):
                pass
        return out.reshape(-1)


class _LongTable:
    """An array of all parts, chunk by chunk; chunks that were read last are kept, in bounded memory."""

    def __init__(self, parts: Sequence[_PartFiles], array: str, column: Column) -> None:
        assert column.row_bytes is not None
        self._parts = parts
        self._array = array
        self._column = column
        self._row_bytes = column.row_bytes
        self._chunk_rows: dict[int, int] = {}
        self._decoders: dict[int, _Chunks] = {}
        self._kept: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def copy(self, part: int, rows: Rows, out: Array, places: Rows) -> None:
        """Puts rows of a part to places of `out`, which has one void a row."""
        if part not in self._chunk_rows:
            self._chunk_rows[part] = self._parts[part].layout(self._array).rows
        chunk_rows = self._chunk_rows[part]
        chunks = rows // chunk_rows
        for number in np.unique(chunks).tolist():
            some = np.flatnonzero(chunks == number)
            with self._lock:
                chunk = self._chunk(part, number)
            out[places[some]] = chunk.view(out.dtype)[rows[some] - number * chunk_rows]

    def _chunk(self, part: int, number: int) -> Array:
        found = self._kept.pop((part, number), None)
        if found is None:
            found = self._read(part, number)
            self._kept_bytes += found.nbytes
        self._kept[part, number] = found
        while self._kept_bytes > _TABLE_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _read(self, part: int, number: int) -> Array:
        files, dimensions = self._parts[part], 1 + len(self._column.fixed)
        if self._column.profile != "raw":
            if part not in self._decoders:
                self._decoders[part] = _Chunks(files, self._array, dimensions, self._row_bytes)
            out = np.empty(self._chunk_rows[part] * self._row_bytes, np.uint8)
            self._decoders[part].read(number, out)
            return out
        size = self._chunk_rows[part] * self._row_bytes
        # A copy, so that no file stays mapped.
        return np.frombuffer(bytes(_checked_chunk(files, self._array, number, dimensions, size)), np.uint8)


class _RaggedColumn:
    """Items of all rows end to end, in checksummed chunks that are compared the first time they are touched."""

    def __init__(self, part: _PartFiles, column: Column) -> None:
        self._part = part
        self._column = column
        self._name = f"{column.stored}_data"
        items = part.lies_as(self._name, None, column.fixed, column.dtype)
        bounds = _read_table(part, f"{column.stored}_offsets", (), "uint64", part.rows + 1)
        if bounds[0] != 0 or bounds[-1] > items.items or (bounds[:-1] > bounds[1:]).any():
            rule = f"rows of column {column.name!r} lie one after another in {items.items} items"
            raise Damaged(f"{part.what} is damaged: {rule}; its offsets say otherwise; restore the part from a backup")
        self._bounds = bounds.astype(np.int64) * column.item_bytes
        self._chunk_bytes = items.rows * column.item_bytes
        self._chunks: dict[int, memoryview] = {}
        self._compressed = (
            None if column.profile == "raw" else _Chunks(part, self._name, 1 + len(column.fixed), column.item_bytes)
        )

    def gather(self, rows: Rows) -> list[Any]:
        found = [self._slice(int(self._bounds[row]), int(self._bounds[row + 1])) for row in rows]
        if self._column.shape is None:
            return found
        return [np.frombuffer(data, self._column.dtype).reshape(-1, *self._column.fixed) for data in found]

    def lengths(self, rows: Rows) -> Rows:
        found: Rows = (self._bounds[rows + 1] - self._bounds[rows]) // self._column.item_bytes
        return found

    def copy(self, rows: Rows, out: list[Any], places: Rows) -> None:
        for place, value in zip(places.tolist(), self.gather(rows), strict=True):
            out[place] = value

    def warm_up(self) -> int:
        size = int(self._bounds[-1])
        count = -(-size // self._chunk_bytes)
        if self._compressed is not None:
            return self._compressed.warm_up(count)
        for number in range(count):
            self._chunk(number)
        return size

    def _slice(self, start: int, end: int) -> bytes:
        _refuse_beyond_memory(f"a row of column {self._column.name!r} in {self._part.what}", end - start)
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
        if number not in self._chunks:
            dimensions = 1 + len(self._column.fixed)
            self._chunks[number] = _checked_chunk(self._part, self._name, number, dimensions, self._chunk_bytes)
        return self._chunks[number]


def _with_missing(column: Column, values: Any, valid: Array) -> Any:
    if not column.varies:
        return _masked(values, valid)
    return [value if there else None for value, there in zip(values, valid, strict=True)]


def _refuse_beyond_memory(what: str, size: int) -> None:
    # What is compressed may be a thousand times what lies there.
    if size > MAX_CHUNK_BYTES and size > (free := psutil.virtual_memory().available):
        raise TooLarge(
            f"what is read in one piece fits into memory; {what} takes {size:,} bytes, of which {free:,} are free; if "
            f"it is meant to be so large, read it on a machine with more"
        )


def _masked(values: Array, valid: Array) -> Array:
    mask = np.broadcast_to(~valid.reshape(-1, *(1 for _ in values.shape[1:])), values.shape)
    return np.ma.MaskedArray(values, mask)


def _read_table(part: _PartFiles, array: str, shape: Sequence[int], dtype: str, rows: int) -> Array:
    # Chunk files by number, each of the full length: the last one is padded.
    layout = part.lies_as(array, rows, shape, dtype)
    chunk_rows = layout.rows
    values = prod(shape)
    _refuse_beyond_memory(f"array {array!r} in {part.what}", rows * values * np.dtype(dtype).itemsize)
    if layout.codec is not None:
        chunks = _Chunks(part, array, 1 + len(shape), values * np.dtype(dtype).itemsize)
        return chunks.all(-(-rows // chunks.rows)).view(dtype)[: rows * values].reshape(rows, *shape)
    chunk_bytes = chunk_rows * values * np.dtype(dtype).itemsize
    pieces = [
        _checked_chunk(part, array, number, 1 + len(shape), chunk_bytes) for number in range(-(-rows // chunk_rows))
    ]
    return np.frombuffer(b"".join(pieces), dtype)[: rows * values].reshape(rows, *shape)


def _checked_chunk(part: _PartFiles, array: str, number: int, dimensions: int, size: int) -> memoryview:
    if size > MAX_CHUNK_BYTES:
        raise part.odd(array, f"chunks of at most {MAX_CHUNK_BYTES} bytes", f"{size} bytes")

    def read() -> memoryview:
        whole = memoryview(part.chunk(array, number, dimensions, size=size + CRC_BYTES))
        data, stored = whole[:size], whole[size : size + CRC_BYTES]
        if crc32c(bytes(data)) != int.from_bytes(stored, "little"):
            raise _bad_sum(part, array, number)
        return data

    return part.of_sound_copy(array, number, dimensions, read)


def _bad_sum(part: _PartFiles, array: str, number: int) -> Damaged:
    return Damaged(
        f"array {array!r} in {part.what} is damaged: the checksum of chunk {number} does not fit its bytes; "
        f"restore the part from a backup"
    )
