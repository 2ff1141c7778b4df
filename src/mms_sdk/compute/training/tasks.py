"""Tasks: what a model is trained for, as sums that stay exact under padding and sharding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax

Sums = dict[str, Any]
"""For each metric the weighted sum over rows, and under `weight` the sum of the weights. Scalars."""


class Task(Protocol):
    """What the loop asks of a task. A frozen dataclass."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """Label names, if the data suits the task.

        Raises:
            DataError: It does not.
        """

    def sums(self, outputs: jax.Array, labels: jax.Array, weight: jax.Array) -> Sums:
        """Metric sums of one batch; `loss` among them is what is minimised."""

    def scores(self, outputs: jax.Array) -> jax.Array:
        """What a served model answers, shape (batch, classes)."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One of several classes; softmax cross-entropy.

    Attributes:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InvalidRequest(f"label smoothing is a share in [0, 1); got label_smoothing={self.label_smoothing}")

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """Class names, of which there are at least two."""
        labels = snapshot.column("label").labels or ()
        if len(labels) < 2:
            raise DataError(
                f"classification needs at least two classes; {snapshot.ref} has {len(labels)}: {list(labels)}; add "
                f"pictures of another class"
            )
        return labels

    def sums(self, outputs: jax.Array, labels: jax.Array, weight: jax.Array) -> Sums:
        """Sums of cross-entropy and of correct answers."""
        import jax
        import jax.numpy as jnp
        import optax

        targets = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        losses = optax.softmax_cross_entropy(outputs, targets)
        correct = (outputs.argmax(-1) == labels).astype(losses.dtype)
        # Summed together: one reduction, and one exchange between devices, instead of three.
        sums = (jnp.stack([losses, correct, jnp.ones_like(losses)]) * weight[None]).sum(1)
        return dict(zip((*self.metrics, "weight"), sums, strict=True))

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Probabilities, float32, adding up to 1 in each row."""
        import jax
        import jax.numpy as jnp

        return jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
