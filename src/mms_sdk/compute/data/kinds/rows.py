"""What a row is before the first host step, by kind: the same from a dataset and from a request.

| kind | a row |
|---|---|
| image | uint8, (height, width, channels) |
| text | UTF-8 bytes |
| audio | `Sound`: samples and their rate |
| series | numbers, (items,) or (items, channels) |
| embedding | numbers of one shape |
| table | `Cells` of each column by name |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from mms_sdk.compute.data.kinds import audio, image
from mms_sdk.compute.data.kinds.audio import Sound
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.types import Array

MEDIA = {
    "image": "image",
    "encoded-image": "image",
    "audio": "audio",
    "encoded-audio": "audio",
    "text": "text",
    "series": "series",
    "embedding": "embedding",
}
"""Kinds of a column that a model sees alone, and which kind of row each makes."""

CELLS = ("number", "category", "label", "timestamp")
"""Kinds of columns that make up the rows of a table."""

_SECONDS = {"D": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class RowKind(Protocol):
    """What rows of a kind are, and how they are made. A frozen dataclass."""

    name: ClassVar[str]
    first: ClassVar[str]

    @property
    def dtype(self) -> str:
        """Of rows on the device, unless the last host step says otherwise."""

    def shape(self) -> tuple[int, ...] | None:
        """Shape of a row before the first host step, with -1 for what differs; None if rows are no array."""

    def rows(self, stored: Sequence[Any]) -> Any:
        """Rows out of what the columns hold, one entry of `stored` a column; each is still to be opened."""

    def open(self, row: Any) -> Any:
        """One of those rows, as the first host step takes it."""

    def given(self, item: Any) -> Any:
        """A row of a request, as the first host step takes it.

        Raises:
            InvalidInput: It is none of this kind.
        """


@dataclass(frozen=True)
class Pictures:
    """Pictures: the bytes of files, or pixels.

    Attributes:
        column: As it is stored.
        max_pixels: Larger pictures of a request are refused.
    """

    name: ClassVar[str] = "image"
    first: ClassVar[str] = "mms.image.Resize(64)"
    column: Column
    max_pixels: int = image.DEFAULT_MAX_PIXELS

    @property
    def dtype(self) -> str:
        """Pixels are uint8; pictures that were stored as other numbers are float32, and not scaled."""
        return "uint8" if self.column.varies or self.column.dtype == "uint8" else "float32"

    @property
    def channels(self) -> int:
        """One or three."""
        return image.CHANNELS[self.column.color] if self.column.color else (self.column.shape or (3,))[-1] or 3

    def shape(self) -> tuple[int, ...] | None:
        """(height, width, channels); -1 for what differs."""
        return (-1, -1, self.channels) if self.column.varies else self.column.fixed

    def rows(self, stored: Sequence[Any]) -> Any:
        """Bytes or pixels."""
        return stored[0]

    def open(self, row: Any) -> Array:
        """Pixels."""
        if not isinstance(row, bytes):
            return np.asarray(row)
        return image.decode(row, color=self.column.color or "rgb", max_pixels=2**31)

    def given(self, item: Any) -> Array:
        """Pixels of the bytes of a file, or of uint8 of shape (height, width, channels) or, if gray, (height, width).

        Raises:
            InvalidInput: It does not decode, or is no picture.
        """
        if isinstance(item, bytes):
            item = image.decode(item, color="gray" if self.channels == 1 else "rgb", max_pixels=self.max_pixels)
        elif not isinstance(item, np.ndarray):
            raise InvalidInput(f"a picture is the bytes of a file, or a uint8 array; got {type(item).__name__}")
        elif item.ndim == 2 and self.channels == 1:
            item = item[:, :, None]
        if item.dtype != self.dtype or item.ndim != 3 or 0 in item.shape:
            raise InvalidInput(
                f"a picture is {self.dtype} of shape (height, width, channels); got {item.dtype} of shape "
                f"{item.shape}; convert it first"
            )
        return item  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Texts:
    """Texts of any length."""

    name: ClassVar[str] = "text"
    dtype: ClassVar[str] = "int32"
    first: ClassVar[str] = "mms.text.Bytes(256) or mms.text.Tokenize(length=128)"

    def shape(self) -> tuple[int, ...] | None:
        """They are no array."""
        return None

    def rows(self, stored: Sequence[Any]) -> Any:
        """UTF-8."""
        return stored[0]

    def open(self, row: Any) -> bytes:
        """UTF-8."""
        return bytes(row)

    def given(self, item: Any) -> bytes:
        """UTF-8 of a text, or of the bytes of one.

        Raises:
            InvalidInput: It is no text.
        """
        try:
            data = item.encode() if isinstance(item, str) else bytes(item) if isinstance(item, bytes) else None
            if data is not None:
                data.decode()
                return data
        except UnicodeError as error:
            raise InvalidInput(f"a text is UTF-8; this one is not: {error}; convert it first") from error
        raise InvalidInput(f"a text is a string, or UTF-8 bytes; got {type(item).__name__}")


@dataclass(frozen=True)
class Sounds:
    """Recordings: the bytes of files, or samples of one rate.

    Attributes:
        column: As it is stored.
        max_seconds: Longer recordings of a request are refused.
    """

    name: ClassVar[str] = "audio"
    dtype: ClassVar[str] = "float32"
    first: ClassVar[str] = "mms.audio.Waveform(rate_hz=16_000, seconds=1.0)"
    column: Column
    max_seconds: float = 600.0

    def shape(self) -> tuple[int, ...] | None:
        """They are no array."""
        return None

    def rows(self, stored: Sequence[Any]) -> Any:
        """Bytes or samples."""
        return stored[0]

    def open(self, row: Any) -> Sound:
        """Its samples and their rate."""
        return audio.sound(row) if isinstance(row, bytes) else self._samples(np.asarray(row), self.column.rate_hz)

    def given(self, item: Any) -> Sound:
        """Samples and rate of the bytes of a file, of an array, or of an array with its rate in Hz.

        Raises:
            InvalidInput: It does not decode, is no recording, or nothing tells its rate.
        """
        if isinstance(item, bytes):
            return audio.sound(item, max_seconds=self.max_seconds)
        samples, rate_hz = item if isinstance(item, tuple) and len(item) == 2 else (item, self.column.rate_hz)
        if not isinstance(samples, np.ndarray) or samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
            raise InvalidInput(
                f"a recording is the bytes of a file, an array of shape (frames,) or (frames, channels), or a pair of "
                f"such an array and its rate in Hz; got {type(samples).__name__}"
            )
        if not rate_hz or rate_hz <= 0:
            raise InvalidInput(
                f"samples have a rate in Hz above 0; got {rate_hz}; give a pair such as (samples, 16_000)"
            )
        return self._samples(samples, float(rate_hz))

    def _samples(self, samples: Array, rate_hz: float | None) -> Sound:
        if rate_hz is None:
            raise InvalidRequest(
                f"samples are trained on at a rate that is known; column {self.column.name!r} has none; ingest it with "
                f"rate_hz="
            )
        samples = samples.reshape(len(samples), -1)
        if samples.dtype.kind in "iu":  # as libsndfile scales whole numbers
            return Sound(samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min) or 1), rate_hz)
        return Sound(samples.astype(np.float32), rate_hz)


@dataclass(frozen=True)
class Numbers:
    """Arrays of numbers: series, whose rows may differ in length, or embeddings.

    Attributes:
        column: As it is stored.
    """

    name: ClassVar[str] = "series"
    dtype: ClassVar[str] = "float32"
    first: ClassVar[str] = "mms.series.Window(length)"
    column: Column

    def shape(self) -> tuple[int, ...] | None:
        """That of the column; -1 for the items of rows that differ in length."""
        return (-1, *self.column.fixed) if self.column.varies else self.column.fixed

    def rows(self, stored: Sequence[Any]) -> Any:
        """Arrays."""
        return stored[0]

    def open(self, row: Any) -> Array:
        """The array."""
        return np.asarray(row)

    def given(self, item: Any) -> Array:
        """An array, or nested lists of numbers.

        Raises:
            InvalidInput: It is none, or not of the column's axes.
        """
        try:
            values = np.asarray(item)
        except ValueError as error:
            raise InvalidInput(f"a {self.name} is made of lists of equal lengths; this one is not: {error}") from error
        told = ", ".join("any" if axis is None else str(axis) for axis in self.column.shape or ())
        kinds = "iub" if np.dtype(self.dtype).kind == "i" else "iubf"
        fits = values.ndim == len(self.column.shape or ()) and all(
            axis in (None, length) for axis, length in zip(self.column.shape or (), values.shape, strict=False)
        )
        if values.dtype.kind not in kinds or not fits:
            raise InvalidInput(
                f"this model takes rows of kind {self.name}, numbers of shape ({told}); got {values.dtype} of shape "
                f"{values.shape}"
            )
        largest = np.iinfo(np.int32).max if self.dtype == "int32" else np.finfo(np.float32).max
        if not (np.abs(values) <= largest).all():  # neither is NaN
            raise InvalidInput(
                f"a {self.name} holds finite numbers of at most {largest:g}; this one has others; fill or scale them "
                f"first"
            )
        return values


@dataclass(frozen=True)
class Embeddings(Numbers):
    """Arrays of one shape."""

    name: ClassVar[str] = "embedding"


@dataclass(frozen=True)
class Ids(Embeddings):
    """Arrays of one shape that hold whole numbers, such as tokens of a text."""

    dtype: ClassVar[str] = "int32"


class Cells(NamedTuple):
    """The values of one column of a table, for some rows.

    Attributes:
        kind: `number` or `category`.
        values: Numbers as float64, NaN where missing; times as seconds from 1970-01-01 UTC; categories as int64 codes,
            -1 where missing. Shape (rows,).
        labels: What the codes of a category stand for.
    """

    kind: str
    values: Array
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of a table: numbers, categories and times.

    Attributes:
        columns: In order.
    """

    name: ClassVar[str] = "table"
    dtype: ClassVar[str] = "float32"
    first: ClassVar[str] = "mms.table.Encode()"
    columns: tuple[Column, ...] = field(default=())

    def shape(self) -> tuple[int, ...] | None:
        """They are no array."""
        return None

    def rows(self, stored: Sequence[Any]) -> dict[str, Cells]:
        """Cells by name."""
        return {column.name: _cells(column, values) for column, values in zip(self.columns, stored, strict=True)}

    def open(self, row: Any) -> Any:
        """Cells by name."""
        return row

    def given(self, item: Any) -> dict[str, Cells]:
        """Cells of one row, given by name, or by the titles of its source; None where there is no value.

        Raises:
            InvalidInput: A column is missing, unknown, or holds something else than it does.
        """
        names = [column.name for column in self.columns]
        titles = {column.title or column.name: column.name for column in self.columns}
        if isinstance(item, Mapping) and set(item) != set(names) and set(item) == set(titles):
            item = {titles[title]: value for title, value in item.items()}
        if not isinstance(item, Mapping) or set(item) != set(names):
            got = type(item).__name__
            if isinstance(item, Mapping):
                missing = [name for name in names if name not in item]
                got = f"without {missing}" if missing else f"also {sorted(map(str, set(item) - set(names)))}"
            raise InvalidInput(
                f"a row has a value, or null where there is none, for each of {names} and nothing else; got one {got}"
            )
        return {column.name: _cell(column, item[column.name]) for column in self.columns}


