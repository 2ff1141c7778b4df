"""Position-wise feed-forward layers: two linear maps with something between them, or three with a gate."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx


class FeedForward(nnx.Module):
    """Up, an activation, down (Vaswani et al. 2017, §3.3).

    Args:
        width: Features in and out.
        inner: Features between.
        activation: Of each inner feature.
        dropout: Share of the inner features dropped in training.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)
        self.activation = activation
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(…, width) → (…, width)."""
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedFeedForward(nnx.Module):
    """Up, times a gate, down (Shazeer 2020, §2): SwiGLU with SiLU, GEGLU with GELU, ReGLU with ReLU.

    Args:
        width: Features in and out.
        inner: Features between.
        activation: Of the gate.
        bias: Whether the three maps have one.
        dropout: Share of the inner features dropped in training.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        bias: bool = False,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.gate = nnx.Linear(width, inner, use_bias=bias, rngs=rngs)
        self.up = nnx.Linear(width, inner, use_bias=bias, rngs=rngs)
        self.down = nnx.Linear(inner, width, use_bias=bias, rngs=rngs)
        self.activation = activation
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(…, width) → (…, width)."""
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as BERT has it (Hendrycks and Gimpel 2016, §2), not approximated by tanh."""
    return jax.nn.gelu(x, approximate=False)
