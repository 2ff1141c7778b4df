"""Writing one immutable part of a dataset: a plain Zarr v3 group, `data.zarr`, and its manifest.

Three layouts, chosen by the column:

- *rows*: fixed shape, at least `RAW_ROW_BYTES` a row. Shards whose inner chunks are single uncompressed rows, each
  followed by its crc32c, so that a batch is gathered straight from an mmap. Large ones begin where a processor likes to
  copy from.
- *table*: fixed shape, small rows. Chunks of many rows, each followed by its crc32c; read whole into memory.
- *ragged*: rows of varying length. `<name>_data`, the items of all rows end to end in such chunks, and
  `<name>_offsets`, uint64 of rows + 1.

A nullable column has, besides, `<name>_valid`: a bool for each row.

A column whose profile is not raw is a table whatever its rows weigh. Its chunks are compressed before the checksum, and
lie in shards, so that a store that is far has files of a size that suits it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import google_crc32c
import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column, Profile, Sealed
from mms_sdk.storage import codecs, files, manifest
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.stores.base import Store
from mms_sdk.types import Array

GROUP = "data.zarr"  # beside the manifest, not around it: Zarr warns of files in a group that are not its own
RAW_ROW_BYTES = 64
LARGE_ROW_BYTES = 2**14
_ALIGNED_BYTES = 64  # a cache line: copies of rows that begin anywhere else take a fifth longer
SHARD_BYTES = 16 * 2**30  # rows of one shard are gathered in one go, those of several one shard after the other
SHARD_ROWS = 2**22  # bounds a shard's index, 16 bytes a row
CHUNK_BYTES = 2**20
COMPRESSED_CHUNK_BYTES = 2 * 2**20
COMPRESSED_SHARD_CHUNKS = 32
CRC_BYTES = 4
DELETED = Column(name="row", kind="number", dtype="int64")
"""The column of a folder that lists rows of a part which are no longer there."""
_DENSE = ("encoded-image", "encoded-audio", "encoded-video", "id")  # nothing is left to compress
_MISSING = 2**64 - 1  # how Zarr's sharding codec marks an inner chunk that is not there


def is_raw(column: Column) -> bool:
    """Whether the column is laid out in rows that can be gathered from an mmap."""
    return column.profile == "raw" and column.row_bytes is not None and column.row_bytes >= RAW_ROW_BYTES


def is_compressed(column: Column) -> bool:
    """Whether the column's rows are too large to keep all of them, and are decoded chunk by chunk."""
    return column.profile != "raw" and column.row_bytes is not None and column.row_bytes >= RAW_ROW_BYTES


def laid_out(columns: Sequence[Column], profile: Profile | None, *, remote: bool) -> tuple[Column, ...]:
    """Columns of a new dataset, each with the profile that it will lie in.

    Args:
        columns: As they are meant.
        profile: What was asked for; None for what suits the place.
        remote: They lie where bytes cost more time than decoding them, as on an object store.
    """
    # A global order needs rows that can be read one at a time, and a local disk gives them from the page cache.
    chosen = profile or ("blosc" if remote else "raw")
    return tuple(
        column if column.kind in _DENSE else column.model_copy(update={"profile": chosen}) for column in columns
    )


def row_stride(row_bytes: int) -> int:
    """Bytes from the beginning of a row of a raw column to that of the next."""
    framed = row_bytes + CRC_BYTES
    return framed if row_bytes < LARGE_ROW_BYTES else -(-framed // _ALIGNED_BYTES) * _ALIGNED_BYTES


def rows_per_shard(column: Column) -> int:
    """Rows in a full shard of a raw column."""
    assert column.row_bytes is not None
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_stride(column.row_bytes)))


def crc32c(data: bytes | memoryview | Array) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4), as in Zarr's crc32c codec; of an array its bytes, contiguous."""
    # It takes no memoryview but as an array, and a copy costs ten times as much as the sum.
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


