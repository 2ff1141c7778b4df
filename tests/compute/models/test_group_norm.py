"""Our group normalisation beside Flax's and PyTorch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mms_sdk.compute.models.group_norm import GroupNorm


def norms(channels: int, groups: int) -> tuple[GroupNorm, nnx.GroupNorm]:
    rng = np.random.default_rng(1)
    ours = GroupNorm(channels, groups=groups)
    theirs = nnx.GroupNorm(channels, num_groups=groups, use_fast_variance=False, rngs=nnx.Rngs(0))
    scale, bias = rng.normal(size=(2, channels)).astype("f4")
    for norm in (ours, theirs):
        norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    return ours, theirs


@pytest.mark.parametrize(("shape", "groups"), [((3, 5, 4, 16), 8), ((2, 7, 8), 2), ((4, 6), 3), ((2, 3, 2, 2, 4), 1)])
def test_values_and_gradients_are_those_of_flax(shape: tuple[int, ...], groups: int) -> None:
    ours, theirs = norms(shape[-1], groups)
    x, weight = np.random.default_rng(0).normal(2, 3, size=(2, *shape)).astype("f4")

    def loss(norm: nnx.Module, x: jax.Array) -> jax.Array:
        return (norm(x) * weight).sum()

    called = nnx.jit(lambda norm, x: norm(x))
    np.testing.assert_allclose(called(ours, x), called(theirs, x), rtol=1e-4, atol=1e-5)
    for argument in (0, 1):
        gradient = nnx.jit(nnx.grad(loss, argnums=argument))
        got, expected = (gradient(norm, jnp.asarray(x)) for norm in (ours, theirs))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            dict(nnx.to_flat_state(got)) if argument == 0 else got,
            dict(nnx.to_flat_state(expected)) if argument == 0 else expected,
        )


def test_values_far_from_zero_are_normalised_as_exactly_as_pytorch_does() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    x = np.random.default_rng(0).normal(1000, 0.5, size=(2, 6, 6, 16)).astype("f4")
    exact = torch.nn.functional.group_norm(torch.tensor(x).double().permute(0, 3, 1, 2), 8, eps=1e-6)
    single = torch.nn.functional.group_norm(torch.tensor(x).permute(0, 3, 1, 2), 8, eps=1e-6)

    ours = GroupNorm(16)(jnp.asarray(x))

    exact, single = (each.permute(0, 2, 3, 1).numpy() for each in (exact, single))
    assert np.abs(ours - exact).max() <= 2 * np.abs(single - exact).max()


def test_half_precision_comes_out_as_it_went_in_and_is_computed_in_single() -> None:
    ours, theirs = norms(16, 8)
    x = np.random.default_rng(0).normal(100, 1, size=(2, 8, 8, 16)).astype("f4")
    half = jnp.asarray(x, jnp.bfloat16)
    nnx.update(ours, jax.tree.map(lambda value: value.astype(jnp.bfloat16), nnx.state(ours)))

    y = ours(half)

    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype("f4"), theirs(half.astype("f4")), rtol=0.02, atol=0.02)
