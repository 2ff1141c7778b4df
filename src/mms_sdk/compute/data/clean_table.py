"""Cleaning of tables: each step goes over batches of rows, drops some with the reason, or changes values.

A step that has to know all rows before it can judge one, such as a mean to fill in, first goes over all that the steps
before it leave. What is kept meanwhile is a digest a row, or 2 KiB for each text among which near ones are looked for.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data import expressions
from mms_sdk.compute.data.bring import EXAMPLES
from mms_sdk.compute.data.convert import converter, is_text
from mms_sdk.compute.data.keys import DIGEST, SortedKeys, as_keys, keys_of, same
from mms_sdk.compute.data.near_duplicates import NamedLeaders, NearTexts, signature
from mms_sdk.compute.data.sources.rows import ROW, SOURCE, SPLIT
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.cleaning import (
    CleaningStepReport,
    Clip,
    Convert,
    DropConstant,
    DropDuplicates,
    DropMissing,
    DropNearDuplicates,
    DropOutOfRange,
    Impute,
    KeepWhere,
    PictureStep,
    Reject,
    TableStep,
)
from mms_sdk.storage import files
from mms_sdk.types import Array, Rows

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

    step: PictureStep | TableStep
    begin: Callable[[], Applied]
    told: str = ""


class Held(Protocol):
    """Rows that a dataset holds already, as duplicates of them are looked for."""

    def types(self, by: Sequence[str]) -> Mapping[str, pa.DataType]:
        """What the values of columns are stored as."""

    def keys(self, by: Sequence[str] | None) -> Array:
        """Keys of all rows, by some columns; None by all values, as they came."""

    def present(self, batch: pa.RecordBatch) -> Array:
        """Which rows of a batch the dataset holds, from the same place."""


class Nothing:
    """What a dataset holds that has no rows. See `Held`."""

    def types(self, by: Sequence[str]) -> Mapping[str, pa.DataType]:
        """Of no column."""
        return {}

    def keys(self, by: Sequence[str] | None) -> Array:
        """None."""
        return np.empty(0, DIGEST)

    def present(self, batch: pa.RecordBatch) -> Array:
        """None of them."""
        return np.zeros(len(batch), bool)


Fit = Callable[[Any, Callable[[], Batches]], Fitted]


def fit(
    steps: Sequence[Any],
    read: Callable[[], Batches],
    *,
    held: Held | None = None,
    fixed: Collection[str] = (),
    others: Mapping[type, Fit] | None = None,
) -> list[Fitted]:
    """Prepares steps, in order.

    Args:
        steps: What was asked for.
        read: Reads all rows.
        held: What the dataset holds that they are to be brought into.
        fixed: Columns whose values stay: those that rows are counted and split by.
        others: How steps are prepared that are not of tables.

    Raises:
        InvalidRequest: A step names a column that is not there, or of a type that it has no use for.
    """
    fits: dict[type, Fit] = {
        **_FIT,
        DropDuplicates: partial(_drop_duplicates, held=held or Nothing()),
        DropConstant: partial(drop_constant, fixed=fixed),
        **(others or {}),
    }
    fitted: list[Fitted] = []
    for step in steps:
        if isinstance(step, Clip | Impute | Convert) and step.column in fixed:
            raise InvalidRequest(
                f"values that rows are counted and split by stay as they are; {step.step} is asked for of "
                f"{step.column!r}; change them in the source, or drop rows without one"
            )
        with _told_of(step):
            fitted.append(fits[type(step)](step, lambda: (batch for batch, _ in through(fitted, read()))))
    return fitted


@contextmanager
def _told_of(step: Any) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(
            f"values suit the step that is asked for; {step.step} does not go with these: "
            f"{str(error).splitlines()[0]}; convert them first with mms.convert()"
        ) from error


def through(steps: Sequence[Fitted], batches: Batches) -> Iterator[tuple[pa.RecordBatch, list[tuple[int, Reject]]]]:
    """Batches as the steps leave them, and what each step, by its number, dropped."""
    applied = [step.begin() for step in steps]
    for batch in batches:
        rejects: list[tuple[int, Reject]] = []
        for number, apply in enumerate(applied):
            with _told_of(steps[number].step):
                batch, dropped = apply(batch)
            rejects += [(number, reject) for reject in dropped]
        yield batch, rejects


class Reported:
    """Takes batches through steps, writes what they drop to `rejects.jsonl` as it is found, and counts it.

    Args:
        steps: Prepared.
        folder: Where to.
        before: What was left out earlier.
    """

    def __init__(self, steps: Sequence[Fitted], folder: Path, *, before: Sequence[Reject] = ()) -> None:
        self._steps = steps
        self._path = folder / "rejects.jsonl"
        self._before = before
        self._counts = [0] * len(steps)
        self._examples: list[list[Reject]] = [[] for _ in steps]

    def through(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        """What the steps leave."""
        with open(self._path, "wb", opener=files.private) as out:
            out.writelines(_line(reject) for reject in self._before)
            for batch, rejects in through(self._steps, batches):
                for number, reject in rejects:
                    self._counts[number] += 1
                    self._examples[number] += [reject] if len(self._examples[number]) < EXAMPLES else []
                    out.write(_line(reject))
                yield batch

    @property
    def reports(self) -> list[CleaningStepReport]:
        """What each step did."""
        return [
            CleaningStepReport(step=step.step.step, dropped=count, examples=tuple(first), note=step.told)
            for step, count, first in zip(self._steps, self._counts, self._examples, strict=True)
        ]


def _line(reject: Reject) -> bytes:
    return orjson.dumps(reject.model_dump()) + b"\n"


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
        return without(
            batch, drop, lambda at: f"no value in {', '.join(repr(name) for name in names if missing[name][at])}"
        )

    return Fitted(step=step, begin=lambda: apply)


def _drop_duplicates(step: DropDuplicates, read: Callable[[], Batches], *, held: Held) -> Fitted:
    for name in step.by or ():
        _known(_schema(read), name)
    types = held.types(step.by or ())
    places, found, present = _Places(), [np.empty(0, DIGEST)], [np.empty(0, bool)]
    for batch in read():
        places.add(batch)
        present.append(held.present(batch))
        found.append(_row_keys(batch) if step.by is None else keys_of(batch, step.by, types=types))
    stays = _which_stay(np.concatenate(found), np.concatenate(present), held.keys(step.by), step)
    of = "the same values" if step.by is None else f"the same {' and '.join(step.by)}"

    def begin() -> Applied:
        at = 0

        def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            nonlocal at
            first, at = at, at + len(batch)
            chosen = stays[first:at]
            return without(
                batch,
                chosen != np.arange(first, at),
                lambda row: f"{of} as {places.name(chosen[row])}" if chosen[row] >= 0 else f"the dataset has {of}",
            )

        return apply

    return Fitted(step=step, begin=begin)


def _which_stay(keys: Array, present: Array, held: Array, step: DropDuplicates) -> Rows:
    # For each row the one that stays; -1 where the dataset has it. Rows that it has already are passed over later on,
    # so the first of those with a key stays here, whatever is asked for.
    there = SortedKeys(held).find(keys) >= 0
    stays = np.full(len(keys), -1, np.int64)
    for rows, keep in ((np.flatnonzero(there & present), "first"), (np.flatnonzero(~there), step.keep)):
        stays[rows] = rows[same(keys[rows], "last" if keep == "last" else "first")]
    return stays


def _row_keys(batch: pa.RecordBatch) -> Array:
    return as_keys(np.frombuffer(b"".join(batch.column(ID).to_pylist()), np.uint8).reshape(-1, 16))


class _Places:
    """What rows are called: twelve bytes each, and the names of their files."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._names: list[str] = []
        self._codes: list[Array] = []
        self._rows: list[Array] = []
        self._ends = [0]

    def add(self, batch: pa.RecordBatch) -> None:
        encoded = batch.column(SOURCE).cast(pa.string()).dictionary_encode()
        codes = [self._code(text) for text in encoded.dictionary.to_pylist()]
        self._codes.append(np.array(codes, np.int32)[np.asarray(encoded.indices)])
        self._rows.append(np.asarray(batch.column(ROW)))
        self._ends.append(self._ends[-1] + len(batch))

    def name(self, number: int) -> str:
        batch = bisect_right(self._ends, number) - 1
        place = number - self._ends[batch]
        return f"{self._names[self._codes[batch][place]]}, row {self._rows[batch][place]}"

    def _code(self, source: str) -> int:
        code = self._sources.setdefault(source, len(self._names))
        if code == len(self._names):
            self._names.append(source)
        return code


