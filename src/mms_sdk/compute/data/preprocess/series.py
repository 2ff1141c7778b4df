"""Preprocessing steps for series; `mms.series`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mms_sdk.compute.data.preprocess.pipeline import Pipeline, register
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.types import Array

if TYPE_CHECKING:
    import jax


@register
@dataclass(frozen=True)
class Window:
    """So many items of each series, float32 of shape (length, channels); a series of single numbers has one channel.

    Attributes:
        length: Items.
        keep: Of a longer series the `last` items or the `first`; a shorter one has zeros at the other end.
    """

    name: ClassVar[str] = "series.window"
    dtype: ClassVar[str] = "float32"
    length: int
    keep: Literal["last", "first"] = "last"

    def __post_init__(self) -> None:
        if self.length < 1 or self.keep not in ("last", "first"):
            raise InvalidRequest(
                f"a window holds at least one item, the 'last' or the 'first'; got length={self.length}, "
                f"keep={self.keep!r}"
            )

    def shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """(length, channels)."""
        return None if shape is None else (self.length, int(np.prod(shape[1:])))

    def on_row(self, row: Array) -> Array:
        """float32, shape (length, channels).

        Raises:
            InvalidInput: Something in it is not finite.
        """
        values = row.reshape(len(row), int(np.prod(row.shape[1:]))).astype(np.float32)
        if not np.isfinite(values).all():
            raise InvalidInput("a series holds finite numbers; this one has NaN or Infinity; fill or drop them first")
        out = np.zeros((self.length, values.shape[1]), np.float32)
        count = min(len(values), self.length)
        if self.keep == "last":
            out[self.length - count :] = values[len(values) - count :]
        else:
            out[:count] = values[:count]
        return out

    def on_rows(self, rows: Sequence[Array]) -> list[Array]:
        """Each of them."""
        return [self.on_row(np.asarray(row)) for row in rows]


def lengthened(pipeline: Pipeline, items: int) -> Pipeline:
    """A pipeline whose windows hold so many items more."""
    steps = (replace(step, length=step.length + items) if isinstance(step, Window) else step for step in pipeline.host)
    return replace(pipeline, host=tuple(steps))


@register
@dataclass(frozen=True)
class Standardize:
    """Subtracts a mean and divides by a standard deviation, channel by channel, the last axis of a row.

    Attributes:
        mean: One value a channel; measured on the training rows, filled-up items among them, if left out.
        std: Likewise.
    """

    name: ClassVar[str] = "series.standardize"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def fit(self, batches: Iterable[Array]) -> Standardize:
        """With mean and standard deviation of the training rows, where they are not given."""
        if self.mean is not None and self.std is not None:
            return self
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for batch in batches:  # merged as in Chan, Golub and LeVeque 1983: far from zero, sums of squares cancel
            items = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            own, total = items.mean(0), count + len(items)
            squares = squares + ((items - own) ** 2).sum(0) + (own - mean) ** 2 * count * len(items) / total
            mean, count = mean + (own - mean) * len(items) / total, total
        if not count:
            raise InvalidRequest(
                "Standardize() is measured on the training rows, by one step of a pipeline; none reached this one; "
                "give it mean= and std="
            )
        std = np.sqrt(squares / count)
        std = np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0)
        return replace(self, mean=self.mean or tuple(mean.tolist()), std=self.std or tuple(std.tolist()))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same shape."""
        return shape

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """Standardised batch of the same shape."""
        if self.mean is None or self.std is None:
            raise InvalidRequest("Standardize() knows its mean and std once it is fitted; call fit() first")
        ahead = (None,) * (batch.ndim - 1)
        mean, std = (np.asarray(value, np.float32)[ahead] for value in (self.mean, self.std))
        return (batch - mean) / std


__all__ = ["Standardize", "Window"]
