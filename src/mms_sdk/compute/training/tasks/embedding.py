"""Vectors that lie near one another where rows are of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, summed
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class Embedding(WholeRows):
    """Vectors that lie near one another where rows are of one class: supervised contrastive loss within a batch.

    Khosla et al. 2020, eq. 2 (L_out). The model gives (batch, size); vectors are brought to length 1. A row whose class
    no other row of the batch has counts for nothing, so batches should be a few times as large as there are classes.
    Under accumulation a row is compared with those of its micro-batch.

    Attributes:
        target: Column with the class.
        temperature: What cosines are divided by.
    """

    name: ClassVar[str] = "embedding"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "recall")
    counted: ClassVar[tuple[str, ...]] = metrics
    compares_rows: ClassVar[bool] = True
    target: str = "label"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InvalidRequest(f"a temperature is a positive number; got temperature={self.temperature}")

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """No names, since what comes out are vectors; but there are at least two classes."""
        labels = snapshot.column(self.target).labels or ()
        if len(labels) < 2:
            raise DataError(
                f"an embedding is learnt from at least two classes; {snapshot.ref} has {len(labels)} in "
                f"{self.target!r}: {list(labels)}; add rows of another class"
            )
        return ()

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> tuple[None]:
        """A vector of any size."""
        return (None,)

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of the loss, and of rows whose nearest neighbour in the batch is of their class."""
        import jax
        import jax.numpy as jnp

        unit = _unit(outputs)
        near = unit @ unit.T / self.temperature
        others = (1 - jnp.eye(len(near), dtype=near.dtype)) * (weight > 0)[None]
        same = (targets[:, None] == targets[None]) * others
        logits = jnp.where(others > 0, near, -jnp.inf)
        # A batch with one row has nothing to compare it with: its sum of exponentials is that of no numbers.
        partition = jax.nn.logsumexp(jnp.where(others.sum(1, keepdims=True) > 0, logits, 0.0), axis=1)
        pairs = same.sum(1)
        losses = (same * (partition[:, None] - near)).sum(1) / jnp.maximum(pairs, 1)
        right = (targets[logits.argmax(1)] == targets).astype(near.dtype)
        return summed(self.counted, (losses, right), weight * (pairs > 0))

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Vectors of length 1, float32."""
        import jax.numpy as jnp

        return _unit(outputs.astype(jnp.float32))


def _unit(vectors: jax.Array) -> jax.Array:
    import jax.numpy as jnp

    # The square root of a sum that is never 0: the gradient of a norm at 0 is no number.
    return vectors / jnp.sqrt((vectors**2).sum(-1, keepdims=True) + 1e-12)