def drop_near_texts(step: DropNearDuplicates, read: Callable[[], Batches]) -> Fitted:
    """Prepares the step for a column of text."""
    if step.column is None or step.similarity is None:
        raise InvalidRequest("rows of a table are near by a column of text; got none; name one, and similarity=")
    column, similarity = step.column, step.similarity
    kind = _known(_schema(read), column)
    if not (is_text(kind) or pa.types.is_null(kind)):
        raise InvalidRequest(f"near duplicates are found among texts; column {column!r} holds {kind}; name another")

    def begin() -> Applied:
        near = NamedLeaders(NearTexts(similarity), "uint32")

        def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
            texts = batch.column(column).to_pylist()
            firsts = near.firsts(row_names(batch), [None if text is None else signature(text) for text in texts])
            drop = np.array([first is not None for first in firsts], bool)
            return without(batch, drop, lambda at: f"{column} reads nearly like {firsts[at]}")

        return apply

    return Fitted(step=step, begin=begin)


def _drop_out_of_range(step: DropOutOfRange, read: Callable[[], Batches]) -> Fitted:
    _number(_schema(read), step.column)

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        drop = np.logical_or(*_beyond(values, step))
        return without(batch, drop, lambda at: f"{step.column} is {values[at].as_py():g}, {_range(step)}")

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
        return without(batch, drop, lambda _: f"not {step.expression}")

    return Fitted(step=step, begin=lambda: apply)


