"""Datasets that Hugging Face's library `datasets` saved on a disk, read by Arrow alone.

A folder is a dataset: `state.json` names its files in order, `dataset_info.json` says what its columns are. A folder of
such folders has `dataset_dict.json`, which names them: its splits. What `load_dataset` keeps in its cache has
`dataset_info.json` alone, which names the splits, and a file for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.sources.folders import printable
from mms_sdk.compute.data.sources.rows import BATCH_ROWS, ROW, SOURCE, SPLIT, Table
from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample
from mms_sdk.compute.data.sources.saved_streams import StreamFile
from mms_sdk.compute.data.sources.splits import chosen_splits, places_of
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import AsPictures, AsRecordings, AsTable, HuggingFace

_MAX_JSON_BYTES = 64 * 2**20
_MAX_NAME_CHARS = 10_000
_BATCH_BYTES = 64 * 2**20
_MEDIA = ("Image", "Audio")
_CONTENTS = [pa.struct([("bytes", kind), ("path", pa.string())]) for kind in (pa.binary(), pa.large_binary())]


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """One saved dataset.

    Attributes:
        name: Of its split.
        features: What its columns are, by title, as `datasets` writes it.
        files: Its rows, in order.
        shown: Titles of the columns that its saved format shows; None for all.
    """

    name: str
    features: Mapping[str, Any]
    files: Sequence[StreamFile]
    shown: tuple[str, ...] | None = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What is taken of the columns of all splits.

    Attributes:
        titles: Which are taken.
        types: Their types in the files.
        features: What they are.
        names: Of the classes of those that are classes.
        label: Which is to be predicted.
        notes: What is to be said about it.
    """

    titles: tuple[str, ...]
    types: pa.Schema
    features: Mapping[str, Any]
    names: Mapping[str, Sequence[str]]
    label: str | None
    notes: list[str] = field(default_factory=list)

    def kind(self, title: str) -> pa.DataType:
        """What a column is to the rest of an ingest."""
        return _array(pa.nulls(0, self.types.field(title).type), title, self).type

    def media(self) -> list[str]:
        """Columns of pictures and recordings."""
        return [title for title in self.titles if _type(self.features.get(title)) in _MEDIA]


def open_hugging_face(source: HuggingFace) -> Collection | Table:
    """Looks through a folder that `datasets` saved.

    Raises:
        InvalidRequest: It is none; has several pictures or recordings in a row; or no split or column asked for.
        NothingToIngest: It has no row.
        DataError: It is damaged, or was saved with what MMS does not apply.
    """
    root = Path(source.path).expanduser()
    saved = _splits(root, source)
    if not sum(split.rows for split in saved):
        raise NothingToIngest(f"a saved dataset has at least one row; {root} has none; save it again")
    places, notes = places_of([split.name for split in saved])
    layout = _layout(saved, source, root)
    layout.notes.extend(notes)
    media = layout.media()
    if not media:
        return _table(saved, layout, places, source)
    if len(media) > 1:
        raise InvalidRequest(
            f"a row has one picture or recording; {root} has {media}; choose one of them, and what stands beside it, "
            f"with columns="
        )
    return _collection(saved, layout, places, media[0], source)


# What is where --------------------------------------------------------------------------------------------------


def _splits(root: Path, source: HuggingFace) -> list[_Saved]:
    if (listed := root / "dataset_dict.json").is_file():
        there = _told(listed).get("splits")
        if not isinstance(there, list) or not there or not all(_is_plain(name) for name in there):
            raise DataError(
                f"{listed} names its splits, which are folders beside it; got {there!r:.200}; save it again"
            )
        return [_saved(root / name, name) for name in chosen_splits(there, source.splits, of=root)]
    if not (root / "state.json").is_file() and (described := root / "dataset_info.json").is_file():
        return _cached(root, _told(described), source)
    if not (root / "state.json").is_file():
        raise InvalidRequest(
            f"what save_to_disk writes is a folder with dataset_dict.json, or with state.json and dataset_info.json, "
            f"and what load_dataset keeps one with the last; {root} has none; save the dataset there, or read Parquet "
            f"files with mms.Parquet"
        )
    told = _told(root / "state.json").get("_split")
    name = told if isinstance(told, str) and told else root.resolve().name
    return [_saved(root, each) for each in chosen_splits([name], source.splits, of=root)]