def _cells(column: Column, values: Any) -> Cells:
    gone, given = np.ma.getmaskarray(values), np.ma.getdata(values)
    if column.labels is not None:
        gone = gone | (given < 0) | (given >= len(column.labels))  # codes of categories are not checked when read
        return Cells("category", np.where(gone, -1, given).astype(np.int64), column.labels)
    numbers = given.astype(np.float64)
    if column.kind == "timestamp":
        numbers = numbers * _SECONDS[column.unit or "s"]
    return Cells("number", np.where(gone, np.nan, numbers))


def _cell(column: Column, value: Any) -> Cells:
    if column.kind in ("category", "label"):
        if value is not None and not isinstance(value, str):
            raise InvalidInput(f"{column.name!r} is a category, a text; got {type(value).__name__}: {value!r}")
        return Cells("category", np.array([-1 if value is None else 0]), () if value is None else (value,))
    if value is None:
        return Cells("number", np.array([np.nan]))
    if column.kind == "timestamp" and isinstance(value, str | dt.datetime | np.datetime64):
        return _cells(column, np.array([_instant(column, value)]))
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return Cells("number", np.array([float(value)]))
    what = "a time: ISO 8601, or seconds from 1970" if column.kind == "timestamp" else "a number"
    raise InvalidInput(f"{column.name!r} is {what}; got {type(value).__name__}: {value!r}")


