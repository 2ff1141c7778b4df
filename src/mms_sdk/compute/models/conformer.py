"""Convolution and attention over frames of sound: the Conformer's encoder."""

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
from mms_sdk.compute.models.feedforward import FeedForward
from mms_sdk.compute.models.options import check_at_least, check_choice, check_odd, check_shape, check_share
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Conformer:
    """The encoder of Gulati et al. 2020, §2, and an average over time for classes of sounds.

    Takes log-mel frames, float32 (batch, frames, mels), makes one of each four frames by two convolutions, and gives
    scores (batch, num_classes). All frames count: sounds are cut or padded to one length beforehand. The defaults are
    the paper's small model with four blocks of its sixteen.

    Attributes:
        num_classes: Scores that come out.
        width: Features of a frame; a multiple of heads, and even.
        layers: Blocks.
        heads: Of attention.
        inner: Features inside the feed-forward layers; 4 × width if left out.
        kernel: Frames that a block's convolution looks at; odd.
        norm: Inside the convolution module: `batch` as published, whose averages padding rows of a last batch take part
            in, or `layer`, which looks at one frame only.
        dropout: Share dropped in training: of attention, and of what each part of a block adds.
    """

    num_classes: int
    width: int = 144
    layers: int = 4
    heads: int = 4
    inner: int | None = None
    kernel: int = 31
    norm: Literal["batch", "layer"] = "batch"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes, layers=self.layers, inner=self.inner, kernel=self.kernel)
        check_share(dropout=self.dropout)
        check_odd(kernel=self.kernel)
        check_choice("norm", self.norm, ("batch", "layer"))
        check_heads(self.width, self.heads, self.heads)
        if self.width % 2:
            raise InvalidRequest(f"positions are pairs of a sine and a cosine; got width={self.width}; take even")

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided over `fsdp` and `tensor`, if no rule of the trainer says otherwise."""
        return transformer_rules()

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (frames, mels).

        Raises:
            InvalidRequest: Rows of another shape.
        """
        check_shape("a Conformer", ("frames", "mels"), input_shape)
        return _Conformer(self, input_shape[-1], rngs=rngs)


class RelativeAttention(MultiHeadAttention):
    """Attention by content and by distance (Dai et al. 2019, §3.3), over all positions."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        super().__init__(width, heads, dropout=dropout, rngs=rngs)
        self.distance = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.content_bias = nnx.Param(jnp.zeros((heads, self.head_width)))
        self.distance_bias = nnx.Param(jnp.zeros((heads, self.head_width)))

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """(batch, length, width) → the same; `keep` as in attention."""
        query, key, value = self.project(x)
        distances = self.distance(sinusoids(x.shape[1], x.shape[2]).astype(x.dtype))
        distances = distances.reshape(-1, self.heads, self.head_width)
        by_distance = jnp.einsum("bqhd,rhd->bhqr", query + self.distance_bias[...][None, None], distances)
        bias = by_pair(by_distance) * self.head_width**-0.5
        return self.attend(query + self.content_bias[...][None, None], key, value, keep, bias)


class _Convolution(nnx.Module):
    def __init__(self, family: Conformer, *, rngs: nnx.Rngs) -> None:
        width = family.width
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, use_bias=False, rngs=rngs)
        self.depthwise = nnx.Conv(width, width, (family.kernel,), feature_group_count=width, use_bias=False, rngs=rngs)
        kind = BatchNorm if family.norm == "batch" else nnx.LayerNorm
        self.inner_norm = kind(width, epsilon=1e-5, rngs=rngs)
        self.down = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.depthwise(nnx.glu(self.up(self.norm(x))))
        # Batch normalisation gives the precision of its averages, float32.
        return self.down(nnx.silu(self.inner_norm(x).astype(x.dtype)))


class ConformerBlock(nnx.Module):
    """Half a feed-forward layer, attention, convolution, the other half (Gulati et al. 2020, eq. 1)."""

    def __init__(self, family: Conformer, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.LayerNorm, family.width, epsilon=1e-5, rngs=rngs)
        inner = family.inner or 4 * family.width
        feed_forward = partial(FeedForward, family.width, inner, activation=nnx.silu, dropout=family.dropout, rngs=rngs)
        self.feed_forward1, self.feed_forward1_norm = feed_forward(), norm()
        self.attention = RelativeAttention(family.width, family.heads, dropout=family.dropout, rngs=rngs)
        self.attention_norm = norm()
        self.convolution = _Convolution(family, rngs=rngs)
        self.feed_forward2, self.feed_forward2_norm = feed_forward(), norm()
        self.norm = norm()
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """(batch, frames, width) → the same; `keep` as in attention."""
        x = x + 0.5 * self.dropout(self.feed_forward1(self.feed_forward1_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), keep))
        x = x + self.dropout(self.convolution(x))
        x = x + 0.5 * self.dropout(self.feed_forward2(self.feed_forward2_norm(x)))
        out: jax.Array = self.norm(x)
        return out


class _Subsampling(nnx.Module):
    def __init__(self, mels: int, width: int, *, rngs: nnx.Rngs) -> None:
        conv = partial(nnx.Conv, kernel_size=(3, 3), strides=2, padding=1, rngs=rngs)
        self.conv1, self.conv2 = conv(1, width), conv(width, width)
        self.linear = nnx.Linear(-(-mels // 4) * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x[..., None]))))
        batch, frames, mels, width = x.shape
        return self.linear(x.reshape(batch, frames, mels * width))


class _Features(nnx.Module):
    def __init__(self, family: Conformer, mels: int, *, rngs: nnx.Rngs) -> None:
        self.subsampling = _Subsampling(mels, family.width, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.blocks = make_blocks(partial(ConformerBlock, family), family.layers, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, frames, mels) → (batch, width)."""
        return through(self.blocks, self.dropout(self.subsampling(x))).mean(1)


class _Conformer(nnx.Module):
    def __init__(self, family: Conformer, mels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, mels, rngs=rngs)
        self.head = nnx.Linear(family.width, family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


def sinusoids(length: int, width: int) -> jax.Array:
    """Sines and cosines of the distances from length - 1 down to 1 - length, (2 length - 1, width).

    Vaswani et al. 2017, §3.5, of distances: features 2i and 2i + 1 are sine and cosine of
    distance / 10,000^(2i / width).
    """
    distances = jnp.arange(length - 1, -length, -1, dtype=jnp.float32)
    angles = distances[:, None] * 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(2 * length - 1, width)


def by_pair(by_distance: jax.Array) -> jax.Array:
    """What is given for each distance i - j, from length - 1 down to 1 - length, at the pairs i, j.

    Args:
        by_distance: (batch, heads, length, 2 length - 1).

    Returns:
        (batch, heads, length, length). Row i is moved by i without gathering (Dai et al. 2019, appendix B).
    """
    batch, heads, length, distances = by_distance.shape
    moved = jnp.pad(by_distance, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(batch, heads, distances + 1, length)
    return moved[:, :, 1:].reshape(batch, heads, length, distances)[..., :length]