class PartWriter:
    """Fills one part, batch by batch, in bounded memory.

    Used as a context manager: leaving it without `close()`, normally or by an exception, removes what was written.
    A closed part stays, since a commit may hold it by then. One thread at a time; any number of writers side by side.

    Args:
        parts: Where the dataset's parts lie.
        columns: The columns every batch brings.
    """

    def __init__(self, parts: Store, columns: Sequence[Column]) -> None:
        self.id = new_id()
        self.rows = 0
        self.folder = parts.draft(self.id)
        self._parts = parts
        self._columns = tuple(columns)
        refuse_shared_arrays(columns)
        self._group = self.folder / GROUP
        self._writers = {column.name: _column_writer(self._group, column) for column in columns}
        self._closed = False

    def write(self, batch: Mapping[str, Any]) -> None:
        """Appends rows.

        Args:
            batch: For each column an array of shape (rows, *column.shape), or a sequence of `bytes` or arrays for a
                column of varying length. Rows without a value are masked, or None in a sequence.

        Raises:
            InvalidRequest: A column is missing, unknown, or of another dtype, shape or length; or the part is closed.
        """
        if self._closed:
            raise InvalidRequest(f"a part never changes once it is closed; part {self.id} is; write to a new one")
        if batch.keys() != self._writers.keys():
            raise InvalidRequest(
                f"a batch has exactly the columns {sorted(self._writers)}; got {sorted(batch)}; add or remove columns"
            )
        counts = {name: _length(name, values) for name, values in batch.items()}
        if len(set(counts.values())) != 1:
            raise InvalidRequest(f"all columns of a batch have the same number of rows; got {counts}")
        checked = {column.name: _checked(column, batch[column.name]) for column in self._columns}
        with files.writing(self.folder):
            for name, values in checked.items():
                self._writers[name].write(values)
        self.rows += next(iter(counts.values()))

    def close(self) -> Sealed:
        """Completes the part: last chunks, Zarr metadata, fsync, manifest."""
        import zarr

        with files.writing(self.folder):
            arrays = [array for writer in self._writers.values() for array in writer.finish(self.rows)]
            group = zarr.create_group(self._group, zarr_format=3)
            for array in arrays:
                group.create_array(**array)
        digest = manifest.seal(self.folder)
        self._parts.keep(self.folder, self.id, last=manifest.NAME)
        self._closed = True
        return Sealed(id=self.id, rows=self.rows, manifest=digest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        try:
            for writer in self._writers.values():
                with contextlib.suppress(OSError):  # closing writes what is left, and a full disk takes none of it
                    writer.abandon()
        finally:
            files.remove_tree(self.folder)


def refuse_shared_arrays(columns: Sequence[Column]) -> None:
    """Refuses columns of which two would lie in one Zarr array.

    Raises:
        InvalidRequest: Two do.
    """
    owners: dict[str, str] = {}
    for column in columns:
        for array in column.arrays:
            if array in owners:
                raise InvalidRequest(
                    f"each Zarr array belongs to one column; {array!r} would belong to {owners[array]!r} and to "
                    f"{column.name!r}; name one of them otherwise, or its array="
                )
            owners[array] = column.name


def _length(name: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError as error:
        raise InvalidRequest(
            f"a batch has one value a row for each column; for {name!r} it has {type(values).__name__}, which has no "
            f"length; give an array or a list"
        ) from error


def _array(column: Column, values: Any) -> Array:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidRequest(
            f"values of column {column.name!r} have one shape; NumPy says of these: {error}; convert them first"
        ) from error


@dataclass(frozen=True)
class _Nullable:
    """Values with something in the place of those that are missing, and which are there."""

    values: Any
    valid: Array


def _checked(column: Column, values: Any) -> Any:
    valid = _valid(values)
    if column.nullable:
        return _Nullable(_checked_values(column, _filled(column, values, valid)), valid)
    if not valid.all():
        raise InvalidRequest(
            f"every row of column {column.name!r} has a value; {np.count_nonzero(~valid):,} of {len(valid):,} have "
            f"none; drop or impute them, or declare the column nullable"
        )
    return _checked_values(column, values)


def _valid(values: Any) -> Array:
    if isinstance(values, np.ndarray):
        missing = np.ma.getmaskarray(values).any(axis=tuple(range(1, values.ndim)))
        return np.logical_not(missing)
    return np.fromiter((value is not None for value in values), bool, len(values))


def _filled(column: Column, values: Any, valid: Array) -> Any:
    if isinstance(values, np.ma.MaskedArray):
        return values.filled(0)
    if isinstance(values, np.ndarray) or not column.varies:
        return values
    missing = b"" if column.shape is None else np.empty((0, *column.fixed), column.dtype)
    return [value if there else missing for value, there in zip(values, valid, strict=True)]


def _checked_values(column: Column, values: Any) -> Any:
    if column.shape is None:
        wrong = next((value for value in values if not isinstance(value, bytes)), None)
        if wrong is not None:
            raise InvalidRequest(f"column {column.name!r} takes bytes, one value a row; got {type(wrong).__name__}")
        return values
    if column.varies:
        return [_checked_row(column, _array(column, value)) for value in values]
    array = _array(column, values)
    if array.dtype != np.dtype(column.dtype) or array.shape[1:] != column.shape:
        raise InvalidRequest(
            f"column {column.name!r} takes {column.dtype} rows of shape {column.shape}; got {array.dtype} rows of "
            f"shape {array.shape[1:]}; convert them first"
        )
    return np.ascontiguousarray(array)


def _checked_row(column: Column, row: Array) -> bytes:
    if row.dtype != np.dtype(column.dtype) or row.ndim != 1 + len(column.fixed) or row.shape[1:] != column.fixed:
        raise InvalidRequest(
            f"column {column.name!r} takes {column.dtype} rows of shape {column.shape}; got a {row.dtype} row of shape "
            f"{row.shape}; convert it first"
        )
    return row.tobytes()


class _ColumnWriter(Protocol):
    def write(self, values: Any) -> None: ...

    def finish(self, rows: int) -> list[dict[str, Any]]:
        """Writes what is left; returns the arguments that create the Zarr arrays' metadata."""

    def abandon(self) -> None: ...


def _column_writer(folder: Path, column: Column) -> _ColumnWriter:
    if column.nullable:
        return _NullableWriter(folder, column)
    if column.varies:
        return _RaggedWriter(folder, column)
    return _RawWriter(folder, column) if is_raw(column) else _TableWriter(folder, column.stored, column)


class _NullableWriter:
    """The values as of any column, and which rows have one."""

    def __init__(self, folder: Path, column: Column) -> None:
        self._values = _column_writer(folder, column.model_copy(update={"nullable": False}))
        valid = column.model_copy(update={"shape": (), "dtype": "bool", "nullable": False, "profile": "raw"})
        self._valid = _TableWriter(folder, f"{column.stored}_valid", valid)

    def write(self, values: _Nullable) -> None:
        self._values.write(values.values)
        self._valid.write(values.valid)

    def finish(self, rows: int) -> list[dict[str, Any]]:
        valid = [{**array, "dimension_names": ["row"], "attributes": {}} for array in self._valid.finish(rows)]
        return self._values.finish(rows) + valid

    def abandon(self) -> None:
        self._values.abandon()


class _RawWriter:
    """Shards of one-row inner chunks: rows with their checksums."""

    def __init__(self, folder: Path, column: Column) -> None:
        self._column = column
        self._shards = _Shards(folder, column.stored, column, chunks=rows_per_shard(column))

    def write(self, values: Array) -> None:
        row_bytes = self._column.row_bytes
        assert row_bytes is not None
        end, stride = row_bytes + CRC_BYTES, row_stride(row_bytes)
        rows = values.view(np.uint8).reshape(len(values), row_bytes)
        while len(rows):
            taken = rows[: self._shards.room]
            framed = np.zeros((len(taken), stride), np.uint8)
            framed[:, :row_bytes] = taken
            sums = np.fromiter((crc32c(row) for row in taken), "<u4", len(taken))
            framed[:, row_bytes:end] = sums.view(np.uint8).reshape(-1, CRC_BYTES)
            self._shards.write(framed.data, np.full(len(taken), end), stride=stride)
            rows = rows[len(taken) :]

    def finish(self, rows: int) -> list[dict[str, Any]]:
        from zarr.codecs import BytesCodec, Crc32cCodec

        shape = self._column.fixed
        return [
            {
                "name": self._column.stored,
                "shape": (rows, *shape),
                "chunks": (1, *shape),
                "shards": (self._shards.finish(), *shape),
                "dtype": self._column.dtype,
                "serializer": BytesCodec(),
                "compressors": [Crc32cCodec()],
                "filters": None,
                "dimension_names": _dimensions(self._column),
                "attributes": _attributes(self._column),
            }
        ]

    def abandon(self) -> None:
        self._shards.abandon()


class _TableWriter:
    """Chunks of many rows, each followed by its checksum; Zarr wants every chunk full, so the last is padded."""

    def __init__(self, folder: Path, name: str, column: Column) -> None:
        assert column.row_bytes is not None
        self._name = name
        self._column = column
        self._row_bytes = max(1, column.row_bytes)
        self._codec = None if column.profile == "raw" else column.profile
        self._item_bytes = np.dtype(column.dtype).itemsize
        self._chunk_rows = max(1, (COMPRESSED_CHUNK_BYTES if self._codec else CHUNK_BYTES) // self._row_bytes)
        self._pending = bytearray()
        self._files: _Shards | _ChunkFiles = (
            _Shards(folder, name, column, chunks=COMPRESSED_SHARD_CHUNKS)
            if self._codec
            else _ChunkFiles(folder, name, column)
        )

    def write(self, values: Array | bytes) -> None:
        self._pending += values if isinstance(values, bytes) else values.tobytes()
        full = self._chunk_rows * self._row_bytes
        ends = range(full, len(self._pending) + 1, full)
        if not ends:
            return
        pending = memoryview(self._pending)
        chunks = (bytes(pending[end - full : end]) for end in ends)
        if self._codec is None or len(ends) == 1:
            for chunk in chunks:
                self._write_encoded(self._encoded(chunk))
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for encoded in pool.map(self._encoded, chunks):
                    self._write_encoded(encoded)
        pending.release()
        del self._pending[: ends[-1]]

    def finish(self, rows: int) -> list[dict[str, Any]]:
        from zarr.codecs import BytesCodec

        chunk_rows = self._chunk_rows if self._files.chunks else max(1, len(self._pending) // self._row_bytes)
        if self._pending:
            last = bytes(self._pending).ljust(chunk_rows * self._row_bytes, b"\0")
            self._write_encoded(self._encoded(last))
        shape = self._column.fixed
        sharded = {"shards": (chunk_rows * self._files.finish(), *shape)} if isinstance(self._files, _Shards) else {}
        return [
            {
                "name": self._name,
                "shape": (rows, *shape),
                "chunks": (chunk_rows, *shape),
                **sharded,
                "dtype": self._column.dtype,
                "serializer": BytesCodec(),
                "compressors": codecs.zarr_codecs(self._codec, item_bytes=self._item_bytes),
                "filters": None,
                "dimension_names": _dimensions(self._column),
                "attributes": _attributes(self._column),
            }
        ]

    def abandon(self) -> None:
        self._files.abandon()

    def _encoded(self, data: bytes) -> bytes:
        return codecs.encode(self._codec, data, item_bytes=self._item_bytes) if self._codec else data

    def _write_encoded(self, data: bytes) -> None:
        framed = data + struct.pack("<I", crc32c(data))
        self._files.write(framed, np.array([len(framed)]))


class _ChunkFiles:
    """A file for each chunk."""

    def __init__(self, folder: Path, array: str, column: Column) -> None:
        self._folder, self._array, self._column = folder, array, column
        self.chunks = 0

    def write(self, data: bytes, sizes: Array) -> None:
        with _chunk_file(self._folder, self._array, self._column, self.chunks) as file:
            file.write(data)
        self.chunks += 1

    def abandon(self) -> None: ...


class _Shards:
    """Files of chunks that follow one another, each file ended by Zarr's index of where they lie.

    Args:
        folder: The Zarr group.
        array: The array's name.
        column: What is in it.
        chunks: Most chunks in a file.
    """

    def __init__(self, folder: Path, array: str, column: Column, *, chunks: int) -> None:
        self._folder, self._array, self._column = folder, array, column
        self._most = chunks
        self._file: BinaryIO | None = None
        self._sizes: list[Array] = []
        self._taken: list[Array] = []  # with what lies between a chunk and the next
        self._shards = 0
        self.room = chunks

    @property
    def chunks(self) -> int:
        """Chunks written so far."""
        return self._shards * self._most + self._most - self.room

    def write(self, data: bytes | memoryview, sizes: Array, *, stride: int | None = None) -> None:
        """Adds as many chunks as there is room for, of sizes in bytes: end to end, or each so far from the last."""
        if self._file is None:
            self._file = _chunk_file(self._folder, self._array, self._column, self._shards)
        self._file.write(data)
        self._sizes.append(sizes)
        self._taken.append(sizes if stride is None else np.full_like(sizes, stride))
        self.room -= len(sizes)
        if not self.room:
            self._end(self._most)

    def finish(self) -> int:
        """Ends the last file; returns how many chunks each is declared to hold."""
        # One file that is not full is declared as large as it is: an index of its own length.
        declared = self._most if self._shards else max(1, self._most - self.room)
        if self._file is not None:
            self._end(declared)
        return declared

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def _end(self, declared: int) -> None:
        assert self._file is not None
        sizes, taken = np.concatenate(self._sizes), np.concatenate(self._taken)
        index = np.full((declared, 2), _MISSING, "<u8")
        index[: len(sizes), 0] = np.cumsum(taken) - taken
        index[: len(sizes), 1] = sizes
        encoded = index.tobytes()
        self._file.write(encoded + struct.pack("<I", crc32c(encoded)))
        self._file.close()
        self._file = None
        self._sizes, self._taken = [], []
        self._shards += 1
        self.room = self._most


def _chunk_file(folder: Path, array: str, column: Column, number: int) -> BinaryIO:
    path = folder.joinpath(array, "c", str(number), *("0" for _ in column.fixed))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


class _RaggedWriter:
    """The items of all rows end to end, and where each row begins."""

    def __init__(self, folder: Path, column: Column) -> None:
        self._column = column
        flat = column.model_copy(update={"shape": column.fixed})
        offsets = column.model_copy(update={"shape": (), "dtype": "uint64", "profile": "raw"})
        self._data = _TableWriter(folder, f"{column.stored}_data", flat)
        self._offsets = _TableWriter(folder, f"{column.stored}_offsets", offsets)
        self._end = 0
        self._offsets.write(np.zeros(1, "<u8"))

    def write(self, values: Sequence[bytes]) -> None:
        lengths = np.fromiter((len(value) for value in values), "<u8", len(values)) // np.uint64(
            self._column.item_bytes
        )
        ends = np.cumsum(lengths, dtype="<u8") + np.uint64(self._end)
        if len(ends):
            self._end = int(ends[-1])
        for value in values:
            self._data.write(value)
        self._offsets.write(ends)

    def finish(self, rows: int) -> list[dict[str, Any]]:
        arrays = self._data.finish(self._end) + self._offsets.finish(rows + 1)
        items = "bytes" if self._column.shape is None else "items"
        axes = [f"{self._column.stored}_{axis}" for axis in range(len(self._column.fixed))]
        for array, dimensions in zip(arrays, ([items, *axes], ["bounds"]), strict=True):
            array["dimension_names"] = [f"{self._column.stored}_{dimensions[0]}", *dimensions[1:]]
            array["attributes"] = _attributes(self._column)
        return arrays

    def abandon(self) -> None:
        self._data.abandon()


def _dimensions(column: Column) -> list[str]:
    # xarray wants names, and the same name for the same length: only `row` is shared between columns.
    if column.kind == "image":
        return ["row", f"{column.stored}_height", f"{column.stored}_width", f"{column.stored}_channel"]
    return ["row", *(f"{column.stored}_{axis}" for axis in range(len(column.fixed)))]


def _attributes(column: Column) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": column.kind}
    if column.labels is not None:
        told["labels"] = list(column.labels)
    if column.color is not None:
        told["color"] = column.color
    for name in ("unit", "rate_hz", "title"):
        if (value := getattr(column, name)) is not None:
            told[name] = value
    return told
