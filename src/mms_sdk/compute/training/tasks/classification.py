"""One of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, refuse_share, summed
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class Classification(WholeRows):
    """One of several classes; softmax cross-entropy over logits of shape (batch, classes).

    Attributes:
        target: Column with the class.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weight: What a row's loss is multiplied by, by the name of its class; `balanced` for rows / (classes ×
            rows of the class), so that each class weighs the same. Accuracy is not weighted.
        focal: Exponent of the focal loss, (1 - p)^focal times the cross-entropy (Lin et al. 2017, eq. 4); 0 for none.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    counted: ClassVar[tuple[str, ...]] = metrics
    target: str = "label"
    label_smoothing: float = 0.0
    class_weight: Literal["balanced"] | Mapping[str, float] | tuple[float, ...] | None = None
    focal: float = 0.0

    def __post_init__(self) -> None:
        refuse_share("label_smoothing", self.label_smoothing)
        if not self.focal >= 0:
            raise InvalidRequest(f"the focal loss has an exponent from 0; got focal={self.focal}")
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            raise InvalidRequest(f"class_weight is 'balanced' or a weight a class; got {self.class_weight!r}")

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """Class names, of which there are at least two."""
        labels = snapshot.column(self.target).labels or ()
        if len(labels) < 2:
            raise DataError(
                f"classification needs at least two classes; {snapshot.ref} has {len(labels)}: {list(labels)}; add "
                f"rows of another class"
            )
        return labels

    def fit(self, snapshot: OpenSnapshot) -> Classification:
        """The task with one weight a class, in order of their codes."""
        if self.class_weight is None or isinstance(self.class_weight, tuple):
            return self
        labels = self.check(snapshot)
        if isinstance(self.class_weight, str):
            return replace(self, class_weight=self._balanced(snapshot, labels))
        missing, unknown = sorted(set(labels) - set(self.class_weight)), sorted(set(self.class_weight) - set(labels))
        if missing or unknown or not all(0 <= weight < np.inf for weight in self.class_weight.values()):
            raise InvalidRequest(
                f"class_weight has a finite weight from 0 for each class of {snapshot.ref}, {list(labels)}; missing "
                f"are {missing}, unknown {unknown}; got {dict(self.class_weight)}"
            )
        return replace(self, class_weight=tuple(float(self.class_weight[label]) for label in labels))

    def _balanced(self, snapshot: OpenSnapshot, labels: tuple[str, ...]) -> tuple[float, ...]:
        codes = snapshot.values(self.target)[snapshot.split_rows("train")]
        counts = np.bincount(codes, minlength=len(labels))
        # A class without training rows has no weight to have: nothing is ever multiplied by it.
        return tuple(float(len(codes) / (len(labels) * count)) if count else 0.0 for count in counts)

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> Shape:
        """One score a class."""
        return (len(labels),)

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of cross-entropy and of correct answers."""
        import jax
        import jax.numpy as jnp
        import optax

        hot = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        losses = optax.softmax_cross_entropy(outputs, optax.smooth_labels(hot, self.label_smoothing))
        if self.focal:
            # Not 0: there the slope of a root has no end.
            missed = jnp.maximum(1 - (jax.nn.softmax(outputs) * hot).sum(-1), 1e-7)
            losses = losses * missed**self.focal
        if self.class_weight is not None:
            losses = losses * jnp.asarray(self.class_weight, losses.dtype)[targets]
        correct = (outputs.argmax(-1) == targets).astype(losses.dtype)
        return summed(self.counted, (losses, correct), weight)

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Probabilities, float32, adding up to 1 in each row."""
        import jax
        import jax.numpy as jnp

        return jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
