"""Multi-head attention, as every family here has it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mms_sdk.errors import InvalidRequest

_LEAST = float(np.finfo(np.float32).min)  # not -inf: a row without anything to see would be no number


class MultiHeadAttention(nnx.Module):
    """Self-attention of Vaswani et al. 2017, §3.2, with grouped keys and values (Ainslie et al. 2023, §2.2).

    Args:
        width: Features of each position, in and out.
        heads: Query heads.
        kv_heads: Key and value heads, each shared by heads / kv_heads query heads; `heads` if left out.
        head_width: Features of each head; width / heads if left out.
        rope_theta: Base of the rotary positions (Su et al. 2021, §3.4.2), e.g. 10,000; None for no positions.
        causal: Whether a position sees itself and those before it only.
        qk_norm: Whether queries and keys are normalised by their root mean square, head by head, before the positions
            (Dehghani et al. 2023, §2).
        bias: Whether the four projections have one.
        dropout: Share of the attention weights dropped in training.

    Raises:
        InvalidRequest: Numbers of heads that do not divide, or rotary positions over an odd head.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_width: int | None = None,
        rope_theta: float | None = None,
        causal: bool = False,
        qk_norm: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.kv_heads = heads, kv_heads or heads
        check_heads(width, self.heads, self.kv_heads, head_width, rotary=rope_theta is not None)
        self.head_width = head_width or width // heads
        self.rope_theta, self.causal = rope_theta, causal
        inner, shared = self.heads * self.head_width, self.kv_heads * self.head_width
        self.query = nnx.Linear(width, inner, use_bias=bias, rngs=rngs)
        self.key = nnx.Linear(width, shared, use_bias=bias, rngs=rngs)
        self.value = nnx.Linear(width, shared, use_bias=bias, rngs=rngs)
        self.out = nnx.Linear(inner, width, use_bias=bias, rngs=rngs)
        self.query_norm = nnx.RMSNorm(self.head_width, rngs=rngs) if qk_norm else _same
        self.key_norm = nnx.RMSNorm(self.head_width, rngs=rngs) if qk_norm else _same
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Each position as a mean of the values of those that it sees.

        Args:
            x: (batch, length, width).
            keep: bool, (batch, length): which positions are seen, False for padding; None for all.

        Returns:
            (batch, length, width). What stands at padding has no meaning, and is finite.
        """
        query, key, value = self.project(x)
        if self.rope_theta is not None:
            query, key = rotated(query, self.rope_theta), rotated(key, self.rope_theta)
        return self.attend(query, key, value, keep)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, each (batch, length, heads, head width)."""
        split = (*x.shape[:2], -1, self.head_width)
        query = self.query_norm(self.query(x).reshape(split))
        key = self.key_norm(self.key(x).reshape(split))
        return query, key, self.value(x).reshape(split)

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        keep: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """The projected mean of values.

        Args:
            query: (batch, length, heads, head width).
            key: (batch, length, key and value heads, head width).
            value: As key.
            keep: bool, (batch, length).
            bias: Added to the logits after their scaling, (batch, heads, length, length).

        Returns:
            (batch, length, width).
        """
        mask = None if keep is None else keep[:, None, None, :]
        if self.dropout.rate and not self.dropout.deterministic:
            mean = self._attend_with_dropout(query, key, value, mask, bias)
        else:
            mean = jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, is_causal=self.causal)
        return self.out(mean.reshape(*query.shape[:2], -1))

    def _attend_with_dropout(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None
    ) -> jax.Array:
        # jax.nn.dot_product_attention drops no weights, so in training they are written out.
        groups = self.heads // self.kv_heads
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        logits = logits * self.head_width**-0.5 + (0.0 if bias is None else bias)
        if self.causal:
            seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
            mask = seen if mask is None else mask & seen
        if mask is not None:
            logits = jnp.where(mask, logits, _LEAST)
        weights = self.dropout(jax.nn.softmax(logits, axis=-1).astype(query.dtype))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def rotated(x: jax.Array, theta: float) -> jax.Array:
    """Features turned by angles that grow with the position, so that products depend on distances only.

    Pairs are features i and i + half, as Llama's weights have it; Su et al. 2021 (§3.4.2) pair neighbours, which is the
    same with the features in another order.

    Args:
        x: (batch, length, heads, head width).
        theta: Pair i turns by theta^(-2i / head width) radians a position.
    """
    length, half = x.shape[1], x.shape[-1] // 2
    speeds = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * speeds[None]
    # In float32 whatever x is: positions from 256 on are not told apart by bfloat16.
    cos, sin = (turn(angles).astype(x.dtype)[None, :, None] for turn in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def check_heads(width: int, heads: int, kv_heads: int, head_width: int | None = None, *, rotary: bool = False) -> None:
    """Sees to it that heads divide as they must, and are even where positions are rotary.

    Raises:
        InvalidRequest: They do not.
    """
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise InvalidRequest(
            f"query heads divide evenly over key and value heads; got heads={heads}, kv_heads={kv_heads}; use a "
            f"divisor of {heads}"
        )
    if head_width is None and (width < 1 or width % heads):
        raise InvalidRequest(
            f"a width divides evenly over its heads; got width={width}, heads={heads}; use a multiple of {heads}"
        )
    if rotary and (head_width or width // heads) % 2:
        raise InvalidRequest(
            f"rotary positions turn pairs of features, so a head's width is even; got {head_width or width // heads}; "
            f"change width or heads"
        )


def _same(x: jax.Array) -> jax.Array:
    return x