def _cached(root: Path, info: Mapping[str, Any], source: HuggingFace) -> list[_Saved]:
    # What load_dataset keeps of what it downloaded: a file for each split, or for each of a split's shards.
    splits, saved = info.get("splits"), []
    if not isinstance(splits, dict) or not splits or not all(isinstance(told, dict) for told in splits.values()):
        raise DataError(f"dataset_info.json of {root} names its splits, for there is no state.json; load it again")
    for name in chosen_splits(list(splits), source.splits, of=root):
        told, lengths = splits[name], splits[name].get("shard_lengths") or ()
        begin = f"{told.get('dataset_name') or info.get('dataset_name')}-{name}"
        count = len(lengths) if isinstance(lengths, list) else 0
        files = [f"{begin}-{number:05d}-of-{count:05d}.arrow" for number in range(count)] or [f"{begin}.arrow"]
        if not all(_is_plain(file) for file in files):
            raise DataError(f"files of a dataset lie beside its description; got {files[0]!r:.200}; load it again")
        found = _of_files(root, name, files, _features(root, info))
        if found.rows != told.get("num_examples"):
            raise DataError(
                f"split {name!r} of {root} has {told.get('num_examples')!r:.50} rows by its description; its files "
                f"hold {found.rows:,}; load it again"
            )
        saved.append(found)
    return saved


def _told(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        told = orjson.loads(data) if len(data) <= _MAX_JSON_BYTES else None
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; save the dataset again") from error
    if not isinstance(told, dict):
        raise DataError(
            f"{path} is an object of JSON of at most {_MAX_JSON_BYTES:,} bytes; it is not; save the dataset again"
        )
    return told


def _is_plain(name: Any) -> bool:
    # Data says which files it is made of; never one that lies elsewhere.
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _saved(folder: Path, name: str) -> _Saved:
    state, info = _told(folder / "state.json"), _told(folder / "dataset_info.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"the rows of {folder} were chosen or put in order by an index beside them, as older versions of datasets "
            f"save it; load it there, call flatten_indices() and save it again"
        )
    if state.get("_format_type") == "custom":
        raise DataError(f"{folder} was saved with a transform, which is code; save it without: with_format(None)")
    files = state.get("_data_files")
    listed = files if isinstance(files, list) else []
    named: list[Any] = [each.get("filename") if isinstance(each, dict) else each for each in listed]
    if not named or not all(_is_plain(each) for each in named):
        raise DataError(f"state.json of {folder} names files beside it; got {files!r:.200}; save the dataset again")
    shown = None if state.get("_output_all_columns") else state.get("_format_columns")
    found = _of_files(folder, name, named, _features(folder, info))
    return replace(found, shown=tuple(map(str, shown)) if isinstance(shown, list) else None)


def _features(folder: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    features = info.get("features") or {}
    if not isinstance(features, dict):
        raise DataError(f"dataset_info.json of {folder} describes columns by name; save the dataset again")
    return features


def _of_files(folder: Path, name: str, files: Sequence[str], features: Mapping[str, Any]) -> _Saved:
    return _Saved(name=printable(name), features=features, files=[StreamFile(folder / each) for each in files])


def _layout(saved: Sequence[_Saved], source: HuggingFace, root: Path) -> _Layout:
    files = [file for split in saved for file in split.files]
    schema: pa.Schema = files[0].schema
    for file in files:
        if not file.schema.equals(schema):
            raise DataError(f"all files of a dataset have the same columns; {file.path} has others; save it again")
    features = saved[0].features
    for split in saved:
        if (split.features, split.shown) != (features, saved[0].shown):
            raise DataError(
                f"all splits have the same columns; those of {split.name!r} are not those of {saved[0].name!r}; ingest "
                f"them one by one with splits="
            )
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"columns have different names; those of {root} are {schema.names}; save it again")
    shown = saved[0].shown
    visible = [title for title in schema.names if shown is None or title in shown]
    asked = [*(source.columns or visible), *source.categories, *([source.label] if source.label else [])]
    if unknown := [title for title in asked if title not in schema.names]:
        raise InvalidRequest(f"columns of {root} are {schema.names}; got {unknown[0]!r}; name one of them")
    titles = tuple(title for title in schema.names if title in asked)
    names = {
        title: _class_names(features[title], title) for title in titles if _type(features.get(title)) == "ClassLabel"
    }
    label = source.label or (next(iter(names)) if len(names) == 1 else None)
    hidden = [title for title in schema.names if title not in visible and title not in asked]
    notes = [f"left out, as the format it was saved with shows other columns: {', '.join(hidden)}"] if hidden else []
    types = pa.schema([(title, _plain_type(schema.field(title).type)) for title in titles])
    if label is not None and pa.types.is_nested(types.field(label).type):
        raise InvalidRequest(
            f"a label is a class, a text or a number; {label!r} has {types.field(label).type}; choose another"
        )
    return _Layout(titles=titles, types=types, features=features, names=names, label=label, notes=notes)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) and isinstance(feature.get("_type"), str) else None


