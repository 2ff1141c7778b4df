"""What samples are: pictures, recordings, clips or texts; what is asked of them, and the columns they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from mms_sdk.compute.data.clean import Looked
from mms_sdk.compute.data.kinds import audio, image, text, video
from mms_sdk.compute.data.sources.samples import OWN
from mms_sdk.errors import DataError
from mms_sdk.schema.cleaning import DropDuplicates, DropNearDuplicates, DropOddSizes, DropUnreadable
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import AsClips, AsPictures, AsRecordings, AsTexts

# Above this, a picture is kept as the bytes of its file: decoded, a photograph takes twenty times the room.
MAX_DECODED_BYTES = 256 * 256 * 3


class Medium(Protocol):
    """A kind of files, as an ingest sees it.

    Attributes:
        column: Name of the column they become.
        noun: What people call one of them; with an s, several.
        steps: Cleaning steps that suit them.
        beside: Columns with what is known of each beside.
    """

    column: str
    noun: str
    steps: tuple[type, ...]
    beside: tuple[Column, ...]

    def inspect(self, data: bytes) -> Any:
        """What a file is, once it was decoded.

        Raises:
            InvalidInput: It does not decode.
        """

    def describe(self, facts: Sequence[Any]) -> Column:
        """The column that holds files of such facts."""

    def refuse(self, kept: Sequence[Looked], column: Column) -> None:
        """Refuses files that do not fit the column.

        Raises:
            DataError: Some do not.
        """

    def decode(self, data: bytes, column: Column) -> Any:
        """The value of a row."""

    def values(self, facts: Any) -> dict[str, Any]:
        """What stands in the columns beside, of one file."""

    def notes(self, facts: Sequence[Any], column: Column) -> Counter[str]:
        """What had to be done to how many files."""


class Pictures:
    """Files that decode to pictures. See `Medium`.

    Args:
        source: The folder.
        hashed: Whether near duplicates are looked for.
    """

    column = "image"
    noun = "picture"
    steps: tuple[type, ...] = (DropUnreadable, DropDuplicates, DropNearDuplicates, DropOddSizes)
    beside: tuple[Column, ...] = ()

    def __init__(self, source: AsPictures, *, hashed: bool = False) -> None:
        self._source = source
        self._hashed = hashed

    def inspect(self, data: bytes) -> image.Facts:
        """Size and colours, and what it looks like."""
        return image.inspect(data, max_pixels=self._source.max_pixels, hashed=self._hashed)

    def describe(self, facts: Sequence[image.Facts]) -> Column:
        """Decoded, if all have one size and it is small; else the bytes of the files."""
        color = self._source.color
        if color == "auto":
            color = "gray" if all(fact.gray for fact in facts) else "rgb"
        sizes = {fact.size for fact in facts}
        height, width = next(iter(sizes))
        if len(sizes) == 1 and height * width * image.CHANNELS[color] <= MAX_DECODED_BYTES:
            shape = (height, width, image.CHANNELS[color])
            return Column(name="image", kind="image", dtype="uint8", shape=shape, color=color)
        return Column(name="image", kind="encoded-image", dtype="uint8", shape=None, color=color)

    def refuse(self, kept: Sequence[Looked], column: Column) -> None:
        """Sizes and channels must be those of the column."""
        if self._source.color not in ("auto", column.color):
            raise DataError(
                f"all pictures of a dataset have the same channels; it holds {column.color!r}, asked for is "
                f"{self._source.color!r}; leave color= out, or ingest everything into a new dataset"
            )
        if column.shape is None:
            return
        other = [item for item in kept if item.facts and item.facts.size != column.shape[:2]]
        if other:
            raise DataError(
                f"new pictures have the size of those in the dataset, {column.shape[1]}×{column.shape[0]}; "
                f"{len(other)} do not, e.g. {other[0].entry.source}; drop them with clean=[mms.drop_odd_sizes()], or "
                f"ingest everything into a new dataset"
            )

    def decode(self, data: bytes, column: Column) -> Any:
        """Pixels, or the bytes as they are."""
        if column.shape is None or column.color is None:
            return data
        return image.decode(data, color=column.color, max_pixels=self._source.max_pixels)

    def values(self, facts: image.Facts) -> dict[str, Any]:
        """Nothing."""
        return {}

    def notes(self, facts: Sequence[image.Facts], column: Column) -> Counter[str]:
        """Frames left out, bits scaled, colours lost and the like."""
        counts = Counter(note for fact in facts for note in fact.notes)
        if column.color == "gray":
            counts["colours turned into grey"] = sum(not fact.gray for fact in facts)
        return counts


class Recordings:
    """Files that decode to sound. See `Medium`."""

    column = "audio"
    noun = "recording"
    steps: tuple[type, ...] = (DropUnreadable, DropDuplicates)
    beside: tuple[Column, ...] = ()

    def __init__(self, source: AsRecordings) -> None:
        self._source = source

    def inspect(self, data: bytes) -> audio.Facts:
        """Rate, channels and length."""
        return audio.inspect(data, max_seconds=self._source.max_seconds)

    def describe(self, facts: Sequence[audio.Facts]) -> Column:
        """Samples, if all files have one rate and as many channels and are not compressed; else the files' bytes."""
        forms = {(fact.rate_hz, fact.channels) for fact in facts}
        if len(forms) == 1 and all(fact.plain for fact in facts):
            rate_hz, channels = next(iter(forms))
            dtype = "int16" if all(fact.dtype == "int16" for fact in facts) else "float32"
            return Column(name="audio", kind="audio", dtype=dtype, shape=(None, channels), rate_hz=rate_hz)
        return Column(name="audio", kind="encoded-audio", dtype="uint8", shape=None)

    def refuse(self, kept: Sequence[Looked], column: Column) -> None:
        """Rate, channels and bits must be those of the column."""
        if column.kind == "encoded-audio":
            return
        form = (column.rate_hz, *column.fixed)
        dtypes = {"int16"} if column.dtype == "int16" else {"int16", "float32"}
        other = [
            item for item in kept if (item.facts.rate_hz, item.facts.channels) != form or item.facts.dtype not in dtypes
        ]
        if other:
            facts: audio.Facts = other[0].facts
            raise DataError(
                f"new recordings have the form of those in the dataset, {column.rate_hz:g} Hz, {column.fixed[0]} "
                f"channels, {column.dtype}; {len(other)} do not, e.g. {other[0].entry.source}: {facts.rate_hz} Hz, "
                f"{facts.channels} channels, {facts.dtype}; convert them, or ingest everything into a new dataset"
            )

    def decode(self, data: bytes, column: Column) -> Any:
        """Samples, or the bytes as they are."""
        return data if column.shape is None else audio.decode(data, dtype=column.dtype)

    def values(self, facts: audio.Facts) -> dict[str, Any]:
        """Nothing."""
        return {}

    def notes(self, facts: Sequence[audio.Facts], column: Column) -> Counter[str]:
        """Files without a sample."""
        return Counter(note for fact in facts for note in fact.notes)


