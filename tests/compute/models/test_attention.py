"""Attention: equal to PyTorch's and to Llama's, and what masks, dropout and wrong numbers do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_weights import evaluated

from mms_sdk.compute.models.attention import MultiHeadAttention, rotated
from mms_sdk.errors import InvalidRequest

BATCH, LENGTH, WIDTH = 2, 6, 16


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


def build(heads: int = 4, **options: Any) -> MultiHeadAttention:
    return nnx.jit(lambda: MultiHeadAttention(WIDTH, heads, rngs=nnx.Rngs(1), **options))()


def kept() -> np.ndarray:
    keep = np.ones((BATCH, LENGTH), bool)
    keep[0, 4:] = False
    return keep


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True), (True, True)])
def test_attention_equals_that_of_pytorch(kv_heads: int, causal: bool, masked: bool) -> None:
    import torch

    attention, x = build(kv_heads=kv_heads, causal=causal), rows()

    def projected(linear: nnx.Linear, heads: int) -> Any:
        out = x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        return torch.from_numpy(out.reshape(BATCH, LENGTH, heads, -1)).transpose(1, 2)

    mask = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)) if causal else torch.ones(1, 1, dtype=torch.bool)
    mask = mask & torch.from_numpy(kept())[:, None, None] if masked else mask
    mean = torch.nn.functional.scaled_dot_product_attention(
        projected(attention.query, 4),
        projected(attention.key, kv_heads),
        projected(attention.value, kv_heads),
        attn_mask=mask,
        enable_gqa=True,
    )
    mean = mean.transpose(1, 2).reshape(BATCH, LENGTH, -1).numpy()
    expected = mean @ np.asarray(attention.out.kernel[...]) + np.asarray(attention.out.bias[...])

    np.testing.assert_allclose(evaluated(attention, x, kept() if masked else None), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10_000.0, 500.0])
def test_rotary_positions_are_those_of_llama(theta: float) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    x = np.random.default_rng(0).normal(size=(2, 40, 3, 8)).astype(np.float32)
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, rope_theta=theta)
    heads_first = torch.from_numpy(x).transpose(1, 2)
    cos, sin = LlamaRotaryEmbedding(config)(heads_first, torch.arange(40)[None])
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)

    np.testing.assert_allclose(rotated(jnp.asarray(x), theta), expected.transpose(1, 2).numpy(), atol=1e-5)


def test_products_of_rotated_features_depend_on_distances_only() -> None:
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    queries, keys = (rotated(jnp.broadcast_to(part, (1, 9, 1, 8)), 100.0)[0, :, 0] for part in (query, key))

    products = np.asarray(queries @ keys.T)

    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("causal", "kv_heads"), [(True, 2), (False, 4)])
def test_dropping_next_to_nothing_changes_next_to_nothing(causal: bool, kv_heads: int) -> None:
    # The weights are written out in training and not outside: the two ways must be one.
    attention, x = build(kv_heads=kv_heads, causal=causal, dropout=1e-7, rope_theta=100.0), rows()

    outside = evaluated(attention, x, kept())
    attention.train()
    inside = nnx.jit(lambda attention: attention(x, kept()))(attention)

    np.testing.assert_allclose(inside, outside, atol=1e-5)


def test_the_mean_over_many_droppings_is_attention_without() -> None:
    attention, x = build(dropout=0.3), rows()
    outside = evaluated(attention, x)
    attention.train()

    @nnx.jit
    def dropped(attention: MultiHeadAttention) -> jax.Array:
        return attention(jnp.broadcast_to(x[None, :1], (3000, 1, LENGTH, WIDTH))[:, 0])

    many = np.asarray(dropped(attention))

    assert many.std(0).min() > 0.01
    standard_error = many.std(0) / 3000**0.5
    assert (np.abs(many.mean(0) - outside[0]) < 5 * standard_error).all()


def test_normalised_queries_make_their_length_irrelevant() -> None:
    attention, x = build(qk_norm=True), rows()
    before = evaluated(attention, x)

    for projection in (attention.query, attention.key):
        projection.kernel[...] *= 7.0

    np.testing.assert_allclose(evaluated(attention, x), before, atol=1e-4)


def test_what_is_not_seen_changes_nothing() -> None:
    attention, x = build(), rows()
    changed = x.copy()
    changed[0, 4:] = 1e3

    before, after = evaluated(attention, x, kept()), evaluated(attention, changed, kept())

    np.testing.assert_allclose(after[0, :4], before[0, :4], atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_a_row_that_sees_nothing_is_finite(training: bool) -> None:
    attention = build(dropout=0.5)
    attention.train() if training else attention.eval()

    out = nnx.jit(lambda attention: attention(rows(), np.zeros((BATCH, LENGTH), bool)))(attention)

    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 3}, "got width=16, heads=3; use a multiple of 3"),
        ({"heads": 4, "kv_heads": 3}, "got heads=4, kv_heads=3; use a divisor of 4"),
        ({"heads": 0}, "got heads=0"),
        ({"heads": 16, "rope_theta": 10.0}, "a head's width is even; got 1"),
    ],
)
def test_heads_that_do_not_divide_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        MultiHeadAttention(WIDTH, rngs=nnx.Rngs(0), **options)
