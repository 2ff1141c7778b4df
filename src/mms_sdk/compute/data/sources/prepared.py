"""Datasets that tensorflow-datasets prepared, read without TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from mms_sdk.compute.data.sources import examples, tfrecords
from mms_sdk.compute.data.sources.descriptions import Description, read_description
from mms_sdk.compute.data.sources.rows import BATCH_ROWS, ROW, SOURCE, SPLIT, Table
from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample, refuse_large
from mms_sdk.compute.data.sources.splits import chosen_splits, places_of
from mms_sdk.errors import DataError, InvalidInput, MissingExtra, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import TFDS


class _Shard:
    """The records of one file; read from several threads."""

    def __init__(self, path: Path, form: str) -> None:
        self.path = path
        self._form = form
        self._lock = threading.Lock()

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(self._reader.num_records()) if self._form == "array_record" else len(self._offsets) - 1

    def read(self, number: int) -> bytes:
        """One of them."""
        if self._form == "array_record":
            try:
                with self._lock:
                    return bytes(self._reader.read([number])[0])
            except (RuntimeError, ValueError, IndexError) as error:
                raise InvalidInput(f"its record cannot be read: {error}") from error
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        refuse_large(end - begin)
        try:
            with self.path.open("rb", buffering=0) as file:
                return tfrecords.read_record(file.fileno(), begin, end)
        except OSError as error:
            raise InvalidInput(f"its file cannot be read: {error.strerror}") from error

    @cached_property
    def _reader(self) -> Any:
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise MissingExtra("array_record", extra="tfds") from error
        try:
            return ArrayRecordReader(str(self.path))
        except (RuntimeError, ValueError) as error:
            raise InvalidInput(f"{self.path.name} is not a file of records: {error}") from error

    @cached_property
    def _offsets(self) -> Any:
        return tfrecords.offsets(self.path)


@dataclass(frozen=True, kw_only=True)
class _Example(Entry):
    """A record of a shard.

    Attributes:
        shard: Where it is.
        number: Which one there.
        decode: Makes a sample of its bytes.
    """

    shard: _Shard
    number: int
    decode: Callable[[bytes], Sample]

    def read(self) -> Sample:
        """The bytes of its picture or recording, its class and what stands beside."""
        return self.decode(self.shard.read(self.number))


def open_prepared(source: TFDS) -> Collection | Table:
    """Looks through a folder that tensorflow-datasets prepared.

    Raises:
        InvalidRequest: It is none; has several pictures or recordings in a row; or no split or class of the name asked
            for.
        MissingExtra: tensorflow-datasets is not installed.
        DataError: A split has not as many rows as its description says.
    """
    root = Path(source.path).expanduser()
    description = read_description(root)
    chosen = chosen_splits(list(description.info.splits), source.splits, of=root)
    places, notes = places_of(chosen)
    shards = {name: _shards(description, name) for name in chosen}
    if not any(shard.count for each in shards.values() for shard in each):
        raise NothingToIngest(f"a prepared dataset has at least one row; {root} has none; prepare it again")
    features = examples.features_of(description, source)
    if features.main is None:
        return _table(features, shards, places, notes)
    entries = [
        _Example(source=f"{name}/{row:08d}", split=places[name], shard=shard, number=number, decode=features.sample)
        for name in chosen
        for row, (shard, number) in enumerate((shard, at) for shard in shards[name] for at in range(shard.count))
    ]
    return Collection(
        taken=features.taken,
        entries=entries,
        rejects=[],
        labelled=features.label is not None,
        labels=features.labels,
        columns=tuple(features.columns.values()),
        notes=(*features.notes, *notes),
    )


def _table(
    features: examples.Features, shards: Mapping[str, Sequence[_Shard]], places: Mapping[str, str], notes: Sequence[str]
) -> Table:
    rejects: list[Reject] = []
    good = {name: list(_readable(name, each, features, rejects)) for name, each in shards.items()}

    def read() -> Iterator[pa.RecordBatch]:
        for name, each in shards.items():
            for start in range(0, len(good[name]), BATCH_ROWS):
                part = good[name][start : start + BATCH_ROWS]
                batch = features.batch([each[shard].read(number) for _, shard, number in part])
                beside = {
                    SOURCE: pa.array([name] * len(part)).dictionary_encode(),
                    ROW: pa.array([row for row, _, _ in part], pa.int64()),
                    **({SPLIT: pa.array([places[name]] * len(part))} if places[name] else {}),
                }
                yield pa.RecordBatch.from_arrays(
                    [*batch.columns, *beside.values()], names=[*batch.schema.names, *beside]
                )

    return Table(
        taken=features.as_table,
        schema=features.schema,
        rows=sum(map(len, good.values())),
        rejects=rejects,
        read=read,
        labels={features.as_table.label: features.labels} if features.as_table.label else {},
        notes=(*features.notes, *notes),
    )


def _readable(
    name: str, shards: Sequence[_Shard], features: examples.Features, rejects: list[Reject]
) -> Iterator[tuple[int, int, int]]:
    # For each row that can be read its number, from 1, the shard's, and its number there.
    row = 0
    for at, shard in enumerate(shards):
        for number in range(shard.count):
            row += 1
            try:
                features.row(shard.read(number))
            except InvalidInput as error:
                rejects.append(Reject(source=f"{name}, row {row}", reason=error.message))
            else:
                yield row, at, number


def _shards(description: Description, name: str) -> list[_Shard]:
    form = "array_record" if "array_record" in str(description.info.file_format).lower() else "tfrecord"
    shards = [_Shard(path, form) for path in description.files(name)]
    said = description.info.splits[name].num_examples
    try:
        rows = sum(shard.count for shard in shards)
    except (InvalidInput, OSError) as error:
        raise DataError(f"split {name!r} cannot be read: {error}; prepare the dataset again") from error
    if rows != said:
        raise DataError(
            f"split {name!r} has {said} rows by its description; its files hold {rows}; prepare the dataset again"
        )
    return shards
