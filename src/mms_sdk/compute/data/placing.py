"""Rows of tables that are placed by a column: the values, and the rule that rows which come later keep to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data.clean_table import own_columns
from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.split import rule_in
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.specs import Split
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array


def rule_of(asked: Split, base: OpenSnapshot | None) -> Split:
    """The rule that new rows are placed by: that of a dataset whose rows are placed by a column, if it is one.

    Args:
        asked: The rule that was asked for; the usual ones count as none.
        base: What the rows are added to.

    Raises:
        DataError: Rows that are there were placed by another rule than by that column.
    """
    if base is None:
        return asked
    held = rule_in(base.record.split_rule)
    if held.by_column and asked in (held, Split(), Split(by="content")):
        return held
    if held.by_column or asked.by_column:
        raise DataError(
            f"rows placed by a column keep to the rule that their dataset began with; {base.ref} began with "
            f"{base.record.split_rule}, and {asked!r} was asked for; leave split= out, or ingest everything into a new "
            f"dataset"
        )
    return asked


def column_to_place_by(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column of a batch that rows are placed by.

    Raises:
        InvalidRequest: There is none, or it has no single value a row.
    """
    names = own_columns(batch.schema)
    if name not in names:
        raise InvalidRequest(f"rows are placed by one of the columns {names}; got {name!r}; name one of them")
    found = batch.column(name)
    if pa.types.is_nested(found.type) or isinstance(found, pa.ExtensionArray):
        raise InvalidRequest(
            f"rows are placed by a column with one value a row; {name!r} holds {found.type}; name another column"
        )
    return found


def group_digests(column: Column, values: pa.ChunkedArray) -> Array:
    """A digest of each row's group, uint8, shape (rows, 16); rows without a value are one group.

    Values are taken as the dataset holds them, so that a group is the same whatever file it comes in.
    """
    held = values.combine_chunks().cast(tabular.type_of(column))
    found: Array = tabular.digests(pa.RecordBatch.from_arrays([held], names=["group"]), ["group"])
    return found


def times_of(column: Column, values: pa.ChunkedArray) -> Array:
    """What rows are ordered by, int64 or float64, shape (rows,): of times, what they count in the column's unit.

    Raises:
        InvalidRequest: The column holds no numbers or times.
        DataError: A row has no value.
    """
    if column.kind not in ("number", "timestamp"):
        raise InvalidRequest(
            f"by time rows are placed by a column of times or numbers; {column.name!r} is of kind {column.kind}; use "
            f"by='group', or mms.convert({column.name!r}, 'timestamp')"
        )
    found: Any = tabular.values_of(column, values.combine_chunks())
    plain = np.ma.getdata(found)
    gone = np.ma.getmaskarray(found) | (np.isnan(plain) if plain.dtype.kind == "f" else False)
    if missing := int(np.count_nonzero(gone)):
        raise DataError(
            f"by time every row has its place; {missing:,} of {len(plain):,} rows have no {column.name!r}; leave them "
            f"out with mms.drop_missing({column.name!r})"
        )
    return plain.astype(np.float64 if plain.dtype.kind == "f" else np.int64)