def _class_names(feature: Mapping[str, Any], title: str) -> tuple[str, ...]:
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= _MAX_NAME_CHARS for name in names):
        raise DataError(f"classes have names of at most {_MAX_NAME_CHARS:,} letters; those of {title!r} have not")
    if len(set(names)) < len(names):
        raise DataError(f"no two classes have one name; those of {title!r} are {names[:20]}; rename them")
    return tuple(names)


# Rows of a table ------------------------------------------------------------------------------------------------


def _table(saved: Sequence[_Saved], layout: _Layout, places: Mapping[str, str], source: HuggingFace) -> Table:
    rejects: list[Reject] = []
    for split, first, batch in _batches(saved):
        bad = np.flatnonzero(_unnamed(batch, layout))
        rejects += [Reject(source=f"{split.name}, row {first + at}", reason=_NO_CLASS) for at in bad.tolist()]

    def read() -> Iterator[pa.RecordBatch]:
        for split, first, batch in _batches(saved):
            good = pa.array(~_unnamed(batch, layout))
            arrays = [_array(batch.column(title), title, layout) for title in layout.titles]
            told = [split.name, *([places[split.name]] if places[split.name] else [])]
            same = [pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(batch), np.int32)), [text]) for text in told]
            arrays += [same[0], pa.array(np.arange(first, first + len(batch))), *same[1:]]
            beside = [SOURCE, ROW, SPLIT][: 1 + len(told)]
            yield pa.RecordBatch.from_arrays(arrays, names=[*layout.titles, *beside]).filter(good)

    return Table(
        taken=AsTable(label=layout.label, categories=source.categories),
        schema=pa.schema([(title, layout.kind(title)) for title in layout.titles]),
        rows=sum(split.rows for split in saved) - len(rejects),
        rejects=rejects,
        read=read,
        labels=layout.names,
        notes=layout.notes,
    )


_NO_CLASS = "its class has a code for which there is no name"