def drop_constant(
    step: DropConstant, read: Callable[[], Batches], *, fixed: Collection[str], beside: bool = False
) -> Fitted:
    """Prepares the step.

    Args:
        step: What was asked for.
        read: Reads all rows.
        fixed: Columns that stay.
        beside: Whether there are other columns, which are not looked at.
    """
    first: dict[str, Any] = {}
    varying: set[str] = set()
    for batch in read():
        for name in own_columns(batch.schema):
            if name not in varying and name not in fixed and len(batch):
                values = batch.column(name)
                seen = first.setdefault(name, values[0])
                if any(value != seen for value in _distinct(values)):
                    varying.add(name)
    constant = [name for name in first if name not in varying]
    if constant and not beside and len(constant) == len(own_columns(_schema(read))):
        raise DataError(f"a dataset has at least one column; all are constant: {constant}; leave drop_constant() out")

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        return batch.drop_columns(constant) if constant else batch, []

    return Fitted(step=step, begin=lambda: apply, told=f"columns dropped: {', '.join(constant)}" if constant else "")


def _clip(step: Clip, read: Callable[[], Batches]) -> Fitted:
    kind = _number(_schema(read), step.column)
    ends = [None if bound is None else _end(step, bound, kind) for bound in (step.min, step.max)]

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        for end, beyond in zip(ends, _beyond(values, step), strict=True):
            if end is not None:
                values = pc.if_else(pa.array(beyond), end, values)
        return _with(batch, step.column, values), []

    return Fitted(step=step, begin=lambda: apply)


def _end(step: Clip, bound: float, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(bound).cast(kind)
    except pa.ArrowException as error:
        raise InvalidRequest(
            f"numbers are clipped to numbers of their type; column {step.column!r} holds {kind}; got {bound}; give "
            f"another, or convert the column first"
        ) from error


def _beyond(values: pa.Array, step: Clip | DropOutOfRange) -> tuple[Array, Array]:
    # Below the range, and above it. Whole numbers are compared as such, for those of 64 bits are not all floats.
    given = np.asarray(values.fill_null(0) if values.null_count else values)
    low, high = step.min, step.max
    if given.dtype.kind == "f" or not all(math.isfinite(bound) for bound in (low, high) if bound is not None):
        given = given.astype(np.float64)
    else:
        low, high = (None if low is None else math.ceil(low)), (None if high is None else math.floor(high))
    there = np.asarray(values.is_valid())
    none = np.zeros(len(values), bool)
    return none if low is None else there & (given < low), none if high is None else there & (given > high)


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


def _convert(step: Convert, read: Callable[[], Batches]) -> Fitted:
    convert = converter(step, _known(_schema(read), step.column))
    to = f"{step.to} of {step.format!r}" if step.format else step.to

    def converted(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Array]:
        values = batch.column(step.column)
        found = convert(values)
        lost = pc.and_not(pc.is_null(found), pc.is_null(values, nan_is_null=True))
        return _with(batch, step.column, found), np.asarray(lost)

    def apply(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Reject]]:
        values = batch.column(step.column)
        changed, lost = converted(batch)
        if step.errors == "missing":
            return changed, []
        return without(changed, lost, lambda at: f"{step.column} is {values[at].as_py()!r}, which is no {to}")

    count = sum(np.count_nonzero(converted(batch)[1]) for batch in read()) if step.errors == "missing" else 0
    return Fitted(step=step, begin=lambda: apply, told=f"{step.column}: {count:,} × no {to}, missing" if count else "")


_FIT: dict[type, Fit] = {
    DropMissing: _drop_missing,
    DropNearDuplicates: drop_near_texts,
    DropOutOfRange: _drop_out_of_range,
    KeepWhere: _keep_where,
    Clip: _clip,
    Impute: _impute,
    Convert: _convert,
}


def row_names(batch: pa.RecordBatch) -> list[str]:
    """What rows are called in messages."""
    sources, rows = batch.column(SOURCE).to_pylist(), batch.column(ROW).to_pylist()
    numbered = pa.types.is_integer(batch.schema.field(ROW).type)  # records of a stream have names
    return [
        f"{source}, row {row}" if numbered else f"{source}, {row}" for source, row in zip(sources, rows, strict=True)
    ]


def without(batch: pa.RecordBatch, drop: Array, reason: Callable[[int], str]) -> tuple[pa.RecordBatch, list[Reject]]:
    """A batch without some rows, and those with the reason for each, told by its place in the batch."""
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
