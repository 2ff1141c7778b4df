"""A mixture of experts in which all see all tokens: equal to a loop over tokens, and what its router learns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mms_sdk.compute.models.experts import BalanceLoss, DenseExperts, balance_loss

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def build(chosen: int) -> DenseExperts:
    return nnx.jit(lambda: DenseExperts(4, 5, experts=3, experts_per_token=chosen, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_each_token_goes_through_its_best_experts(chosen: int) -> None:
    layer = build(chosen)
    gate, up, down = (np.asarray(part[...]) for part in (layer.gate, layer.up, layer.down))
    logits = X @ np.asarray(layer.router.kernel[...])
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros_like(X)
    for place in np.ndindex(2, 3):
        best = np.argsort(-chances[place])[:chosen]
        whole = chances[place][best].sum() if chosen > 1 else 1.0
        for expert in best:
            inner = X[place] @ gate[expert]
            inner = inner / (1 + np.exp(-inner)) * (X[place] @ up[expert])
            expected[place] += chances[place][expert] / whole * (inner @ down[expert])

    np.testing.assert_allclose(nnx.jit(lambda layer: layer(X))(layer), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chosen", [1, 2])
def test_the_router_learns_from_what_its_choices_give(chosen: int) -> None:
    layer = build(chosen)

    @nnx.jit
    def slope(layer: DenseExperts) -> Any:
        return nnx.grad(lambda layer: (layer(X) ** 2).sum())(layer)

    assert np.abs(slope(layer)["router"]["kernel"][...]).max() > 1e-4


def test_balance_is_one_where_all_get_as_much_and_the_number_of_experts_where_one_gets_all() -> None:
    even = jnp.full((1, 3, 3), 1 / 3)
    alone = jax.nn.one_hot(jnp.zeros((1, 3), int), 3)

    assert balance_loss(even, jnp.eye(3)[None, :, None]) == pytest.approx(1)
    assert balance_loss(alone, alone[:, :, None]) == pytest.approx(3)


def test_tokens_that_do_not_count_are_not_in_the_balance() -> None:
    layer = build(2)
    keep = np.array([[True, True, True], [True, False, False]])

    @nnx.jit
    def balance(layer: DenseExperts, x: jax.Array, keep: jax.Array) -> jax.Array:
        layer(x, keep)
        return layer.balance_loss[...]

    told = balance(layer, X, keep)

    assert isinstance(layer.balance_loss, BalanceLoss)
    assert told == pytest.approx(balance(layer, np.where(keep[..., None], X, 9.0), keep))
    assert told != pytest.approx(balance(layer, X, np.ones_like(keep)))
