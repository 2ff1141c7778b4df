"""Batch normalisation beside Flax's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mms_sdk.compute.models.batch_norm import BatchNorm


def make(kind: Any) -> Any:
    return kind(6, momentum=0.8, epsilon=1e-3, rngs=nnx.Rngs(0))


@nnx.jit
def gradient(module: Any, x: jax.Array) -> Any:
    def loss(module: Any, x: jax.Array) -> Any:
        y = module(x)
        return jnp.square(y.astype(jnp.float32) - 0.3).sum(), y

    return nnx.value_and_grad(loss, has_aux=True, argnums=(0, 1))(module, x)


def bits(tree: Any) -> list[Any]:
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 7, 6), (2, 4, 3, 6)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_running_averages_are_those_of_flax_bit_for_bit(
    dtype: str, shape: tuple[int, ...], training: bool
) -> None:
    ours, theirs = make(BatchNorm), make(nnx.BatchNorm)
    for module in (ours, theirs):
        module.set_attributes(use_running_average=not training)
        module.scale[...] = jnp.linspace(0.5, 2.0, 6)

    for step in range(3):
        x = (3 * jax.random.normal(jax.random.key(step), shape) + 1).astype(dtype)
        assert bits(gradient(ours, x)) == bits(gradient(theirs, x))
        assert bits(nnx.state(ours)) == bits(nnx.state(theirs))

    assert (np.asarray(ours.mean[...]) != 0).all() == training


def test_it_is_taken_for_one_of_flax_and_obeys_the_call() -> None:
    norm, x = make(BatchNorm), jnp.ones((4, 6))

    assert isinstance(norm, nnx.BatchNorm)
    np.testing.assert_allclose(norm(x, use_running_average=True), 1 / np.sqrt(1 + 1e-3), rtol=1e-6)
    np.testing.assert_allclose(norm(x, False), 0, atol=1e-6)


def test_two_of_the_same_shapes_are_one_function_in_the_trace() -> None:
    def both(x: jax.Array) -> Any:
        return make(BatchNorm)(make(BatchNorm)(x))

    called = [each for each in jax.make_jaxpr(both)(jnp.ones((4, 6))).eqns if each.primitive.name == "jit"]

    first, second = (each.params["jaxpr"] for each in called if each.params["name"] == "_in_training")
    assert first is second


def test_a_network_in_evaluation_runs_in_a_function_that_holds_it() -> None:
    norm, x = make(BatchNorm), jnp.linspace(-1.0, 1.0, 24).reshape(4, 6)
    norm.eval()

    inside = nnx.jit(norm)(x)

    np.testing.assert_array_equal(inside, jax.jit(lambda x: norm(x))(x))
    np.testing.assert_allclose(inside, x / np.sqrt(1 + 1e-3), rtol=1e-6)
