"""Datasets of Ray Data become datasets of MMS: Ray's tasks write the rows, and what they sealed is committed here.

Imported by whoever has a dataset of Ray's, and by Ray's workers: it needs Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult
from ray.exceptions import RayError

from mms_sdk.compute.data.declared import values_as
from mms_sdk.errors import InvalidRequest, MmsError
from mms_sdk.schema.dataset import Column, Snapshot
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.writing import Writing, begin


def write_columns(dataset: Dataset, given: Any, columns: Sequence[Column] | None, *, message: str = "") -> Snapshot:
    """Commits the rows of a dataset of Ray Data, whose columns have the names of those that are written.

    Args:
        dataset: Where to.
        given: Ray's dataset.
        columns: What is written; None for the columns of the newest snapshot.
        message: Kept with the snapshot.

    Raises:
        InvalidRequest: It is no dataset of Ray's; a column is not in it; or there is no row.
        DataError: A value does not fit its column.
    """
    if not isinstance(given, ray.data.Dataset):
        raise InvalidRequest(
            f"write_ray takes a ray.data.Dataset; got {type(given).__name__}; make one with ray.data.from_items()"
        )
    sink = PartsSink(begin(dataset, columns))
    try:
        given.write_datasink(sink)
    except RayError as error:
        if (ours := _ours(error)) is not None:
            raise ours from error
        raise
    return sink.writing.commit(message=message or "written by Ray", keys=sink.keys)


class PartsSink(Datasink[str]):
    """Seals a part for each attempt at a task, under a key of the attempt's own; Ray says which of them count.

    A worker may die between sealing and telling so. The next attempt then seals another part, and the first is garbage.

    Args:
        writing: Where to.

    Attributes:
        keys: Those of the attempts that Ray took, once all is written.
    """

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        self.keys: list[str] = []

    def write(self, blocks: Iterable[Block], ctx: Any) -> str:
        """Writes what one task was given; runs in a worker."""
        key = f"{ctx.task_idx:08}-{os.urandom(8).hex()}"
        with self.writing.writer(key) as writer:
            for block in blocks:
                if (rows := BlockAccessor.for_block(block)).num_rows():
                    writer.write(_batch(self.writing.columns, rows))
        return key

    def on_write_complete(self, write_result: WriteResult[str]) -> None:
        """Notes which attempts count."""
        self.keys = list(write_result.write_returns)


def _batch(columns: Sequence[Column], rows: BlockAccessor) -> Mapping[str, Any]:
    table = rows.to_arrow()
    there = table.column_names
    if missing := sorted({column.name for column in columns} - set(there)):
        raise InvalidRequest(
            f"a dataset of Ray's has the columns that are written; {missing} are not among its {there}; rename its "
            f"columns, or give columns="
        )
    return {column.name: _values(column, table.column(column.name), rows) for column in columns}


def _values(column: Column, found: pa.ChunkedArray, rows: BlockAccessor) -> Any:
    if isinstance(found.type, pa.ExtensionType):  # Ray's tensors: NumPy arrays as they were, of one shape or of several
        tensors = np.asarray(rows.to_numpy(column.name))
        return list(tensors) if column.varies else tensors
    whole = found.combine_chunks()
    return values_as(column, whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks))


def _ours(error: BaseException | None) -> MmsError | None:
    # What a task raised lies within what Ray makes of it.
    while error is not None:
        if isinstance(error, MmsError) and not isinstance(error, RayError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
