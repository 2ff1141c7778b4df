"""Samples in tar files as WebDataset writes them: found by one pass over the headers, then read where they lie.

In the pass the small files that classes and the types of columns are decided by are read too: those of classes and
numbers, and `.json`. Pictures, recordings, clips and texts are not.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, BinaryIO

import msgspec

from mms_sdk.compute.data.kinds import text
from mms_sdk.compute.data.kinds.tabular import column_names
from mms_sdk.compute.data.media import medium_of, reserved_names
from mms_sdk.compute.data.sources.files import SUFFIXES
from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample, hint, refuse_large
from mms_sdk.compute.data.sources.shards import Keyed, find_shards, grouped
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import Kind, WebDataset

_JSON = "json"
_TEXTS = ("txt", "text", "transcript")
_NUMBERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
_MAX_FIELDS = 1000
_MAX_NAME = 255
_MAX_NUMBER_BYTES = 2**12
_MAX_JSON_BYTES = 2**24
_EXACT = 2**53  # whole numbers up to it are floats too
_TYPES: dict[frozenset[str], dict[str, Any]] = {
    frozenset({"bool"}): {"kind": "number", "dtype": "bool"},
    frozenset({"whole"}): {"kind": "number", "dtype": "int64"},
    frozenset({"long"}): {"kind": "number", "dtype": "int64"},
    frozenset({"whole", "long"}): {"kind": "number", "dtype": "int64"},
    frozenset({"float"}): {"kind": "number", "dtype": "float64"},
    frozenset({"whole", "float"}): {"kind": "number", "dtype": "float64"},
    frozenset({"text"}): {"kind": "text", "dtype": "uint8", "shape": None},
}
"""Columns by what was seen among their values."""


@dataclass(frozen=True)
class _Place:
    """Where the value of a column stands: in a file, by what its name ends with, or in a field of the `.json`."""

    end: str
    field: str | None = None


@dataclass(kw_only=True)
class _Form:
    """What the files of a sample are.

    Attributes:
        mains: What the name of the picture, recording, clip or text ends with.
        encoding: Of texts.
        columns: What stands beside, and where.
    """

    mains: frozenset[str]
    encoding: str
    columns: Mapping[_Place, Column] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Entry(Entry):
    """The files of a shard that share a key; they are read where they lie."""

    keyed: Keyed
    form: _Form

    def read(self) -> Sample:
        """The picture, recording, clip or text, and what stands beside."""
        parts, form = self.keyed.parts, self.form
        with self.keyed.shard.opened() as file:
            record = _record(file, parts) if any(place.field for place in form.columns) else {}
            values = {
                column.name: _value(file, parts, place, record, form.encoding) for place, column in form.columns.items()
            }
            (main,) = form.mains & parts.keys()
            return Sample(data=_bytes(file, parts[main]), label=self.label, values=values)


@dataclass(kw_only=True)
class _Seen:
    """What the pass told of the values beside.

    Attributes:
        types: What was seen in a place.
        counts: In how many samples there is a value.
    """

    types: dict[_Place, set[str]] = field(default_factory=lambda: defaultdict(set))
    counts: Counter[_Place] = field(default_factory=Counter)

    def see(self, place: _Place, value: Any) -> None:
        """Looks at one more value."""
        self.types[place] |= set() if value is None else {_type(value)}
        self.counts[place] += value is not None


def open_webdataset(source: WebDataset) -> Collection:
    """Looks through shards.

    Raises:
        InvalidRequest: A shard of a range is not there; samples of several kinds, or several pictures in one; or no
            such class.
        NothingToIngest: There is no sample.
        DataError: The `.json` have too many fields.
    """
    rejects: list[Reject] = []
    found = [keyed for shard in find_shards(source.path, rejects) for keyed in grouped(shard, rejects)]
    ends = Counter(end for keyed in found for end in keyed.parts)
    if not found:
        raise NothingToIngest(f"a source has at least one sample; {source.path} has none{hint(rejects)}")
    kind, mains = _mains(source, ends)
    form, label, seen = _Form(mains=mains, encoding=source.encoding), _label_place(source, ends), _Seen()
    entries = _usable(found, form, label, seen, rejects)
    if not entries:
        raise NothingToIngest(f"a source has at least one usable sample; {source.path} has none{hint(rejects)}")
    taken = source.taken_as(kind)
    reserved = reserved_names(medium_of(taken, hashed=False))
    form.columns, notes = _columns(seen, ends, label, mains, total=len(entries), reserved=reserved)
    return Collection(
        taken=taken,
        entries=entries,
        rejects=rejects,
        labelled=label is not None,
        labels=_in_order({entry.label for entry in entries}) if label else (),
        columns=tuple(form.columns.values()),
        notes=tuple(notes),
    )


def _mains(source: WebDataset, ends: Iterable[str]) -> tuple[Kind, frozenset[str]]:
    if source.part is not None:
        end = source.part.lower().removeprefix(".")
        kind = source.kind or SUFFIXES.get(f".{end.rpartition('.')[2]}")
        if end not in ends or kind is None:
            raise InvalidRequest(
                f"a part is what the name of a picture, recording, clip or text ends with; those in {source.path} end "
                f"with {_listed(ends)}; got {source.part!r}; name one of them, and kind= if it does not say what it is"
            )
        return kind, frozenset({end})
    kinds: dict[Kind, set[str]] = defaultdict(set)
    for end in ends:
        if kind := SUFFIXES.get(f".{end.rpartition('.')[2]}"):
            kinds[kind].add(end)
    if source.kind is not None:
        kinds = {source.kind: kinds.get(source.kind, set())}
    elif len(kinds) > 1:
        kinds.pop("text", None)  # what is written beside a picture is not the sample
    if len(kinds) != 1 or not all(kinds.values()):
        raise InvalidRequest(
            f"a sample is one picture, recording, clip or text; the files in {source.path} end with {_listed(ends)}; "
            f"say which with kind=, or name the file with part="
        )
    ((kind, mains),) = kinds.items()
    return kind, frozenset(mains)


def _usable(
    found: Iterable[Keyed], form: _Form, label: _Place | None, seen: _Seen, rejects: list[Reject]
) -> list[_Entry]:
    entries = []
    for shard, of_shard in groupby(found, key=attrgetter("shard")):
        with shard.opened() as file:
            for keyed in of_shard:
                try:
                    _refuse_other_mains(keyed, form.mains)
                    told = _label_and_values(file, keyed, label, form.mains, seen)
                except InvalidInput as error:
                    rejects.append(Reject(source=keyed.source, reason=error.message))
                except OSError as error:
                    rejects.append(Reject(source=keyed.source, reason=f"it cannot be read: {error.strerror}"))
                else:
                    entries.append(_Entry(source=keyed.source, label=told, keyed=keyed, form=form))
    return entries


def _refuse_other_mains(keyed: Keyed, mains: frozenset[str]) -> None:
    there = sorted(mains & keyed.parts.keys())
    if len(there) > 1:
        raise InvalidRequest(
            f"a sample is one file; {keyed.source} has {_listed(there)}; name the one that is meant with part="
        )
    if not there:
        raise InvalidInput(f"it has no file that ends with {_listed(mains)}, only {_listed(keyed.parts)}")


def _label_place(source: WebDataset, ends: Mapping[str, int]) -> _Place | None:
    if source.label is None:
        return _Place("cls") if "cls" in ends else None
    end = source.label.lower().removeprefix(".")
    if end in ends:
        return _Place(end)
    if _JSON not in ends:
        raise InvalidRequest(
            f"a class stands in a file by what its name ends with, {_listed(ends)}, or in a field of the .json; got "
            f"{source.label!r}; name one of them"
        )
    return _Place(_JSON, source.label)


def _label_and_values(file: BinaryIO, keyed: Keyed, label: _Place | None, mains: frozenset[str], seen: _Seen) -> str:
    # Values count once it is sure that the sample stays.
    parts, told = keyed.parts, ""
    record = _record(file, parts)
    ends = [end for end in parts if end in _NUMBERS and end not in mains]
    values = {_Place(end): _number_or_name(file, parts, end) for end in ends}
    if label is not None:
        value = _number_or_name(file, parts, label.end) if label.field is None else record.get(label.field)
        told = _label(value, label)
    values |= {_Place(_JSON, name): value for name, value in record.items()}
    values |= {_Place(end): "" for end in keyed.parts if end.rpartition(".")[2] in _TEXTS and end not in mains}
    for place, value in values.items():
        seen.see(place, value)
    if len(seen.types) > _MAX_FIELDS:
        raise DataError(
            f"samples have at most {_MAX_FIELDS:,} values beside; from {keyed.source} on there are more; are the names "
            f"of fields in .json values? write them as values"
        )
    return told


def _label(value: Any, place: _Place) -> str:
    where = f"the field {place.field!r} of its .json" if place.field else f"its .{place.end}"
    told = "" if isinstance(value, bool) or not isinstance(value, int | str) else str(value).strip()
    if not 0 < len(told) <= _MAX_NAME:
        raise InvalidInput(
            f"a class is a whole number or a name of at most {_MAX_NAME} characters; {where} has {str(value)[:80]!r}"
        )
    return told


def _in_order(labels: set[str]) -> tuple[str, ...]:
    # Numbers by their value: 10 comes after 9.
    if all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _columns(
    seen: _Seen,
    ends: Mapping[str, int],
    label: _Place | None,
    mains: frozenset[str],
    *,
    total: int,
    reserved: Sequence[str],
) -> tuple[dict[_Place, Column], list[str]]:
    places = [place for place in seen.types if place != label]
    titles = {place: place.field or place.end for place in places}
    twice = {title for title, count in Counter(titles.values()).items() if count > 1}
    titles = {place: f"json.{title}" if place.field and title in twice else title for place, title in titles.items()}
    names = column_names(titles.values(), taken=reserved)
    columns, notes = {}, []
    for place, title in titles.items():
        fields = _TYPES.get(frozenset(seen.types[place]))
        if fields is None:
            found = " and ".join(sorted(seen.types[place]))
            notes.append(f"left out: {title}, {found or 'without any value'}")
            continue
        name = names[title]
        told = title if title != name else None
        columns[place] = Column(name=name, title=told, nullable=seen.counts[place] < total, **fields)
    known = {_JSON, *mains, *(place.end for place in places), *([label.end] if label else [])}
    for end in sorted(set(ends) - known):
        pickled = ", which runs code where it is loaded" if end.rpartition(".")[2] in _PICKLES else ""
        notes.append(f"left out: {ends[end]:,} × .{end}{pickled}")
    return columns, notes


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "whole" if abs(value) <= _EXACT else "long"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else type(value).__name__


def _value(
    file: BinaryIO, parts: Mapping[str, tuple[int, int]], place: _Place, record: Mapping[str, Any], encoding: str
) -> Any:
    if place.field is not None:
        return record.get(place.field)
    if place.end.rpartition(".")[2] not in _TEXTS:
        return _number_or_name(file, parts, place.end)
    return text.decode(_bytes(file, parts[place.end]), encoding=encoding) if place.end in parts else None


def _number_or_name(file: BinaryIO, parts: Mapping[str, tuple[int, int]], end: str) -> int | str | None:
    if end not in parts:
        return None
    told = text.decode(_bytes(file, parts[end], most=_MAX_NUMBER_BYTES), encoding="utf-8").strip()
    return int(told) if re.fullmatch(r"[+-]?[0-9]{1,18}", told) else told


def _record(file: BinaryIO, parts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    if _JSON not in parts:
        return {}
    try:
        # Not orjson: it reads whole numbers beyond 64 bits as floats, which are others.
        found = msgspec.json.decode(_bytes(file, parts[_JSON], most=_MAX_JSON_BYTES))
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"its .json is none: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"its .json is an object; it holds {type(found).__name__}")
    return found


def _bytes(file: BinaryIO, part: tuple[int, int], *, most: int | None = None) -> bytes:
    offset, size = part
    refuse_large(size)
    if most is not None and size > most:
        raise InvalidInput(f"what stands beside a sample has at most {most:,} bytes; it has {size:,}")
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise InvalidInput("its shard was cut short since it was looked through")
    return data


def _listed(ends: Iterable[str]) -> str:
    told = sorted(f".{end}" for end in ends)
    return ", ".join(told[:12]) + (f" and {len(told) - 12} more" if len(told) > 12 else "")
