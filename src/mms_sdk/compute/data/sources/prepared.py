"""Datasets that tensorflow-datasets prepared, read without TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mms_sdk.compute.data.kinds.tabular import column_names
from mms_sdk.compute.data.sources import tfrecords
from mms_sdk.compute.data.sources.samples import SPLIT_NAMES, Collection, Entry, Sample
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, MissingExtra, NothingToIngest
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.schema.sources import TFDS

_OWN = "tensorflow_datasets."  # a description names a class to import, which may be any


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
        with self.path.open("rb", buffering=0) as file:
            return tfrecords.read_record(file.fileno(), int(self._offsets[number]), int(self._offsets[number + 1]))

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
        """The picture's bytes, its class and what stands beside."""
        return self.decode(self.shard.read(self.number))


def open_prepared(source: TFDS) -> Collection:
    """Looks through a folder that tensorflow-datasets prepared.

    Raises:
        InvalidRequest: It is none; has no pictures, or several in a row; or no split of the name asked for.
        MissingExtra: tensorflow-datasets is not installed.
        DataError: A split has not as many rows as its description says.
    """
    root = Path(source.path).expanduser()
    info = _described(root)
    chosen = [name for name in info.splits if source.splits is None or name in source.splits]
    if missing := set(source.splits or ()) - set(chosen):
        raise InvalidRequest(f"splits of {root} are {list(info.splits)}; got {sorted(missing)}; choose among them")
    decode = _decoder(info)
    notes = [f"left out: {name}, {kind}" for name, kind in decode.left_out.items()]
    places = {name: SPLIT_NAMES.get(name, "") for name in chosen}
    if len(chosen) == 1 or "" in places.values():
        # One split says nothing of how to divide it, and another's name nothing of what it is for.
        if len(chosen) > 1:
            notes.append(f"splits {chosen} are none of train, validation and test; rows are placed by the split rule")
        places = dict.fromkeys(chosen, "")
    entries: list[Entry] = []
    for name in chosen:
        entries += _entries(info, name, places[name], decode)
    if not entries:
        raise NothingToIngest(f"a prepared dataset has at least one row; {root} has none; prepare it again")
    return Collection(
        taken=source,
        entries=entries,
        rejects=[],
        labelled=decode.label is not None,
        labels=decode.labels,
        columns=tuple(decode.columns.values()),
        notes=tuple(notes),
    )


def _described(root: Path) -> Any:
    try:
        import tensorflow_datasets as tfds
        from google.protobuf.json_format import ParseError
    except ImportError as error:
        raise MissingExtra("tensorflow-datasets", extra="tfds") from error
    described = root / "features.json"
    if not described.is_file() or not (root / "dataset_info.json").is_file():
        raise InvalidRequest(
            f"a prepared dataset is a folder with dataset_info.json and features.json, e.g. "
            f"~/tensorflow_datasets/mnist/3.0.1; {root} has none; name the folder of a version"
        )
    try:
        _refuse_foreign_classes(orjson.loads(described.read_bytes()), described)
        return tfds.builder_from_directory(str(root)).info
    except InvalidRequest:
        raise
    except (ParseError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{root} is not a description that tensorflow-datasets wrote: {error}; prepare it again"
        ) from error


def _refuse_foreign_classes(told: Any, path: Path) -> None:
    if isinstance(told, Mapping):
        name = told.get("pythonClassName", _OWN)
        if not str(name).startswith(_OWN):
            raise InvalidRequest(
                f"opening data runs none of its code; {path} names the class {name!r}; MMS reads those that come with "
                f"tensorflow-datasets"
            )
        for each in told.values():
            _refuse_foreign_classes(each, path)
    elif isinstance(told, list):
        for each in told:
            _refuse_foreign_classes(each, path)


class _Decoder:
    """Makes samples of serialised examples: the picture as it is encoded, its class by name, and plain values."""

    def __init__(self, features: Any, image: str, label: str | None, columns: dict[str, Column], skip: Any) -> None:
        self._features = features
        self._image = image
        self.label = label
        self.labels = tuple(features[label].names) if label else ()
        self.columns = columns
        self._skip = skip
        self.left_out: dict[str, str] = {}

    def __call__(self, data: bytes) -> Sample:
        try:
            found = self._features.deserialize_example_np(data, decoders={self._image: self._skip})
            label = ""
            if self.label:
                code = int(found[self.label])
                if not 0 <= code < len(self.labels):
                    raise InvalidInput(f"its class has the code {code}; there are {len(self.labels)} classes")
                label = self.labels[code]
            values = {column.name: _plain(found[column.title or column.name]) for column in self.columns.values()}
            return Sample(data=bytes(found[self._image]), label=label, values=values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"it is no example of the features described: {error}") from error


def _decoder(info: Any) -> _Decoder:
    from tensorflow_datasets import decode
    from tensorflow_datasets.core import features as kinds

    features = dict(info.features.items()) if isinstance(info.features, kinds.FeaturesDict) else {}
    images = [name for name, feature in features.items() if isinstance(feature, kinds.Image)]
    if len(images) != 1:
        raise InvalidRequest(
            f"a row of a prepared dataset has one picture; of the features {sorted(features)} of {info.name} pictures "
            f"are {images}; write others to Parquet and ingest that"
        )
    supervised = info.supervised_keys[1] if info.supervised_keys else "label"
    classes = [name for name, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    label = supervised if supervised in classes else classes[0] if len(classes) == 1 else None
    columns, left_out = {}, {}
    beside = {name: feature for name, feature in features.items() if name not in (images[0], label)}
    names = column_names(beside)
    for name, feature in beside.items():
        column = _column(names[name], name, feature, kinds)
        if column is None:
            left_out[name] = type(feature).__name__
        else:
            columns[name] = column
    made = _Decoder(info.features, images[0], label, columns, decode.SkipDecoding())
    made.left_out = left_out
    return made


def _column(name: str, title: str, feature: Any, kinds: Any) -> Column | None:
    told: dict[str, Any] = {"name": name, "title": title if title != name else None}
    if isinstance(feature, kinds.Text):
        return Column(kind="text", dtype="uint8", shape=None, **told)
    if isinstance(feature, kinds.ClassLabel):
        return Column(kind="category", dtype="int32", labels=tuple(feature.names), **told)
    if not isinstance(feature, kinds.Tensor) or isinstance(feature, kinds.Image | kinds.Audio | kinds.Video):
        return None
    dtype = np.dtype(feature.np_dtype)
    if dtype.kind not in "biuf" or any(size is None for size in feature.shape):
        return None
    return Column(kind="embedding" if feature.shape else "number", dtype=str(dtype), shape=feature.shape, **told)


def _entries(info: Any, name: str, place: str, decode: _Decoder) -> Sequence[_Example]:
    assert not place or place in SPLITS
    split = info.splits[name]
    form = "array_record" if "array_record" in str(info.file_format).lower() else "tfrecord"
    made: list[_Example] = []
    for path in split.filepaths:
        shard = _Shard(Path(str(path)), form)
        try:
            count = shard.count
        except (InvalidInput, OSError) as error:
            raise DataError(f"split {name!r} cannot be read: {error}; prepare the dataset again") from error
        for number in range(count):
            made.append(
                _Example(source=f"{name}/{len(made):08d}", split=place, shard=shard, number=number, decode=decode)
            )
    if len(made) != split.num_examples:
        raise DataError(
            f"split {name!r} has {split.num_examples} rows by its description; its files hold {len(made)}; prepare the "
            f"dataset again"
        )
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