def _batches(saved: Sequence[_Saved]) -> Iterator[tuple[_Saved, int, pa.RecordBatch]]:
    # Each with the number of its first row, from 1.
    for split in saved:
        first = 1
        for file in split.files:
            for number in range(len(file.batches)):
                whole = file.batch(number)
                step = max(1, min(BATCH_ROWS, _BATCH_BYTES * len(whole) // max(1, whole.nbytes)))
                for start in range(0, len(whole), step):
                    batch = file.batch(number).slice(start, step)
                    yield split, first, batch
                    first += len(batch)


def _unnamed(batch: pa.RecordBatch, layout: _Layout) -> Any:
    # -1 is how datasets writes that a class is not known.
    bad = np.zeros(len(batch), bool)
    for title, names in layout.names.items():
        codes = _codes(batch.column(title), title).fill_null(-1).to_numpy(zero_copy_only=False)
        bad |= (codes < -1) | (codes >= len(names))
    return bad


def _codes(array: pa.Array, title: str) -> pa.Array:
    if not pa.types.is_signed_integer(array.type):
        raise DataError(f"codes of classes are whole numbers; those of {title!r} are {array.type}; save it again")
    return array.cast(pa.int64())


def _array(array: pa.Array, title: str, layout: _Layout) -> pa.Array:
    # What a column is to the rest of an ingest: classes by name, arrays of fixed shape as such, all else as it is.
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if title in layout.names:
        codes = _codes(array, title)
        there = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(layout.names[title])))
        codes = pc.if_else(there, codes, pa.scalar(None, pa.int64())).cast(pa.int32())
        return pa.DictionaryArray.from_arrays(codes, pa.array(layout.names[title], pa.string()))
    if _type(layout.features.get(title)) in ("Array2D", "Array3D", "Array4D", "Array5D"):
        return _tensor(array, title, layout.features[title].get("shape"))
    return array


def _tensor(array: pa.Array, title: str, shape: Any) -> pa.Array:
    known = isinstance(shape, list) and bool(shape) and all(isinstance(size, int) and size > 0 for size in shape)
    if not known or prod(shape) > 2**31 - 1:
        raise DataError(
            f"arrays of a column have one shape; those of {title!r} have {shape}; leave it out with columns="
        )
    flat = array
    for size in shape:
        if not (pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type)):
            raise DataError(f"arrays of column {title!r} have the shape {shape}; its values are {array.type}")
        if flat.null_count or not pc.all(pc.equal(flat.value_lengths(), size), min_count=0).as_py():
            raise DataError(
                f"arrays of column {title!r} have the shape {shape}, all of them; some have not, or are missing"
            )
        flat = flat.flatten()
    if flat.null_count:
        raise DataError(f"arrays of column {title!r} hold numbers; {flat.null_count} of them have no value")
    if tabular.item_dtype(flat.type) is None:
        raise DataError(
            f"arrays of a column hold numbers; those of {title!r} hold {flat.type}; leave it out with columns="
        )
    kind = pa.fixed_shape_tensor(flat.type, shape)
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, prod(shape)))


# Pictures and recordings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Row(Entry):
    """A row of a file.

    Attributes:
        file: Where it is.
        batch: In which of its batches.
        row: Where in that.
        decode: Makes a sample of a batch of one row.
    """

    file: StreamFile
    batch: int
    row: int
    decode: _Decoder

    def read(self) -> Sample:
        """The file's bytes, its class and what stands beside."""
        return self.decode(self.file.batch(self.batch).slice(self.row, 1))


@dataclass(frozen=True, kw_only=True)
class _Decoder:
    """Makes samples of batches of one row.

    Attributes:
        media: Which column has the picture or recording.
        layout: What the others are.
        beside: Those that are kept, by title.
    """

    media: str
    layout: _Layout
    beside: Mapping[str, Column]

    def __call__(self, row: pa.RecordBatch) -> Sample:
        if _unnamed(row, self.layout)[0]:
            raise InvalidInput(_NO_CLASS)
        return Sample(
            data=_content(row.column(self.media)[0].as_py()),
            label=self._label(row),
            values={column.name: self._value(row, title) for title, column in self.beside.items()},
        )

    def _label(self, row: pa.RecordBatch) -> str:
        title = self.layout.label
        if title is None:
            return ""
        value = _array(row.column(title), title, self.layout).cast(pa.string())[0].as_py()
        if value is None:
            raise InvalidInput(f"no value in {title!r}")
        return str(value)

    def _value(self, row: pa.RecordBatch, title: str) -> Any:
        array = _array(row.column(title), title, self.layout)
        if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
            array = array.cast(pa.timestamp(self.beside[title].unit, getattr(array.type, "tz", None))).cast(pa.int64())
        elif pa.types.is_decimal(array.type):
            array = array.cast(pa.float64())
        elif isinstance(array, pa.ExtensionArray):
            return array.to_numpy_ndarray()[0].tolist()
        return array[0].as_py()


