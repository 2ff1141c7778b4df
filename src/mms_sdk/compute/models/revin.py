"""Reversible instance normalisation: each row by its own mean and spread, which the forecast gets back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

_EPS = 1e-5


class Level(NamedTuple):
    """What was taken from a row: mean and standard deviation of each channel, (batch, 1, channels)."""

    mean: jax.Array
    spread: jax.Array


class ReversibleNorm(nnx.Module):
    """RevIN (Kim et al. 2022, §3), with a learned scale and shift of each channel.

    Args:
        channels: Of the series.
    """

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones(channels))
        self.shift = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Level]:
        """(batch, context, channels) with mean 0 and variance 1 along the context, and what was taken."""
        mean = jax.lax.stop_gradient(x.mean(1, keepdims=True))
        spread = jax.lax.stop_gradient(jnp.sqrt(x.var(1, keepdims=True) + _EPS))
        return (x - mean) / spread * self.scale[...][None, None] + self.shift[...][None, None], Level(mean, spread)

    def undo(self, x: jax.Array, level: Level) -> jax.Array:
        """(batch, horizon, channels, quantiles) at the level of its row."""
        scale, shift = (part[...][None, None, :, None] for part in (self.scale, self.shift))
        return (x - shift) / (scale + _EPS**2) * level.spread[..., None] + level.mean[..., None]


class AsItIs(nnx.Module):
    """Stands where nothing is normalised."""

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Level]:
        """The row, and a level that changes nothing."""
        return x, Level(jnp.zeros(()), jnp.ones(()))

    def undo(self, x: jax.Array, level: Level) -> jax.Array:
        """The forecast."""
        return x
