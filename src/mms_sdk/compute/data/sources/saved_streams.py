"""Files of Arrow's stream format, mapped and looked through once, so that nothing in them can lead astray later."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from mms_sdk.errors import DataError

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, "IPC Streaming Format": the end of a stream
_MESSAGE_HEADER, _BATCH_COMPRESSION = 8, 10  # places of fields in the tables of Message.fbs


class StreamFile:
    """The batches of a file, mapped into memory: what is not read takes none. Read from several threads.

    Args:
        path: The file.

    Raises:
        DataError: It is damaged, cut short or compressed, or claims what it cannot hold; or a few of its bytes may
            stand for any number of values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stamp = self._now()
            self.batches, self.schema = _mapped(path, self._stamp[0])
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise DataError(f"{path} cannot be read as an Arrow stream: {told}; save the dataset again") from error

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(batch) for batch in self.batches)

    def batch(self, number: int) -> pa.RecordBatch:
        """One of its batches.

        Raises:
            DataError: The file is not what it was: what is mapped of it is of no use any more.
        """
        try:
            changed = self._now() != self._stamp
        except OSError:
            changed = True
        if changed:
            raise DataError(f"files stay as they are during an ingest; {self.path} changed; run it again")
        return self.batches[number]

    def _now(self) -> tuple[int, int]:
        told = self.path.stat()
        return told.st_size, told.st_mtime_ns


def _mapped(path: Path, size: int) -> tuple[list[pa.RecordBatch], pa.Schema]:
    with path.open("rb") as file:
        file.seek(max(0, size - len(_END)))
        if file.read() != _END:
            # Arrow takes the end of the file for the end of the stream: rows would be missing without a word.
            raise DataError(f"an Arrow stream ends with its end mark; {path} has none and is cut short; save it again")
    with pa.memory_map(str(path)) as file:
        with pa.ipc.open_stream(file) as reader:
            schema = reader.schema
        _judge(path, schema)
        file.seek(0)
        _look_through(path, pa.ipc.MessageReader.open_stream(file))
        file.seek(0)
        batches, rows = [], 0
        largest = max((_values_in_a_row(kind) for kind in schema.types), default=1)
        with pa.ipc.open_stream(file) as reader:
            for batch in reader:
                rows += len(batch)
                if rows * largest > 8 * size:
                    raise DataError(
                        f"a value takes at least a bit; {path} has {size:,} bytes and claims {rows:,} rows"
                        f"{f' of {largest:,} values' if largest > 1 else ''}; it is damaged"
                    )
                batch.validate(full=True)  # else an offset may point anywhere
                if len(batch):
                    batches.append(batch)
            return batches, schema


def _judge(path: Path, schema: pa.Schema) -> None:
    for name, kind in zip(schema.names, schema.types, strict=True):
        if not pa.types.is_null(kind) and (found := _unbounded(kind)):
            raise DataError(
                f"datasets saves columns as plain values, which take room each; {name!r} of {path} has {found}; save "
                f"it again without that column"
            )


def _look_through(path: Path, messages: pa.ipc.MessageReader) -> None:
    # A reader decompresses what it comes to, dictionaries too, which are messages of their own.
    for number, message in enumerate(messages):
        if message.type != ("record batch" if number else "schema"):
            raise DataError(
                f"a saved dataset is a schema and batches of rows; {path} has a {message.type}; save it again"
            )
        if number and _is_compressed(message.metadata.to_pybytes()):
            raise DataError(
                f"batches of a saved dataset are not compressed, so that they are read in bounded memory; those of "
                f"{path} are; save it again with datasets"
            )


def _unbounded(kind: pa.DataType) -> pa.DataType | None:
    # The first type in it of which a few bytes, or none, may stand for any number of values.
    if isinstance(kind, pa.BaseExtensionType):
        return _unbounded(kind.storage_type)
    shared = (
        *(pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    )
    empty = (
        pa.types.is_null(kind)
        or (pa.types.is_struct(kind) and not kind.num_fields)
        or (pa.types.is_fixed_size_binary(kind) and not kind.byte_width)
        or (pa.types.is_fixed_size_list(kind) and not kind.list_size)
    )
    if empty or any(is_so(kind) for is_so in shared):
        return kind
    inside = (_unbounded(kind.field(at).type) for at in range(kind.num_fields))
    return next((found for found in inside if found is not None), None)


def _values_in_a_row(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _values_in_a_row(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _values_in_a_row(kind.value_type)
    return 1


def _is_compressed(metadata: bytes) -> bool:
    from flatbuffers import encode, packer, table

    message = table.Table(metadata, encode.Get(packer.uoffset, metadata, 0))
    batch = table.Table(metadata, message.Indirect(message.Pos + message.Offset(_MESSAGE_HEADER)))
    return bool(batch.Offset(_BATCH_COMPRESSION))