class Clips:
    """Files that decode to frames. See `Medium`."""

    column = "video"
    noun = "clip"
    steps: tuple[type, ...] = (DropUnreadable, DropDuplicates)
    beside: tuple[Column, ...] = (
        Column(name="seconds", kind="number", dtype="float64", unit="s"),
        Column(name="frames", kind="number", dtype="int64"),
        Column(name="rate_hz", kind="number", dtype="float64", unit="Hz"),
        Column(name="height", kind="number", dtype="int32"),
        Column(name="width", kind="number", dtype="int32"),
    )

    def __init__(self, source: AsClips) -> None:
        self._source = source

    def inspect(self, data: bytes) -> video.Facts:
        """Codec, size, frames and length."""
        return video.inspect(data, max_seconds=self._source.max_seconds, max_pixels=self._source.max_pixels)

    def describe(self, facts: Sequence[video.Facts]) -> Column:
        """The bytes of the files: decoded, a clip takes a hundred times the room."""
        return Column(name="video", kind="encoded-video", dtype="uint8", shape=None)

    def refuse(self, kept: Sequence[Looked], column: Column) -> None:
        """Nothing: files of any form are kept as they are."""

    def decode(self, data: bytes, column: Column) -> Any:
        """The bytes as they are."""
        return data

    def values(self, facts: video.Facts) -> dict[str, Any]:
        """Length, frames, rate and size."""
        height, width = facts.size
        return {
            "seconds": facts.seconds,
            "frames": facts.frames,
            "rate_hz": facts.rate_hz,
            "height": height,
            "width": width,
        }

    def notes(self, facts: Sequence[video.Facts], column: Column) -> Counter[str]:
        """Files that are shown turned."""
        return Counter(note for fact in facts for note in fact.notes)


class Texts:
    """Files of text. See `Medium`."""

    column = "text"
    noun = "text"
    steps: tuple[type, ...] = (DropUnreadable, DropDuplicates)
    beside: tuple[Column, ...] = ()

    def __init__(self, source: AsTexts) -> None:
        self._source = source

    def inspect(self, data: bytes) -> text.Facts:
        """Characters, and whether there is a byte order mark."""
        return text.inspect(data, encoding=self._source.encoding)

    def describe(self, facts: Sequence[text.Facts]) -> Column:
        """UTF-8."""
        return Column(name="text", kind="text", dtype="uint8", shape=None)

    def refuse(self, kept: Sequence[Looked], column: Column) -> None:
        """Nothing: texts of any length are kept."""

    def decode(self, data: bytes, column: Column) -> Any:
        """As UTF-8, without a byte order mark."""
        return text.decode(data, encoding=self._source.encoding).encode()

    def values(self, facts: text.Facts) -> dict[str, Any]:
        """Nothing."""
        return {}

    def notes(self, facts: Sequence[text.Facts], column: Column) -> Counter[str]:
        """Files without a character, and those with a byte order mark."""
        return Counter(note for fact in facts for note in fact.notes)


def medium_of(taken: AsPictures | AsRecordings | AsClips | AsTexts, *, hashed: bool) -> Medium:
    """The medium of samples that are taken so.

    Args:
        taken: What they are taken as.
        hashed: Whether near duplicates are looked for.
    """
    if isinstance(taken, AsPictures):
        return Pictures(taken, hashed=hashed)
    if isinstance(taken, AsRecordings):
        return Recordings(taken)
    return Clips(taken) if isinstance(taken, AsClips) else Texts(taken)


def reserved_names(medium: Medium) -> tuple[str, ...]:
    """Names of the columns that an ingest of a medium brings of its own, and none beside can have."""
    return (medium.column, "label", *(column.name for column in medium.beside), *OWN)
