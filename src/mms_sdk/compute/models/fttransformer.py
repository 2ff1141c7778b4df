"""A Transformer over the columns of a table: each number and each category is a token."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.compute.models.attention import MultiHeadAttention, check_heads
from mms_sdk.compute.models.blocks import transformer_rules
from mms_sdk.compute.models.columns import Columns, check_categories, check_row
from mms_sdk.compute.models.feedforward import GatedFeedForward
from mms_sdk.compute.models.options import check_at_least, check_share
from mms_sdk.compute.sharding.rules import PartitionRules


@dataclass(frozen=True, kw_only=True)
class FTTransformer:
    """Gorishniy et al. 2021, §3.3: a token a column and one for the class, normalised before each half of a block.

    Takes float32 (batch, numbers + categories): standardised numbers, NaN where one is missing, and then the codes of
    the categories. Gives (batch, num_classes).

    Attributes:
        num_classes: Scores or values that come out.
        categories: Codes of each category, with 0 for what is not known.
        width: Features of a token; a multiple of heads.
        layers: Blocks.
        heads: Of attention.
        inner: Features inside the feed-forward layers; 4/3 of the width if left out.
        attention_dropout: Share of the attention weights dropped in training.
        dropout: Share of the features inside the feed-forward layers dropped in training.
    """

    num_classes: int
    categories: tuple[int, ...] = ()
    width: int = 192
    layers: int = 3
    heads: int = 8
    inner: int | None = None
    attention_dropout: float = 0.2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes, layers=self.layers, inner=self.inner)
        check_share(dropout=self.dropout, attention_dropout=self.attention_dropout)
        check_heads(self.width, self.heads, self.heads)
        check_categories(self.categories)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided over `fsdp` and `tensor`, if no rule of the trainer says otherwise."""
        return transformer_rules()

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (numbers + categories,).

        Raises:
            InvalidRequest: Rows of another shape, or shorter than their categories.
        """
        return _FTTransformer(self, check_row("an FTTransformer", self.categories, input_shape), rngs=rngs)


class _Block(nnx.Module):
    def __init__(self, family: FTTransformer, *, first: bool, rngs: nnx.Rngs) -> None:
        # The first block's attention sees the tokens as they are, which made training easier in the paper (§3.3).
        self.attention_norm = _same if first else nnx.LayerNorm(family.width, epsilon=1e-5, rngs=rngs)
        self.attention = MultiHeadAttention(family.width, family.heads, dropout=family.attention_dropout, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(family.width, epsilon=1e-5, rngs=rngs)
        inner = family.inner or family.width * 4 // 3
        self.feed_forward = GatedFeedForward(
            family.width, inner, activation=nnx.relu, bias=True, dropout=family.dropout, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class _Features(nnx.Module):
    def __init__(self, family: FTTransformer, numbers: int, *, rngs: nnx.Rngs) -> None:
        tokens = numbers + len(family.categories)
        self.columns = Columns(numbers, family.categories, family.width, rngs=rngs)
        init = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # within ± 1 / √width, as published
        if numbers:
            self.weight = nnx.Param(init(rngs.params(), (numbers, family.width)))
        self.bias = nnx.Param(init(rngs.params(), (tokens, family.width)))
        self.cls = nnx.Param(init(rngs.params(), (1, family.width)))
        self.blocks = nnx.List([_Block(family, first=block == 0, rngs=rngs) for block in range(family.layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, numbers + categories) → the class token after the last block, (batch, width)."""
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]

    def tokens(self, x: jax.Array) -> jax.Array:
        """(batch, 1 + numbers + categories, width), the class token first."""
        parts = []
        if self.columns.numbers:
            parts.append(self.columns.numeric(x)[..., None] * self.weight[...][None])
        if self.columns.categories:
            parts.append(self.columns.embedded(x))
        columns = jnp.concatenate(parts, axis=1) + self.bias[...][None]
        cls = jnp.broadcast_to(self.cls[...][None], (x.shape[0], 1, columns.shape[-1]))
        return jnp.concatenate([cls.astype(columns.dtype), columns], axis=1)


class _Head(nnx.Module):
    def __init__(self, family: FTTransformer, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(family.width, epsilon=1e-5, rngs=rngs)
        self.linear = nnx.Linear(family.width, family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(nnx.relu(self.norm(x)))


class _FTTransformer(nnx.Module):
    def __init__(self, family: FTTransformer, numbers: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, numbers, rngs=rngs)
        self.head = _Head(family, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


def _same(x: jax.Array) -> jax.Array:
    return x
