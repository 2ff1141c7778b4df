"""A bidirectional Transformer over tokens, as BERT: classes of texts, or their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.compute.models.attention import MultiHeadAttention, check_heads
from mms_sdk.compute.models.blocks import make_blocks, through, transformer_rules
from mms_sdk.compute.models.embedding import embedding
from mms_sdk.compute.models.feedforward import FeedForward, gelu
from mms_sdk.compute.models.options import check_at_least, check_choice, check_ids, check_share
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """BERT (Devlin et al. 2019, §3): learned positions, attention both ways, normalised after each sum, exact GELU.

    Takes token ids, int32 (batch, length), where `pad_id` stands for padding; or (batch, 2, length), ids and the type
    of each token, if `token_types` is 2 or more. Gives scores (batch, num_classes), or without `num_classes` an
    embedding of length 1, (batch, width). The defaults, but for the vocabulary, are those of
    MiniLM-L6 (Wang et al. 2020).

    Attributes:
        vocab_size: Number of token ids. A row with an id from there on gives NaN.
        num_classes: Scores that come out; None for an embedding.
        width: Features of a token; a multiple of heads.
        layers: Blocks.
        heads: Of attention.
        inner: Features inside the feed-forward layers; 4 × width if left out.
        max_length: Positions that are learned, and so the longest row.
        token_types: Kinds of tokens, as the first and second text of a pair; rows without them are of type 0. 0: none.
        pad_id: The id of padding, which is not seen and does not count.
        pooling: `mean` of the tokens, or `cls`, the first: for classes through BERT's dense layer with tanh, for an
            embedding as it is.
        dropout: Share dropped in training: of the embedded tokens, of attention, of what each half of a block adds, and
            of the pooled features.
        norm_eps: Added to the variance in layer normalisation.
        scan_layers: Whether blocks are stacked, which compiles in the time of one.
        remat: Whether blocks are computed again for the gradient, which saves memory.
    """

    vocab_size: int
    num_classes: int | None = None
    width: int = 384
    layers: int = 6
    heads: int = 12
    inner: int | None = None
    max_length: int = 512
    token_types: int = 2
    pad_id: int = 0
    pooling: Literal["cls", "mean"] = "mean"
    dropout: float = 0.1
    norm_eps: float = 1e-12
    scan_layers: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, vocab_size=self.vocab_size, layers=self.layers, max_length=self.max_length)
        check_at_least(1, num_classes=self.num_classes, inner=self.inner)
        check_at_least(0, token_types=self.token_types)
        check_share(dropout=self.dropout)
        check_choice("pooling", self.pooling, ("cls", "mean"))
        check_heads(self.width, self.heads, self.heads)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided over `fsdp` and `tensor`, if no rule of the trainer says otherwise."""
        return transformer_rules(stacked=self.scan_layers)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (length,), or (2, length) with token types.

        Raises:
            InvalidRequest: Rows of another shape, or longer than `max_length`.
        """
        typed = len(input_shape) == 2 and input_shape[0] == 2 and self.token_types > 1
        if len(input_shape) != 1 and not typed:
            raise InvalidRequest(
                f"an Encoder takes rows of token ids, (length,), or of ids and types, (2, length), if token_types is 2 "
                f"or more; got {input_shape} with token_types={self.token_types}"
            )
        if input_shape[-1] > self.max_length:
            raise InvalidRequest(
                f"an Encoder takes at most max_length={self.max_length} tokens; got rows of {input_shape[-1]}; cut the "
                f"texts, or raise max_length"
            )
        return _Encoder(self, rngs=rngs)

    def names(self) -> dict[str, str]:
        """Path of each parameter → its name in Hugging Face's `BertModel`, where kernels are transposed.

        The head is not among them, and stacked blocks have no names of their own.
        """
        embeddings = {
            "token/embedding": "word_embeddings.weight",
            "position/embedding": "position_embeddings.weight",
            "norm/scale": "LayerNorm.weight",
            "norm/bias": "LayerNorm.bias",
        }
        if self.token_types:
            embeddings["type/embedding"] = "token_type_embeddings.weight"
        names = {f"features/{ours}": f"embeddings.{theirs}" for ours, theirs in embeddings.items()}
        for block in range(self.layers):
            for ours, theirs in _BLOCK_NAMES.items():
                norm = ours.endswith("norm")
                names[f"features/blocks/{block}/{ours}/{'scale' if norm else 'kernel'}"] = (
                    f"encoder.layer.{block}.{theirs}.weight"
                )
                names[f"features/blocks/{block}/{ours}/bias"] = f"encoder.layer.{block}.{theirs}.bias"
        if self.has_pooler:
            names |= {
                "features/pooler/kernel": "pooler.dense.weight",
                "features/pooler/bias": "pooler.dense.bias",
            }
        return names

    @property
    def has_pooler(self) -> bool:
        """Whether BERT's dense layer stands before the head."""
        return self.pooling == "cls" and self.num_classes is not None


