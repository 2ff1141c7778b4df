"""Numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, column_of, per_row, summed, train_values
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax

_OF_EACH = ("squared", "value", "value_squared")


@dataclass(frozen=True, kw_only=True)
class Regression(WholeRows):
    """One number a row, or several; the model gives shape (batch,), (batch, 1) or (batch, *shape of the target).

    The model learns the target standardised, so that a loss means the same whatever the unit; metrics but the loss, and
    what is served, are in the target's own unit. Of several numbers the metrics are means over them, `r2` too, of those
    that vary (scikit-learn's `uniform_average`); for it each number has sums of its own.

    Attributes:
        target: Column with the number.
        loss: `squared`, `absolute`, or `huber` (Huber 1964, δ = 1), of standardised values.
        standardize: Whether the target's mean and standard deviation over the training rows are taken out.
        mean: Measured by `fit`, one a value of the target.
        std: Likewise.
    """

    name: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mae", "rmse", "r2")
    target: str = "label"
    loss: Literal["squared", "absolute", "huber"] = "squared"
    standardize: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.loss not in ("squared", "absolute", "huber"):
            raise InvalidRequest(f"the loss of a regression is squared, absolute or huber; got loss={self.loss!r}")

    @property
    def counted(self) -> tuple[str, ...]:  # type: ignore[override]
        """The loss and errors, and for each number what its coefficient of determination needs."""
        return ("loss", "absolute", *(f"{name}/{at}" for name in _OF_EACH for at in range(self._width)))

    @property
    def _width(self) -> int:
        return len(self.mean or (0.0,))

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """No names."""
        column = column_of(snapshot, self.target, self.name)
        if column.kind in ("label", "category", "split", "id", "text"):
            raise DataError(
                f"a regression learns numbers; {self.target!r} of {snapshot.ref} is a {column.kind}; use "
                f"Classification, or name another column as target"
            )
        values = train_values(snapshot, self.target)
        if wrong := int((~np.isfinite(values)).sum()):
            raise DataError(
                f"targets are finite numbers; {wrong} of {values.size} of {self.target!r} in {snapshot.ref}/train are "
                f"not; leave those rows out with dataset.clean(mms.keep_where(...))"
            )
        return ()

    def fit(self, snapshot: OpenSnapshot) -> Regression:
        """The task with the target's mean and standard deviation over the training rows."""
        if self.mean is not None:
            return self
        values = train_values(snapshot, self.target)
        values = values.reshape(len(values), -1)
        std = values.std(0)
        return replace(self, mean=tuple(values.mean(0).tolist()), std=tuple(np.where(std > 0, std, 1.0).tolist()))

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> None:
        """Any that has as many values as the target, which `sums` checks."""

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of the loss, of errors, and of what the coefficient of determination needs."""
        import jax.numpy as jnp
        import optax

        if outputs.size != targets.size:
            raise InvalidRequest(
                f"the model of a regression gives as many numbers as the target has, {targets.shape[1:] or (1,)} a "
                f"row; got {outputs.shape[1:]}; set its num_classes to {max(1, targets.size // targets.shape[0])}"
            )
        rows = targets.shape[0]
        wanted = targets.reshape(rows, -1).astype(outputs.dtype)
        given = outputs.reshape(rows, -1)
        error = given - self._standard(wanted)
        losses = error**2 if self.loss == "squared" else jnp.abs(error)
        if self.loss == "huber":
            losses = optax.huber_loss(error)
        off = self._own_unit(given) - wanted
        # Around the training mean, so that squares of large values do not drown what they differ by.
        about = wanted - self._numbers(self.mean, wanted)
        each = [column for values in (off**2, about, about**2) for column in values.T]
        return summed(self.counted, (per_row(losses), per_row(jnp.abs(off)), *each), weight)

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and absolute error, root of the mean squared error, and the share of variance that is explained."""
        rows = sums["weight"] or 1.0
        squares, values, squared_values = (
            np.array([sums[f"{name}/{at}"] / rows for at in range(self._width)]) for name in _OF_EACH
        )
        variance = squared_values - values**2
        squared, varies = float(squares.mean()), variance > 0
        return {
            "loss": sums["loss"] / rows,
            "mae": sums["absolute"] / rows,
            "rmse": math.sqrt(squared) if squared >= 0 else math.nan,
            "r2": float((1 - squares[varies] / variance[varies]).mean()) if varies.any() else 0.0,
        }

    def scores(self, outputs: jax.Array) -> jax.Array:
        """The numbers in the target's unit, float32, shape (batch, values)."""
        import jax.numpy as jnp

        numbers: jax.Array = self._own_unit(outputs.reshape(outputs.shape[0], -1).astype(jnp.float32))
        return numbers

    def _standard(self, values: Any) -> Any:
        if not self.standardize:
            return values
        return (values - self._numbers(self.mean, values)) / self._numbers(self.std, values, otherwise=1.0)

    def _own_unit(self, values: Any) -> Any:
        if not self.standardize:
            return values
        return values * self._numbers(self.std, values, otherwise=1.0) + self._numbers(self.mean, values)

    def _numbers(self, numbers: tuple[float, ...] | None, like: Any, otherwise: float = 0.0) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(numbers or (otherwise,), like.dtype)[None]
