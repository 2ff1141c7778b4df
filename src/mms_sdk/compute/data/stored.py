"""Rows that are stored already, read in order and a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data.kinds import image, tabular
from mms_sdk.compute.data.near_duplicates import picture_hash
from mms_sdk.errors import InvalidInput
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.edits import batches
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Rows


def arrow_batches(of: OpenSnapshot, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a snapshot, in row order."""
    columns = [of.column(name) for name in names]
    for start, end in batches(columns, of.rows):
        yield arrow_batch(of, names, np.arange(start, end))


def arrow_batch(of: OpenSnapshot, names: Sequence[str], rows: Rows) -> pa.RecordBatch:
    """Some rows of some columns."""
    arrays = [tabular.array_of(of.column(name), of.take(name, rows)) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


def picture_hashes(of: OpenSnapshot) -> Iterator[tuple[list[str], list[int | None]]]:
    """What the pictures of a dataset look like, some at a time: their sources, and for each its hash or None."""
    column = of.column("image")
    for start, end in batches([column], of.rows):
        rows = np.arange(start, end)
        sources = [source.decode() for source in of.gather("source", rows)]
        yield sources, [looks(column, picture) for picture in of.gather("image", rows)]


def looks(column: Column, picture: Any) -> int | None:
    """A stored picture's perceptual hash; None for one that does not decode, or has no structure."""
    if column.varies:
        try:
            return picture_hash(image.decode(picture, color="gray"))
        except InvalidInput:
            return None
    pixels = picture if picture.shape[2] == 1 else image.to_array(image.of_array(picture), color="gray")
    return picture_hash(pixels)
