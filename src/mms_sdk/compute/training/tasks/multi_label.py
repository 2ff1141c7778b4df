"""Any number of classes at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, column_of, refuse_share, summed, train_values
from mms_sdk.errors import DataError
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class MultiLabel(WholeRows):
    """Any number of classes at once; sigmoid cross-entropy, the mean over classes, of logits (batch, classes).

    Attributes:
        target: Column of fixed shape (classes,) that holds 1 for each class a row is of, and 0 for the others.
        threshold: Probability from which a class counts as said.
    """

    name: ClassVar[str] = "multi-label"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "precision", "recall", "f1")
    counted: ClassVar[tuple[str, ...]] = ("loss", "exact", "right", "said", "true")
    target: str = "label"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        refuse_share("threshold", self.threshold, below=False)

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """Names of the classes; their numbers if the column has no labels."""
        column = column_of(snapshot, self.target, self.name)
        if len(column.fixed) != 1 or column.fixed[0] < 1:
            raise DataError(
                f"the target of a multi-label task has shape (classes,), one 0 or 1 a class; {self.target!r} of "
                f"{snapshot.ref} is {column.form}; use Classification for one class a row"
            )
        seen = np.unique(train_values(snapshot, self.target))
        if not set(seen.tolist()) <= {0.0, 1.0}:
            raise DataError(
                f"the target of a multi-label task holds 0 and 1; {self.target!r} of {snapshot.ref} holds "
                f"{seen[:5].tolist()}; write the column anew"
            )
        return column.labels or tuple(map(str, range(column.fixed[0])))

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> Shape:
        """One score a class."""
        return (len(labels),)

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of cross-entropy, of rows that are right in all classes, and of classes right, said and true."""
        import jax
        import jax.numpy as jnp
        import optax

        targets = targets.astype(outputs.dtype)
        losses = optax.sigmoid_binary_cross_entropy(outputs, targets).mean(-1)
        said = (jax.nn.sigmoid(outputs) >= self.threshold).astype(outputs.dtype)
        exact = jnp.all(said == targets, axis=-1).astype(outputs.dtype)
        right = (said * targets).sum(-1)
        return summed(self.counted, (losses, exact, right, said.sum(-1), targets.sum(-1)), weight)

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Loss and share of rows right in all classes; precision, recall and F1 over all classes and rows (micro)."""
        rows, right, said, true = sums["weight"] or 1.0, sums["right"], sums["said"], sums["true"]
        return {
            "loss": sums["loss"] / rows,
            "accuracy": sums["exact"] / rows,
            "precision": right / (said or 1.0),
            "recall": right / (true or 1.0),
            "f1": 2 * right / ((said + true) or 1.0),
        }

    def scores(self, outputs: jax.Array) -> jax.Array:
        """The probability of each class, float32."""
        import jax
        import jax.numpy as jnp

        return jax.nn.sigmoid(outputs.astype(jnp.float32))
