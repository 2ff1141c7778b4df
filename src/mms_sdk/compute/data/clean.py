"""Cleaning: each step looks at what is known of every file and says which to drop, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mms_sdk.compute.data.near_duplicates import NamedLeaders, NearPictures
from mms_sdk.compute.data.sources.samples import Entry
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cleaning import CleanStep, DropDuplicates, DropNearDuplicates, DropOddSizes, DropUnreadable, Reject


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What looking at one file told.

    Attributes:
        entry: The file.
        id: 16 bytes of BLAKE2b over its bytes: equal content, equal id. Empty if it cannot be read.
        size: Its bytes.
        facts: What the picture, recording, clip or text is; None if it does not decode.
        reason: Why it does not decode.
        values: A digest of what stands beside it in its source.
    """

    entry: Entry
    id: bytes = b""
    size: int = 0
    values: bytes = b""
    facts: Any = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Present:
    """What the dataset holds already.

    Attributes:
        classes: The class of each of its rows, by content id.
        size: (height, width) of its pictures, where all have the same.
        hashes: Reads what its pictures look like, some at a time: their sources, and for each its hash or None.
    """

    classes: Mapping[bytes, str] = field(default_factory=dict)
    size: tuple[int, ...] | None = None
    hashes: Callable[[], Iterable[tuple[Sequence[str], Sequence[int | None]]]] = tuple


def apply(step: CleanStep, looked: Sequence[Looked], present: Present) -> tuple[list[Looked], list[Reject]]:
    """Applies one cleaning step.

    Returns:
        What stays, in the same order, and what does not, with the reason.
    """
    rejects = _STEPS[type(step)](step, looked, present)
    dropped = {reject.source for reject in rejects}
    return [item for item in looked if item.entry.source not in dropped], rejects


def contradictions(looked: Iterable[Looked], present: Present) -> list[Reject]:
    """Pictures whose very bytes stand in another class too, in the source or in the dataset, and where."""
    first: dict[bytes, Entry] = {}
    found = []
    for item in looked:
        if not item.id:
            continue
        label = item.entry.label
        known = present.classes.get(item.id)
        seen = first.setdefault(item.id, item.entry)
        if known is not None and known != label:
            found.append(Reject(source=item.entry.source, reason=f"the dataset has it as {known!r}"))
        elif seen.label != label:
            found.append(Reject(source=item.entry.source, reason=f"it is {seen.source} too"))
    return found


def _unreadable(_step: DropUnreadable, looked: Sequence[Looked], _present: Present) -> list[Reject]:
    return [Reject(source=item.entry.source, reason=item.reason) for item in looked if item.facts is None]


def _duplicates(step: DropDuplicates, looked: Sequence[Looked], present: Present) -> list[Reject]:
    if step.by is not None or step.keep != "first":
        raise InvalidRequest(
            f"files are the same by their bytes, and the first stays; got by={step.by}, keep={step.keep!r}; leave them "
            f"out, and clean the dataset by its columns"
        )
    first: dict[bytes, str] = {}
    rejects = []
    for item in looked:
        if not item.id:  # a file that cannot be read is nobody's duplicate
            continue
        if item.id in present.classes:
            rejects.append(Reject(source=item.entry.source, reason="the same bytes are in the dataset already"))
        elif item.id in first:
            rejects.append(Reject(source=item.entry.source, reason=f"the same bytes as {first[item.id]}"))
        else:
            first[item.id] = item.entry.source
    return rejects


def _near_duplicates(step: DropNearDuplicates, looked: Sequence[Looked], present: Present) -> list[Reject]:
    if step.distance is None:
        raise InvalidRequest(f"pictures are near by distance=; got the column {step.column!r}; leave it out")
    near = NamedLeaders(NearPictures(step.distance), "uint64")
    for sources, hashes in present.hashes():
        near.firsts([f"{source}, which is in the dataset" for source in sources], hashes)
    names = [item.entry.source for item in looked]
    firsts = near.firsts(names, [item.facts.hash if item.facts else None for item in looked])
    return [
        Reject(source=name, reason=f"it looks like {first}")
        for name, first in zip(names, firsts, strict=True)
        if first is not None
    ]


def _odd_sizes(step: DropOddSizes, looked: Sequence[Looked], present: Present) -> list[Reject]:
    sizes = Counter(item.facts.size for item in looked if item.facts)
    if not sizes:
        return []
    usual, count = sizes.most_common(1)[0]
    if present.size is None and count < step.min_share * sizes.total():
        return []
    size = present.size or usual
    others = "those in the dataset have" if present.size else f"{count:,} of {sizes.total():,} have"
    return [
        Reject(source=item.entry.source, reason=f"it has {_told(item.facts.size)} pixels, {others} {_told(size)}")
        for item in looked
        if item.facts and item.facts.size != size
    ]


def _told(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]}"


_STEPS: dict[type, Callable[..., list[Reject]]] = {
    DropUnreadable: _unreadable,
    DropDuplicates: _duplicates,
    DropNearDuplicates: _near_duplicates,
    DropOddSizes: _odd_sizes,
}