def _instant(column: Column, value: Any) -> np.int64:
    # In the column's own unit, and then seconds in the way of stored ones: the same bits.
    unit = column.unit or "s"
    try:
        if isinstance(value, str):
            value = dt.datetime.fromisoformat(value)
        if isinstance(value, dt.datetime):
            value = value if value.tzinfo is None else (value - _EPOCH + dt.datetime(1970, 1, 1))
            value = np.datetime64(value)
        return np.int64(value.astype(f"datetime64[{unit}]").astype(np.int64))
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{column.name!r} is a time such as 2024-05-01T12:00:00Z; got {value!r}: {error}") from error


def input_columns(columns: Sequence[Column], asked: str | Sequence[str] | None, *, target: str | None) -> list[Column]:
    """The columns that a model sees.

    Args:
        columns: Of the dataset.
        asked: Their names; None for the one column of pictures, sound, text, series or embeddings if there is exactly
            one, and for all numbers, categories and times if there is none.
        target: Name of the column that is to be predicted, which is never among them.

    Raises:
        InvalidRequest: There is no such column, or it is not clear which.
    """
    names = [column.name for column in columns]
    own = {"row_source"} if "row_source" in names else {"source"}
    free = [column for column in columns if column.name not in {*own, target}]
    media = [column for column in free if column.kind in MEDIA]
    cells = [column for column in free if column.kind in CELLS and column.kind != "label" and not column.shape]
    told = [f"{column.name} ({column.kind})" for column in (*media, *cells)]
    if asked is not None:
        wanted = [asked] if isinstance(asked, str) else list(asked)
        by_name = {column.name: column for column in columns if column.name != target}
        odd = [name for name in wanted if name not in by_name]
        if odd or not wanted or len(set(wanted)) < len(wanted):
            raise InvalidRequest(
                f"a model sees columns of the dataset, each once and not the target {target!r}; got inputs={wanted}; "
                f"there are {told}"
            )
        return [by_name[name] for name in wanted]
    if len(media) == 1:
        return media
    if media or not cells:
        raise InvalidRequest(
            f"a model sees one column of pictures, sound, text, series or embeddings, or several of numbers, "
            f"categories and times; there are {told or names}; say which with inputs="
        )
    return cells


def kind_of(columns: Sequence[Column]) -> RowKind:
    """What rows of some columns are.

    Raises:
        InvalidRequest: No model sees such columns, or not together.
    """
    medium = MEDIA.get(columns[0].kind) if len(columns) == 1 else None
    if medium is None:
        odd = [f"{column.name} ({column.kind})" for column in columns if column.kind not in CELLS or column.shape]
        if odd:
            raise InvalidRequest(
                f"a model sees one column of pictures, sound, text, series or embeddings, or any number of columns of "
                f"numbers, categories and times; got {odd} among {[column.name for column in columns]}"
            )
        return Table(tuple(columns))
    column = columns[0]
    if medium == "embedding":
        return Ids(column) if np.dtype(column.dtype).kind in "iu" else Embeddings(column)
    kinds: dict[str, Any] = {"image": Pictures, "audio": Sounds, "series": Numbers}
    return Texts() if medium == "text" else kinds[medium](column)
