"""The next token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class LanguageModelling(WholeRows):
    """The next token at every place: softmax cross-entropy of logits (batch, length, vocabulary), weighed by token.

    Attributes:
        pad_id: Token that stands for nothing; it is not to be said.
    """

    name: ClassVar[str] = "language-modelling"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "perplexity")
    counted: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    target: None = None
    pad_id: int = 0

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """No names."""
        return ()

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> tuple[int | None, ...]:
        """(length, vocabulary)."""
        if len(input_shape) != 1 or input_shape[0] < 2:
            raise InvalidRequest(
                f"language modelling takes rows of at least two tokens, shape (length,); got {input_shape}; begin "
                f"preprocess with mms.text.Tokenize(length=...)"
            )
        return (input_shape[0], None)

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The tokens twice: `sums` compares each place with the token behind it."""
        return inputs, inputs

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of cross-entropy and of right tokens; the weights of rows are spread over their tokens."""
        import jax.numpy as jnp
        import optax

        logits, following = outputs[:, :-1], targets[:, 1:]
        said = (following != self.pad_id) * weight[:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
        right = (logits.argmax(-1) == following).astype(losses.dtype)
        each = jnp.stack([losses, right, jnp.ones_like(losses)])
        return dict(zip((*self.counted, "weight"), (each * said[None]).sum((1, 2)), strict=True))

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over tokens, and e to the mean loss."""
        tokens = sums["weight"] or 1.0
        loss = sums["loss"] / tokens
        return {
            "loss": loss,
            "accuracy": sums["accuracy"] / tokens,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
        }