def _content(value: Mapping[str, Any] | None) -> bytes:
    if value is None:
        raise InvalidInput("there is nothing in this row")
    if value["bytes"] is None:
        # A path in a dataset is its author's; what lies there is not theirs to have read.
        raise InvalidInput(
            f"its bytes are not in the dataset, which only names the file {str(value['path'])[:200]!r}; that is not "
            f"followed; save the dataset again where its files are"
        )
    return bytes(value["bytes"])


def _collection(
    saved: Sequence[_Saved], layout: _Layout, places: Mapping[str, str], media: str, source: HuggingFace
) -> Collection:
    kind = layout.types.field(media).type
    if kind not in _CONTENTS:
        raise DataError(f"pictures and recordings are saved as bytes and path; {media!r} is {kind}; save them again")
    beside = _beside(saved, layout, media, source)
    decode = _Decoder(media=media, layout=layout, beside=beside)
    taken: AsPictures | AsRecordings = AsRecordings(max_seconds=source.max_seconds)
    if _type(layout.features[media]) == "Image":
        taken = AsPictures(color=source.color, max_pixels=source.max_pixels)
    return Collection(
        taken=taken,
        entries=[
            _Row(
                source=f"{split.name}/{number:08d}",
                split=places[split.name],
                file=file,
                batch=at,
                row=row,
                decode=decode,
            )
            for split in saved
            for number, (file, at, row) in enumerate(_places(split))
        ],
        rejects=[],
        labelled=layout.label is not None,
        labels=tuple(layout.names.get(layout.label or "", ())),
        columns=tuple(beside.values()),
        notes=tuple(layout.notes),
    )


def _places(split: _Saved) -> Iterator[tuple[StreamFile, int, int]]:
    for file in split.files:
        for at, batch in enumerate(file.batches):
            yield from ((file, at, row) for row in range(len(batch)))


def _beside(saved: Sequence[_Saved], layout: _Layout, media: str, source: HuggingFace) -> dict[str, Column]:
    titles = [title for title in layout.titles if title not in (media, layout.label)]
    names = tabular.column_names(titles, taken=("image", "audio", "label", "source", "id", "split"))
    found = {}
    for title in titles:
        try:
            found[title] = _column(saved, layout, names[title], title, source)
        except DataError as error:
            layout.notes.append(f"left out: {title}; {error.message}")
    return found


def _column(saved: Sequence[_Saved], layout: _Layout, name: str, title: str, source: HuggingFace) -> Column:
    missing = 0
    lengths: set[int] = set()
    texts: set[str] = set()
    kind = layout.kind(title)
    for _, _, batch in _batches(saved):
        array = _array(batch.column(title), title, layout)
        missing += array.null_count
        lengths |= tabular.lengths(array)
        if title in source.categories and title not in layout.names:
            texts |= set(array.cast(pa.string()).unique().drop_null().to_pylist())
    if title in source.categories or title in layout.names:
        labels = layout.names.get(title, tuple(sorted(texts)))
        other = title if title != name else None
        return Column(
            name=name, title=other, kind="category", dtype="int32", labels=tuple(labels), nullable=missing > 0
        )
    length = next(iter(lengths)) if len(lengths) == 1 and min(lengths) > 0 else None
    return tabular.column_of(name, title, kind, nullable=missing > 0, length=length)
