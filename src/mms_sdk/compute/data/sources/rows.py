"""Rows with named columns: what an ingest of a table asks of wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import AsTable

SOURCE, ROW = "#source", "#row"
"""Columns of every batch beside the source's own: the file it is from, and its row there, from 1."""
SPLIT = "#split"
"""Column of every batch of a source that says the split of each row, as text; without it a rule places them."""

BATCH_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Table:
    """A source of rows that was looked through.

    Attributes:
        taken: Which columns are taken, and as what.
        schema: Names and types of its columns.
        rows: How many can be read.
        rejects: Rows and files that cannot, and why.
        read: Reads all of it: batches with the schema's columns, `SOURCE` and `ROW`; `SPLIT` where splits are given.
        labels: For columns of classes, by title, their names in the order of their codes, as far as the source says.
        notes: What is to be said about all of it.
    """

    taken: AsTable
    schema: pa.Schema
    rows: int
    rejects: Sequence[Reject]
    read: Callable[[], Iterator[pa.RecordBatch]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
