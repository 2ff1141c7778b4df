"""The inputs themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, per_row, summed
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class Reconstruction(WholeRows):
    """The preprocessed inputs themselves, as an autoencoder gives them; the mean squared error."""

    name: ClassVar[str] = "reconstruction"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mae")
    counted: ClassVar[tuple[str, ...]] = metrics
    target: None = None

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """No names."""
        return ()

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> Shape:
        """That of the inputs."""
        return input_shape

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inputs twice."""
        return inputs, inputs

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of squared and of absolute errors, each the mean over a row."""
        import jax.numpy as jnp

        error = outputs - targets
        return summed(self.counted, (per_row(error**2), per_row(jnp.abs(error))), weight)
