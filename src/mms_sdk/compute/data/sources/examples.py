"""Examples: what tensorflow-datasets keeps for a row, and what becomes of each of its features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data.kinds import audio
from mms_sdk.compute.data.kinds.tabular import column_names
from mms_sdk.compute.data.media import medium_of, reserved_names
from mms_sdk.compute.data.sources.descriptions import MAX_VALUES, Description, Sound
from mms_sdk.compute.data.sources.samples import Sample, refuse_large
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import TFDS, AsPictures, AsRecordings, AsTable

_MAX_CLASSES = 2**20
_RAGGED = b"/ragged_flat_values"


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the features of an example become.

    Attributes:
        described: By tensorflow-datasets; those that are kept and no other, which are not even decoded.
        label: Name of the feature that is the class.
        names: Of the classes of features that have some.
        types: Arrow's, of all features that a table can keep.
        notes: What is left out.
        main: Name of the feature that is a picture or a recording; None for rows of a table.
        taken: How that one is taken.
        encode: Makes bytes of its value.
        skip: Decoders of tensorflow-datasets that leave a feature as it was encoded.
        columns: What stands beside it, by feature.
    """

    described: Any
    label: str | None
    names: Mapping[str, tuple[str, ...]]
    types: Mapping[str, pa.DataType]
    notes: tuple[str, ...]
    main: str | None = None
    taken: AsPictures | AsRecordings = field(default_factory=AsPictures)
    encode: Callable[[Any], bytes] = bytes
    skip: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of their codes, if there are some."""
        return self.names.get(self.label or "", ())

    @property
    def as_table(self) -> AsTable:
        """How rows of a table are taken."""
        return AsTable(label=self.label)

    @property
    def schema(self) -> pa.Schema:
        """Of a table."""
        return pa.schema(list(self.types.items()))

    def sample(self, data: bytes) -> Sample:
        """The picture or recording of an example, its class and what stands beside.

        Raises:
            InvalidInput: It is damaged, or none of these features.
        """
        assert self.main is not None
        found = self._values(data, (self.main, *self.columns, *([self.label] if self.label else [])))
        label = found[self.label] if self.label else ""
        if label is None:
            raise InvalidInput("it has no class")
        values = {column.name: _flat(found[name]) for name, column in self.columns.items()}
        return Sample(data=self.encode(found[self.main]), label=label, values=values)

    def row(self, data: bytes) -> dict[str, Any]:
        """The values of an example, by feature. See `sample` for errors."""
        return self._values(data, self.types)

    def batch(self, examples: Sequence[bytes]) -> pa.RecordBatch:
        """Rows of a table."""
        rows = [self.row(data) for data in examples]
        columns = [_array([row[name] for row in rows], kind) for name, kind in self.types.items()]
        return pa.RecordBatch.from_arrays(columns, names=list(self.types))

    def _values(self, data: bytes, names: Iterable[str]) -> dict[str, Any]:
        from google.protobuf.message import DecodeError

        refuse_large(len(data))
        try:
            found = self.described.deserialize_example_np(_without_ragged(data), decoders=dict(self.skip))
            return {name: found[name] if name == self.main else self._value(name, found[name]) for name in names}
        except InvalidInput:
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, OSError, RuntimeError, DecodeError) as error:
            raise InvalidInput(f"it is no example of the features described: {error}") from error

    def _value(self, name: str, value: Any) -> Any:
        if name in self.names:
            return _name_of(int(value), self.names[name])
        if isinstance(value, bytes):
            return value if self.types[name] == pa.binary() else value.decode()
        return value.item() if isinstance(value, np.generic) else value


def features_of(description: Description, source: TFDS) -> Features:
    """What becomes of the features of a prepared dataset.

    Raises:
        InvalidRequest: Several are pictures or recordings, none can be kept, or none is the class asked for.
    """
    from tensorflow_datasets.core import features as kinds

    info, sounds = description.info, description.sounds
    # In the order of names: the map that a description is read into has none.
    known = dict(sorted(info.features.items())) if isinstance(info.features, kinds.FeaturesDict) else {}
    names = {name: _names(name, each) for name, each in known.items() if isinstance(each, kinds.ClassLabel)}
    pictures = [name for name, each in known.items() if isinstance(each, kinds.Image)]
    main = _main(info, pictures, list(sounds))
    types = {
        name: kind
        for name, each in known.items()
        if name not in pictures and name not in sounds and (kind := _type(each, kinds)) is not None
    }
    if main is None and not types:
        raise InvalidRequest(
            f"a row has a picture, a recording, texts or numbers; the features of {info.name} are {sorted(known)}; "
            f"write them to Parquet and ingest that"
        )
    if main in sounds and _is_compressed(known[main]):
        raise InvalidRequest(
            f"sound is read as samples or files; {main!r} of {info.name} is compressed tensors, of which nobody says "
            f"how large they become; prepare it without encoding="
        )
    label = _label(info, source, names, types)
    left_out = [name for name in known if name != main and name not in types]
    made = Features(
        described=kinds.FeaturesDict({name: each for name, each in known.items() if name not in left_out}),
        label=label,
        names=names,
        types=types,
        notes=tuple(f"left out: {name}, {_told(known[name])}" for name in left_out),
    )
    return made if main is None else _with_main(made, main, sounds.get(main), source)


def _with_main(features: Features, main: str, sound: Sound | None, source: TFDS) -> Features:
    from tensorflow_datasets import decode

    taken: AsPictures | AsRecordings = AsRecordings(max_seconds=source.max_seconds)
    if sound is None:
        taken = AsPictures(color=source.color, max_pixels=source.max_pixels)
    beside = [name for name in features.types if name != features.label]
    titles = column_names(beside, taken=reserved_names(medium_of(taken, hashed=False)))
    return replace(
        features,
        main=main,
        taken=taken,
        encode=bytes if sound is None or sound.encoded else _wav(sound.rate_hz or source.rate_hz),
        skip={main: decode.SkipDecoding()} if sound is None else {},
        columns={name: _column(titles[name], name, features.types[name], features.names.get(name)) for name in beside},
    )


def _main(info: Any, pictures: Sequence[str], sounds: Sequence[str]) -> str | None:
    for found, noun in ((pictures, "picture"), (sounds, "recording")):
        if len(found) > 1:
            raise InvalidRequest(
                f"a row of a prepared dataset has one {noun}; of the features {sorted(info.features)} of {info.name} "
                f"{noun}s are {list(found)}; write others to Parquet and ingest that"
            )
        if found:
            return found[0]
    return None


def _label(info: Any, source: TFDS, names: Mapping[str, Sequence[str]], types: Mapping[str, pa.DataType]) -> str | None:
    if source.label is not None:
        if source.label not in types or not (source.label in names or types[source.label] == pa.string()):
            fits = [name for name in types if name in names or types[name] == pa.string()]
            raise InvalidRequest(
                f"a class is a feature of a few names or a text; of {info.name} these are {fits}; got "
                f"{source.label!r}; name one of them"
            )
        return source.label
    supervised = info.supervised_keys[1] if info.supervised_keys else "label"
    if supervised in list(names):
        return str(supervised)
    return next(iter(names)) if len(names) == 1 else None


def _type(feature: Any, kinds: Any) -> pa.DataType | None:
    if isinstance(feature, kinds.Text):
        return pa.string()
    if isinstance(feature, kinds.ClassLabel):
        return pa.dictionary(pa.int32(), pa.string())
    if isinstance(feature, kinds.Image | kinds.Video):
        return None
    if not isinstance(feature, kinds.Tensor) and not (
        isinstance(feature, kinds.Sequence) and type(feature.feature) in (kinds.Tensor, kinds.Scalar)
    ):
        return None
    if _is_compressed(feature):
        return None
    shape, dtype = tuple(feature.shape), np.dtype(feature.np_dtype)
    if dtype.kind in "OSU" and shape == ():
        return pa.binary()
    if dtype.kind not in "biuf":
        return None
    item = pa.from_numpy_dtype(dtype)
    if shape == ():
        return item
    if shape == (None,):
        return pa.list_(item)
    sizes = [0 if size is None else size for size in shape]
    # Arrow keeps truth values as bits, of which it makes no arrays.
    if min(sizes) < 1 or prod(sizes) > MAX_VALUES or dtype.kind == "b":
        return None
    return pa.fixed_shape_tensor(item, shape)


def _names(name: str, feature: Any) -> tuple[str, ...]:
    count = feature.num_classes or 0
    if count > _MAX_CLASSES:
        raise InvalidRequest(
            f"a class is one of at most {_MAX_CLASSES:,} names; {name!r} has {count:,}; prepare it as a number"
        )
    return tuple(feature.names) if count else ()


def _is_compressed(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # of a sequence
    return getattr(inner.to_json_content(), "encoding", "") == "zlib"


def _told(feature: Any) -> str:
    kind = type(feature).__name__
    return f"{kind}, compressed" if kind == "Tensor" and _is_compressed(feature) else kind


def _without_ragged(data: bytes) -> bytes:
    # Lists of lists are never kept; tensorflow-datasets takes their values for those of a feature that it has to know.
    if _RAGGED not in data:
        return data
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(data)
    for key in list(example.features.feature):
        if key.endswith(_RAGGED.decode()):
            del example.features.feature[key]
    return bytes(example.SerializeToString())


def _column(name: str, title: str, kind: pa.DataType, labels: tuple[str, ...] | None) -> Column:
    told: dict[str, Any] = {"name": name, "title": title if title != name else None}
    if labels is not None:
        return Column(kind="category", dtype="int32", labels=labels, nullable=True, **told)
    if kind == pa.string() or kind == pa.binary():
        return Column(kind="text" if kind == pa.string() else "bytes", dtype="uint8", shape=None, **told)
    if isinstance(kind, pa.FixedShapeTensorType):
        return Column(kind="embedding", dtype=_dtype(kind.value_type), shape=tuple(kind.shape), **told)
    if pa.types.is_list(kind):
        return Column(kind="series", dtype=_dtype(kind.value_type), shape=(None,), **told)
    return Column(kind="number", dtype=_dtype(kind), **told)


def _dtype(kind: pa.DataType) -> str:
    return str(np.dtype(kind.to_pandas_dtype()))


def _name_of(code: int, names: Sequence[str]) -> str | None:
    if not -1 <= code < len(names):
        raise InvalidInput(f"its class has the code {code}; there are {len(names)} classes")
    return None if code == -1 else names[code]  # so tensorflow-datasets writes that there is none


def _flat(value: Any) -> Any:
    return value.reshape(-1) if isinstance(value, np.ndarray) else value


def _wav(rate_hz: int | None) -> Callable[[Any], bytes]:
    if not rate_hz:
        raise InvalidRequest("recordings have a rate; this description says none; say it with rate_hz=")
    return lambda samples: audio.encode_wav(np.asarray(samples), rate_hz=rate_hz)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(values).astype(_dtype(kind.value_type), copy=False))
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode().cast(kind)
    return pa.array(values, kind)
