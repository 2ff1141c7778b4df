"""Small datasets of numbers, texts and codes, written without an ingest, and read back as plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.schema.dataset import Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

NUMBER = Column(name="n", kind="number", dtype="int64", nullable=True)
FLOAT = Column(name="f", kind="number", dtype="float64")
TEXT = Column(name="t", kind="text", dtype="uint8", shape=None, nullable=True)
CODE = Column(name="c", kind="category", dtype="int32", labels=("x", "y", "z"), nullable=True)


def named(column: Column, name: str, **changes: Any) -> Column:
    return column.model_copy(update={"name": name, **changes})


def made(folder: Path, name: str, columns: Sequence[Column], *parts: Mapping[str, Sequence[Any]]) -> Dataset:
    """A dataset with one part for each mapping of plain values by column; None is what is missing."""
    dataset = Dataset.create(LocalStore(folder / name), name)
    for part in parts:
        append(dataset, columns, part)
    return dataset


def append(dataset: Dataset, columns: Sequence[Column], part: Mapping[str, Sequence[Any]]) -> None:
    with dataset.writer(columns) as writer:
        writer.write({column.name: stored(column, part[column.name]) for column in columns})
        sealed = writer.close()
    base = dataset.record() if dataset.snapshots() else None
    dataset.commit(Addition(parts=[sealed], columns=columns), base=base, rebase=False)


def stored(column: Column, values: Sequence[Any]) -> Any:
    if column.shape is None:
        return [value.encode() if isinstance(value, str) else value for value in values]
    if column.varies or isinstance(values, np.ndarray):
        return values
    codes = [column.labels.index(value) if isinstance(value, str) and column.labels else value for value in values]
    missing = [value is None for value in codes]
    array = np.array([0 if value is None else value for value in codes], column.dtype).reshape(
        len(codes), *column.fixed
    )
    return np.ma.MaskedArray(array, missing) if column.nullable and not column.fixed else array


def plain(of: OpenSnapshot, name: str) -> list[Any]:
    """The values of a column as plain Python: texts, names of codes, None for what is missing."""
    column = of.column(name)
    values = of.gather(name, np.arange(of.rows))
    if column.shape is None:
        return [None if value is None else value.decode() for value in values]
    told = values.tolist()
    return [None if value is None else column.labels[value] for value in told] if column.labels else told
