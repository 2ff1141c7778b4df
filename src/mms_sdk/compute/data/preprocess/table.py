"""Preprocessing steps for rows of tables; `mms.table`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from mms_sdk.compute.data.kinds.rows import Cells
from mms_sdk.compute.data.preprocess.pipeline import register
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.types import Array


@register
@dataclass(frozen=True)
class Encode:
    """Rows of a table as vectors: numbers and times standardised, then the codes of categories.

    Numbers have mean 0 and standard deviation 1 over the training rows; a time counts in seconds. The code of a
    category is 1 for the first of its values in the training rows, and so on; 0 is for what is missing or unknown.
    Codes are exact as float32.

    Attributes:
        missing: A number that is missing becomes the `median` of the training rows, or stays missing as `nan`, for
            models that learn a value for it.
        numbers: Names of the columns that are numbers, in order; as all that follows found in the training rows.
        mean: Of each of them.
        std: Likewise; 1 for one that never changes.
        median: Likewise.
        names: Names of the columns that are categories, in order.
        values: Of each its values.
    """

    name: ClassVar[str] = "table.encode"
    dtype: ClassVar[str] = "float32"
    missing: Literal["median", "nan"] = "median"
    numbers: tuple[str, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    median: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.missing not in ("median", "nan"):
            raise InvalidRequest(f"a missing number becomes the 'median' or 'nan'; got missing={self.missing!r}")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what a row holds, in order."""
        return (*(self.numbers or ()), *self.names)

    @property
    def categories(self) -> tuple[int, ...]:
        """How many codes each category has, with 0."""
        return tuple(len(values) + 1 for values in self.values)

    def fit(self, batches: Iterable[Mapping[str, Cells]]) -> Encode:
        """With means, deviations, medians and values of the training rows."""
        if self.numbers is not None:
            return self
        parts = list(batches)
        cells = {name: [part[name] for part in parts] for name in parts[0]}
        numbers = tuple(name for name, found in cells.items() if found[0].kind == "number")
        names = tuple(name for name in cells if name not in numbers)
        told = [_moments(name, np.concatenate([each.values for each in cells[name]])) for name in numbers]
        mean, std, median = zip(*told, strict=True) if told else ((), (), ())
        values = tuple(tuple(_seen(cells[name])) for name in names)
        return replace(self, numbers=numbers, mean=mean, std=std, median=median, names=names, values=values)

    def shape(self, _shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """(features,), once it is fitted."""
        return None if self.numbers is None else (len(self.features),)

    def on_row(self, row: Mapping[str, Cells]) -> Array:
        """float32, shape (features,)."""
        vector: Array = self.on_rows(row)[0]
        return vector

    def on_rows(self, rows: Mapping[str, Cells]) -> Array:
        """float32, shape (rows, features)."""
        if self.numbers is None:
            raise InvalidRequest("Encode() knows its columns once it is fitted; call fit() first")
        out = np.empty((len(next(iter(rows.values())).values), len(self.features)), np.float32)
        for place, name in enumerate(self.numbers):
            given = rows[name].values
            if np.isinf(given).any():
                raise InvalidInput(f"a number is finite or missing; column {name!r} has {given[np.isinf(given)][0]:g}")
            if self.missing == "median":
                given = np.where(np.isnan(given), self.median[place], given)
            out[:, place] = (given - self.mean[place]) / self.std[place]
        for place, (name, values) in enumerate(zip(self.names, self.values, strict=True), len(self.numbers)):
            codes = {value: code for code, value in enumerate(values, 1)}
            cells = rows[name]
            # The last is for the code -1.
            own = np.array([*(codes.get(label, 0) for label in cells.labels), 0], np.float32)
            out[:, place] = own[cells.values]
        return out


def _moments(name: str, values: Array) -> tuple[float, float, float]:
    there = values[~np.isnan(values)]
    if not there.size:
        return 0.0, 1.0, 0.0
    if np.isinf(there).any():
        raise InvalidInput(
            f"a number is finite or missing; column {name!r} has {np.isinf(there).sum()} rows of infinity; drop them "
            f"with clean=[mms.drop_out_of_range(…)]"
        )
    std = float(there.std())
    least = 1e-12 * float(np.abs(there).max())  # what rounding alone leaves of a column that never changes
    return float(there.mean()), std if std > least else 1.0, float(np.median(there))


def _seen(parts: Iterable[Cells]) -> Iterable[str]:
    parts = list(parts)
    labels = parts[0].labels
    codes = np.unique(np.concatenate([part.values for part in parts]))
    return [labels[code] for code in codes.tolist() if code >= 0]


__all__ = ["Encode"]