_BLOCK_NAMES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


class _Block(nnx.Module):
    def __init__(self, family: Encoder, rngs: nnx.Rngs) -> None:
        # Not the fast variance, mean(x²) - mean(x)²: it cannot tell a variance of norm_eps from rounding.
        norm = partial(nnx.LayerNorm, family.width, epsilon=family.norm_eps, use_fast_variance=False, rngs=rngs)
        self.attention = MultiHeadAttention(family.width, family.heads, dropout=family.dropout, rngs=rngs)
        self.attention_norm = norm()
        self.feed_forward = FeedForward(family.width, family.inner or 4 * family.width, activation=gelu, rngs=rngs)
        self.feed_forward_norm = norm()
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        x = self.attention_norm(x + self.dropout(self.attention(x, keep)))
        out: jax.Array = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return out


class _Features(nnx.Module):
    def __init__(self, family: Encoder, *, rngs: nnx.Rngs) -> None:
        self.token = embedding(family.vocab_size, family.width, rngs=rngs)
        self.position = embedding(family.max_length, family.width, rngs=rngs)
        if family.token_types:
            self.type = embedding(family.token_types, family.width, rngs=rngs)
        self.norm = nnx.LayerNorm(family.width, epsilon=family.norm_eps, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.blocks = make_blocks(partial(_Block, family), family.layers, stacked=family.scan_layers, rngs=rngs)
        if family.has_pooler:
            self.pooler = nnx.Linear(family.width, family.width, rngs=rngs)
        self.family = family

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, length) or (batch, 2, length) → (batch, width)."""
        ids, types = (x, jnp.zeros_like(x)) if x.ndim == 2 else (x[:, 0], x[:, 1])
        keep = ids != self.family.pad_id
        return self.pooled(self.tokens(ids, types, keep), keep)

    def tokens(self, ids: jax.Array, types: jax.Array, keep: jax.Array) -> jax.Array:
        """What the last block makes of each token, (batch, length, width)."""
        x = self.token(ids) + self.position(jnp.arange(ids.shape[1]))[None]
        if self.family.token_types:
            x = x + self.type(types)
        return through(self.blocks, self.dropout(self.norm(x)), keep, remat=self.family.remat)

    def pooled(self, x: jax.Array, keep: jax.Array) -> jax.Array:
        if self.family.pooling == "mean":
            return mean_where(x, keep)
        first = x[:, 0]
        return nnx.tanh(self.pooler(first)) if self.family.has_pooler else first


class _Encoder(nnx.Module):
    def __init__(self, family: Encoder, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.classes = family.num_classes
        if self.classes is not None:
            self.head = nnx.Linear(family.width, self.classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        check_ids("an Encoder", x)
        features = self.features(x)
        if self.classes is None:
            return unit_length(features)
        scores: jax.Array = self.head(self.dropout(features))
        return scores


def mean_where(x: jax.Array, keep: jax.Array) -> jax.Array:
    """The mean of (batch, length, width) where `keep`, (batch, length), holds; 0 where it nowhere does."""
    weight = keep.astype(x.dtype)[..., None]
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def unit_length(x: jax.Array) -> jax.Array:
    """Rows of (batch, width) divided by their Euclidean length; a row of zeros stays one, and has a gradient."""
    squared = (x.astype(jnp.float32) ** 2).sum(-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))).astype(x.dtype)
