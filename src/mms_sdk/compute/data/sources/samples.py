"""Samples: what an ingest of pictures, recordings or clips asks of wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mms_sdk.errors import InvalidInput
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import AsClips, AsPictures, AsRecordings, AsTexts

OWN = ("source", "id", "split")
"""Columns that an ingest of samples brings whatever they are, beside those of `Medium` and `label`."""

MAX_BYTES = 2**30
"""Of a sample: it is in memory as a whole, one for each core."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, as it was read.

    Attributes:
        data: The bytes of a picture, a recording, a clip or a text.
        label: Its class; empty where the source has none.
        values: What it has beside, by column.
    """

    data: bytes
    label: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample of a source, before it is read: small, for all of them are in memory.

    Attributes:
        source: Its name within the source, which the dataset keeps; no other has it.
        label: The class, if it is known before reading; empty where the source has no classes.
        split: Its split, where the source says; empty where a rule places it.
    """

    source: str
    label: str = ""
    split: str = ""

    def read(self) -> Sample:
        """Reads it; called from several threads, and twice.

        Raises:
            InvalidInput: It is damaged.
            OSError: It cannot be read.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A source of samples that was looked through.

    Attributes:
        taken: What its samples are, pictures, recordings, clips or texts, and how they are taken.
        entries: The samples, in order.
        rejects: What was left out, and why.
        labelled: Whether they have classes.
        labels: Names of the classes in the order of their codes, as far as the source says.
        columns: What samples have beside.
        notes: What is to be said about all of it.
    """

    taken: AsPictures | AsRecordings | AsClips | AsTexts
    entries: Sequence[Entry]
    rejects: Sequence[Reject]
    labelled: bool = True
    labels: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()


def refuse_large(size: int) -> None:
    """Refuses a sample of so many bytes before it is read.

    Raises:
        InvalidInput: They are too many.
    """
    if size > MAX_BYTES:
        raise InvalidInput(f"a sample has at most {MAX_BYTES:,} bytes; this one has {size:,}; cut it into several")


def hint(rejects: Sequence[Reject]) -> str:
    """What to say of rejects, or of where to look, where nothing is left to ingest."""
    if not rejects:
        return "; check the path"
    return f"; {len(rejects):,} left out, e.g. {rejects[0].source}: {rejects[0].reason}"
