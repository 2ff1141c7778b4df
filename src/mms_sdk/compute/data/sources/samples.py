"""Samples: what an ingest of pictures, recordings or clips asks of wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mms_sdk.schema.dataset import Column, Reject
from mms_sdk.schema.sources import AsPictures, AsRecordings


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, as it was read.

    Attributes:
        data: The bytes of a picture, a recording or a clip.
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
        taken: What its samples are, pictures or recordings, and how they are taken.
        entries: The samples, in order.
        rejects: What was left out, and why.
        labelled: Whether they have classes.
        labels: Names of the classes in the order of their codes, as far as the source says.
        columns: What samples have beside.
        notes: What is to be said about all of it.
    """

    taken: AsPictures | AsRecordings
    entries: Sequence[Entry]
    rejects: Sequence[Reject]
    labelled: bool = True
    labels: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()
