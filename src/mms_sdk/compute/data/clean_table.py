"""Cleaning of tables: each step goes over batches of rows, drops some with the reason, or changes values.

A step that has to know all rows before it can judge one, such as a mean to fill in, first goes over all that the steps
before it leave. What is kept meanwhile is a digest a row, or 2 KiB for each text among which near ones are looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data import expressions
from mms_sdk.compute.data.near_duplicates import NamedLeaders, NearTexts, signature
from mms_sdk.compute.data.sources.rows import ROW, SOURCE, SPLIT
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import (
    Clip,
    DropConstant,
    DropDuplicates,
    DropMissing,
    DropNearDuplicates,
    DropOutOfRange,
    Impute,
    KeepWhere,
    Reject,
    TableStep,
)

Batches = Iterable[pa.RecordBatch]
Applied = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, list[Reject]]]
"""From a batch to what stays of it, and what does not."""
ID = "#id"
"""Column of every batch: a digest of the row as it came from its source."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A step that knows all it has to know.

    Attributes:
        step: What was asked for.
        begin: Starts going over all rows: what it returns is called with one batch after the other.
        told: What it found out, for the report.
    """

    step: TableStep
    begin: Callable[[], Applied]
    told: str = ""


def fit(steps: Sequence[TableStep], read: Callable[[], Batches]) -> list[Fitted]:
    """Prepares steps, in order.

    Args:
        steps: What was asked for.
        read: Reads all rows.

    Raises:
        InvalidRequest: A step names a column that is not there, or of a type that it has no use for.
    """
    fitted: list[Fitted] = []
    for step in steps:
        fitted.append(_FIT[type(step)](step, lambda: (batch for batch, _ in through(fitted, read()))))
    return fitted


def through(steps: Sequence[Fitted], batches: Batches) -> Iterator[tuple[pa.RecordBatch, list[tuple[int, Reject]]]]:
    """Batches as the steps leave them, and what each step, by its number, dropped."""
    applied = [step.begin() for step in steps]
    for batch in batches:
        rejects: list[tuple[int, Reject]] = []
        for number, apply in enumerate(applied):
            batch, dropped = apply(batch)
            rejects += [(number, reject) for reject in dropped]
        yield batch, rejects


def own_columns(schema: pa.Schema) -> list[str]:
    """Columns of the source."""
    return [name for name in schema.names if name not in (SOURCE, ROW, SPLIT, ID)]


def _drop_missing(step: DropMissing, read: Callable[[], Batches]) -> Fitted:
    schema = _schema(read)
    names = list(step.columns or own_columns(schema))
    for name in names:
        _known(schema, name)

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        missing = {name: np.asarray(pc.is_null(batch.column(name), nan_is_null=True)) for name in names}
        drop = np.logical_or.reduce(list(missing.values()))
        return _without(
            batch, drop, lambda at: f"no value in {', '.join(repr(name) for name in names if missing[name][at])}"
        )

    return Fitted(step=step, begin=lambda: apply)


def _drop_duplicates(step: DropDuplicates, read: Callable[[], Batches]) -> Fitted:
    def begin() -> Applied:
        first: dict[bytes, str] = {}

        def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            sums = batch.column(ID).to_pylist()
            same = [first.setdefault(sum, place) for sum, place in zip(sums, row_names(batch), strict=True)]
            drop = np.array([place != own for place, own in zip(same, row_names(batch), strict=True)], bool)
            return _without(batch, drop, lambda at: f"the same values as {same[at]}")

        return apply

    return Fitted(step=step, begin=begin)


def _drop_near_duplicates(step: DropNearDuplicates, read: Callable[[], Batches]) -> Fitted:
    if step.column is None or step.similarity is None:
        raise InvalidRequest("rows of a table are near by a column of text; got none; name one, and similarity=")
    column, similarity = step.column, step.similarity
    kind = _known(_schema(read), column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InvalidRequest(f"near duplicates are found among texts; column {column!r} holds {kind}; name another")

    def begin() -> Applied:
        near = NamedLeaders(NearTexts(similarity), "uint32")

        def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            texts = batch.column(column).to_pylist()
            firsts = near.firsts(row_names(batch), [None if text is None else signature(text) for text in texts])
            drop = np.array([first is not None for first in firsts], bool)
            return _without(batch, drop, lambda at: f"{column} reads nearly like {firsts[at]}")

        return apply

    return Fitted(step=step, begin=begin)


def _drop_out_of_range(step: DropOutOfRange, read: Callable[[], Batches]) -> Fitted:
    _number(_schema(read), step.column)

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        low = pc.less(values, step.min) if step.min is not None else pa.scalar(False)
        high = pc.greater(values, step.max) if step.max is not None else pa.scalar(False)
        out = pc.fill_null(pc.or_(low, high), False)
        drop = np.asarray(out) if isinstance(out, pa.Array) else np.zeros(len(batch), bool)
        return _without(batch, drop, lambda at: f"{step.column} is {values[at].as_py():g}, {_range(step)}")

    return Fitted(step=step, begin=lambda: apply)


def _keep_where(step: KeepWhere, read: Callable[[], Batches]) -> Fitted:
    none = next(iter(read())).slice(0, 0)
    condition = expressions.parse(step.expression, columns=own_columns(none.schema))
    try:
        pa.Table.from_batches([none]).filter(condition)
    except pa.ArrowException as error:
        told = str(error).splitlines()[0]
        raise InvalidRequest(f"a condition compares what can be compared; {step.expression!r}: {told}") from error

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        numbered = pa.Table.from_batches([batch]).append_column("#at", pa.array(range(len(batch)), pa.int64()))
        drop = np.ones(len(batch), bool)
        drop[np.asarray(numbered.filter(condition).column("#at"))] = False
        return _without(batch, drop, lambda _: f"not {step.expression}")

    return Fitted(step=step, begin=lambda: apply)


def _drop_constant(step: DropConstant, read: Callable[[], Batches]) -> Fitted:
    first: dict[str, Any] = {}
    varying: set[str] = set()
    for batch in read():
        for name in own_columns(batch.schema):
            if name not in varying and len(batch):
                values = batch.column(name)
                seen = first.setdefault(name, values[0])
                if any(value != seen for value in _distinct(values)):
                    varying.add(name)
    constant = [name for name in first if name not in varying]
    if len(constant) == len(first):
        raise DataError(f"a dataset has at least one column; all are constant: {constant}; leave drop_constant() out")

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        return batch.drop_columns(constant) if constant else batch, []

    return Fitted(step=step, begin=lambda: apply, told=f"columns dropped: {', '.join(constant)}" if constant else "")


def _clip(step: Clip, read: Callable[[], Batches]) -> Fitted:
    kind = _number(_schema(read), step.column)

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        if step.min is not None:
            values = pc.if_else(pc.less(values, step.min), pa.scalar(step.min).cast(kind), values)
        if step.max is not None:
            values = pc.if_else(pc.greater(values, step.max), pa.scalar(step.max).cast(kind), values)
        return _with(batch, step.column, values), []

    for bound in (step.min, step.max):
        if bound is not None and pa.types.is_integer(kind) and bound != int(bound):
            raise InvalidRequest(f"whole numbers are clipped to whole numbers; got {bound} for column {step.column!r}")
    return Fitted(step=step, begin=lambda: apply)


def _impute(step: Impute, read: Callable[[], Batches]) -> Fitted:
    schema = _schema(read)
    kind = _known(schema, step.column)
    value = _imputed(step, kind, read)
    try:
        scalar = pa.scalar(value).cast(kind)
    except pa.ArrowException as error:
        raise InvalidRequest(
            f"column {step.column!r} holds {kind}; {value!r} is none, so it cannot be filled in; give another value="
        ) from error

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        missing = pc.is_null(values, nan_is_null=True)
        return _with(batch, step.column, pc.if_else(missing, scalar, values)), []

    return Fitted(step=step, begin=lambda: apply, told=f"{step.column}: {value!r} where there was none")


def _imputed(step: Impute, kind: pa.DataType, read: Callable[[], Batches]) -> Any:
    if step.by == "value":
        return step.value
    if step.by == "mean":
        if not pa.types.is_floating(kind):
            raise InvalidRequest(
                f"a mean is filled in among floats; column {step.column!r} holds {kind}; use by='most-frequent', or "
                f"by='value'"
            )
        total, count = 0.0, 0
        for batch in read():
            values = batch.column(step.column)
            there = values.filter(pc.invert(pc.is_null(values, nan_is_null=True)))
            total, count = total + (pc.sum(there).as_py() or 0.0), count + len(there)
        if count:
            return total / count
    else:
        counts: Counter[Any] = Counter()
        for batch in read():
            found = pc.value_counts(batch.column(step.column).drop_null())
            counts.update({each["values"].as_py(): each["counts"].as_py() for each in found})
        if counts:
            return min(counts, key=lambda value: (-counts[value], str(value)))
    raise DataError(f"what is missing is filled in from what is there; column {step.column!r} has no value at all")


_FIT: dict[type, Callable[..., Fitted]] = {
    DropMissing: _drop_missing,
    DropDuplicates: _drop_duplicates,
    DropNearDuplicates: _drop_near_duplicates,
    DropOutOfRange: _drop_out_of_range,
    KeepWhere: _keep_where,
    DropConstant: _drop_constant,
    Clip: _clip,
    Impute: _impute,
}


def row_names(batch: pa.RecordBatch) -> list[str]:
    """What rows are called in messages."""
    sources, rows = batch.column(SOURCE).to_pylist(), batch.column(ROW).to_pylist()
    numbered = pa.types.is_integer(batch.schema.field(ROW).type)  # records of a stream have names
    return [
        f"{source}, row {row}" if numbered else f"{source}, {row}" for source, row in zip(sources, rows, strict=True)
    ]


def _without(
    batch: pa.RecordBatch, drop: np.ndarray[Any, Any], reason: Callable[[int], str]
) -> tuple[pa.RecordBatch, list[Reject]]:
    at = np.flatnonzero(drop).tolist()
    if not at:
        return batch, []
    names = row_names(batch.take(pa.array(at)))
    rejects = [Reject(source=name, reason=reason(place)) for name, place in zip(names, at, strict=True)]
    return batch.filter(pa.array(~drop)), rejects


def _with(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, values)


def _distinct(values: pa.Array) -> pa.Array:
    return values if pa.types.is_nested(values.type) else values.unique()


def _schema(read: Callable[[], Batches]) -> pa.Schema:
    return next(iter(read())).schema


def _known(schema: pa.Schema, name: str) -> pa.DataType:
    if name not in own_columns(schema):
        raise InvalidRequest(f"a step is about a column that is there: {own_columns(schema)}; got {name!r}")
    return schema.field(name).type


def _number(schema: pa.Schema, name: str) -> pa.DataType:
    kind = _known(schema, name)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InvalidRequest(f"a range is one of numbers; column {name!r} holds {kind}; name another")
    return kind


def _range(step: DropOutOfRange) -> str:
    if step.min is None:
        return f"above {step.max:g}"
    return f"below {step.min:g}" if step.max is None else f"not within {step.min:g} to {step.max:g}"
