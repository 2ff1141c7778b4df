"""A Transformer over patches of series: forecasts of each channel by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.compute.models.attention import MultiHeadAttention, check_heads
from mms_sdk.compute.models.batch_norm import BatchNorm
from mms_sdk.compute.models.blocks import make_blocks, through, transformer_rules
from mms_sdk.compute.models.feedforward import FeedForward, gelu
from mms_sdk.compute.models.options import check_at_least, check_choice, check_shape, check_share
from mms_sdk.compute.models.revin import AsItIs, ReversibleNorm
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class PatchTST:
    """Nie et al. 2023, §3.1: each channel is cut into patches, and one Transformer forecasts all channels alike.

    Takes float32 (batch, context, channels) and gives what follows, (batch, horizon, channels), or (batch, horizon,
    channels, quantiles).

    Attributes:
        horizon: Steps that are forecast.
        patch: Steps of a patch.
        stride: Steps from one patch to the next.
        pad_end: Whether the last step is repeated `stride` times, as published, for one more patch. Without, the oldest
            steps that fill no patch are left out.
        width: Features of a patch; a multiple of heads.
        layers: Blocks.
        heads: Of attention.
        inner: Features inside the feed-forward layers; 2 × width if left out.
        norm: Of what comes out of each half of a block: `batch` as published, whose averages padding rows of a last
            batch take part in, or `layer`, which looks at one patch only.
        quantiles: Quantiles of each value, in the order of the loss, which may cross; 0 for one value.
        revin: Whether each row is normalised by its own mean and spread, which the forecast gets back.
        dropout: Share dropped in training: of embedded patches, of attention, and of what each half of a block adds.
    """

    horizon: int
    patch: int = 16
    stride: int = 8
    pad_end: bool = True
    width: int = 128
    layers: int = 3
    heads: int = 16
    inner: int | None = None
    norm: Literal["batch", "layer"] = "batch"
    quantiles: int = 0
    revin: bool = True
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_at_least(1, horizon=self.horizon, patch=self.patch, stride=self.stride, layers=self.layers)
        check_at_least(1, inner=self.inner)
        check_at_least(0, quantiles=self.quantiles)
        check_share(dropout=self.dropout)
        check_choice("norm", self.norm, ("batch", "layer"))
        check_heads(self.width, self.heads, self.heads)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided over `fsdp` and `tensor`, if no rule of the trainer says otherwise."""
        return transformer_rules()

    def patches(self, context: int) -> int:
        """How many patches a row has.

        Args:
            context: Its steps.
        """
        return (context + self.stride * self.pad_end - self.patch) // self.stride + 1

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (context, channels).

        Raises:
            InvalidRequest: Rows of another shape, or shorter than a patch.
        """
        check_shape("a PatchTST", ("context", "channels"), input_shape)
        context, channels = input_shape
        if context < self.patch:
            raise InvalidRequest(
                f"a context has at least one patch; got rows of {context} steps with patch={self.patch}; shorten the "
                f"patch, or take longer rows"
            )
        return _PatchTST(self, context, channels, rngs=rngs)


class _Block(nnx.Module):
    def __init__(self, family: PatchTST, rngs: nnx.Rngs) -> None:
        kind = BatchNorm if family.norm == "batch" else nnx.LayerNorm
        norm = partial(kind, family.width, epsilon=1e-5, rngs=rngs)
        inner = family.inner or 2 * family.width
        self.attention = MultiHeadAttention(family.width, family.heads, dropout=family.dropout, rngs=rngs)
        self.attention_norm = norm()
        self.feed_forward = FeedForward(family.width, inner, activation=gelu, dropout=family.dropout, rngs=rngs)
        self.feed_forward_norm = norm()
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        # Batch normalisation gives the precision of its averages, float32.
        x = self.attention_norm(x + self.dropout(self.attention(x, keep))).astype(x.dtype)
        out: jax.Array = self.feed_forward_norm(x + self.dropout(self.feed_forward(x))).astype(x.dtype)
        return out


class _Features(nnx.Module):
    def __init__(self, family: PatchTST, context: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.norm = ReversibleNorm(channels) if family.revin else AsItIs()
        self.patch = nnx.Linear(family.patch, family.width, rngs=rngs)
        scale = nnx.initializers.normal(0.02)
        self.position = nnx.Param(scale(rngs.params(), (family.patches(context), family.width)))
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.blocks = make_blocks(partial(_Block, family), family.layers, rngs=rngs)
        self.family = family

    def __call__(self, x: jax.Array) -> jax.Array:
        """(rows, context), normalised → (rows, patches, width)."""
        cut = patched(x, self.family.patch, self.family.stride, pad_end=self.family.pad_end)
        return through(self.blocks, self.dropout(self.patch(cut) + self.position[...][None]))


class _PatchTST(nnx.Module):
    def __init__(self, family: PatchTST, context: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, context, channels, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.out = (family.horizon, family.quantiles or 1)
        self.head = nnx.Linear(family.patches(context) * family.width, family.horizon * self.out[1], rngs=rngs)
        self.point = not family.quantiles

    def __call__(self, x: jax.Array) -> jax.Array:
        x, level = self.features.norm(x)
        batch, context, channels = x.shape
        features = self.features(x.swapaxes(1, 2).reshape(batch * channels, context))
        features = self.dropout(features.reshape(batch, channels, features.shape[1] * features.shape[2]))
        forecast = self.head(features).reshape(batch, channels, *self.out).swapaxes(1, 2)
        forecast = self.features.norm.undo(forecast, level)
        return forecast[..., 0] if self.point else forecast


def patched(x: jax.Array, patch: int, stride: int, *, pad_end: bool) -> jax.Array:
    """Overlapping pieces of rows.

    Args:
        x: (rows, context).
        patch: Steps of a piece.
        stride: Steps from one to the next.
        pad_end: Whether the last step is repeated `stride` times first. Without, the oldest steps that fill no piece
            are left out.

    Returns:
        (rows, patches, patch).
    """
    if pad_end:
        x = jnp.pad(x, ((0, 0), (0, stride)), mode="edge")
    count = (x.shape[1] - patch) // stride + 1
    first = 0 if pad_end else x.shape[1] - patch - (count - 1) * stride
    starts = first + stride * jnp.arange(count)
    return x[:, starts[:, None] + jnp.arange(patch)[None]]
