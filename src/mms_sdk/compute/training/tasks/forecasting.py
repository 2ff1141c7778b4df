"""What comes next in a series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mms_sdk.compute.data.preprocess.series import Window
from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, per_row, summed
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax

    from mms_sdk.compute.data.preprocess.pipeline import HostStep


@dataclass(frozen=True, kw_only=True)
class Forecasting(WholeRows):
    """The last steps of each series from those before; the pinball loss of quantiles (Koenker and Bassett 1978).

    A row is a series of shape (steps, channels) or (steps,). The model takes all but the last `horizon` steps and gives
    (batch, horizon, channels, quantiles); with one quantile the last axis may be left out.

    Attributes:
        horizon: Steps to say ahead.
        quantiles: Which, ascending, in (0, 1); metrics besides the loss are of the one nearest to the median.
    """

    name: ClassVar[str] = "forecasting"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mae", "rmse")
    counted: ClassVar[tuple[str, ...]] = ("loss", "absolute", "squared")
    target: None = None
    horizon: int
    quantiles: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InvalidRequest(f"a forecast is of at least one step; got horizon={self.horizon}")
        inside = all(0 < quantile < 1 for quantile in self.quantiles)
        if not self.quantiles or not inside or list(self.quantiles) != sorted(set(self.quantiles)):
            raise InvalidRequest(f"quantiles ascend and lie in (0, 1); got quantiles={self.quantiles}")

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """No names."""
        return ()

    def model_shape(self, shape: Shape) -> Shape:
        """The series without the steps that are to be said."""
        if not shape or shape[0] <= self.horizon:
            raise InvalidRequest(
                f"a series has steps before those that are forecast; rows have shape {shape} and horizon is "
                f"{self.horizon}; use longer series or a shorter horizon"
            )
        return (shape[0] - self.horizon, *shape[1:])

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> Shape | None:
        """(horizon, channels, quantiles), for as many channels as the series has."""
        return (self.horizon, *input_shape[1:], len(self.quantiles)) if len(self.quantiles) > 1 else None

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The steps before, and those to say."""
        return inputs[:, : -self.horizon], inputs[:, -self.horizon :]

    def at_serving(self, step: HostStep) -> HostStep:
        """A window without the steps that are to be said: the newest of a history, of any length.

        Raises:
            InvalidRequest: It keeps the first items of a series, behind which there may be nothing but padding.
        """
        if isinstance(step, Window) and step.keep == "first":
            raise InvalidRequest("a forecast is of what comes last; got Window(keep='first'); use keep='last'")
        return replace(step, length=step.length - self.horizon) if isinstance(step, Window) else step

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of the pinball loss, and of the errors of the quantile nearest to the median."""
        import jax.numpy as jnp

        shape = (*targets.shape, len(self.quantiles))
        if outputs.size != targets.size * len(self.quantiles) or outputs.shape[:2] != shape[:2]:
            raise InvalidRequest(
                f"the model of a forecast gives {shape[1:]} a row (horizon, channels, quantiles); got "
                f"{outputs.shape[1:]}; set its horizon and its number of quantiles"
            )
        given = outputs.reshape(shape)
        error = targets[..., None] - given
        levels = jnp.asarray(self.quantiles, given.dtype).reshape(*(1,) * targets.ndim, -1)
        pinball = jnp.maximum(levels * error, (levels - 1) * error)
        off = error[..., self._middle]
        return summed(self.counted, (per_row(pinball), per_row(jnp.abs(off)), per_row(off**2)), weight)

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and absolute error, and the root of the mean squared error."""
        rows = sums["weight"] or 1.0
        return {
            "loss": sums["loss"] / rows,
            "mae": sums["absolute"] / rows,
            "rmse": max(0.0, sums["squared"] / rows) ** 0.5 if sums["squared"] == sums["squared"] else float("nan"),
        }

    @property
    def _middle(self) -> int:
        return min(range(len(self.quantiles)), key=lambda place: abs(self.quantiles[place] - 0.5))
