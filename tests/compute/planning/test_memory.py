"""Memory of a trace beside what XLA reserves for the same function on this machine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.planning.memory import memory
from mms_sdk.compute.planning.operations import operations

FACTOR = 2.5  # between the estimate and what XLA takes on a CPU, where convolutions need room of their own


def attending(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(
        lambda x: x.reshape(x.shape[0], -1, 32),
        nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs),
        nnx.LayerNorm(32, rngs=rngs),
        nnx.Linear(32, 128, rngs=rngs),
        nnx.gelu,
        nnx.Linear(128, 32, rngs=rngs),
        lambda x: x.mean(1),
    )


@pytest.mark.parametrize(
    ("model", "row", "batch"),
    [
        (MLP(num_classes=4, widths=(256, 256)), (8, 8, 3), 512),
        (ConvNet(num_classes=4, widths=(16, 32)), (32, 32, 3), 16),
        (attending, (32, 32, 1), 32),
    ],
    ids=["mlp", "convolutions", "attention"],
)
def test_the_peak_of_a_gradient_is_near_what_xla_takes(model: Any, row: tuple[int, ...], batch: int) -> None:
    made = functional(model, row)
    params, rest = jax.eval_shape(made.init, jax.random.key(0))

    def loss(params: Any, x: Any, y: Any) -> Any:
        outputs, _ = made.apply(params, rest, x, jax.random.key(1))
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    arguments = params, jax.ShapeDtypeStruct((batch, *row), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    rest = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), rest)

    estimated = memory(operations(jax.make_jaxpr(jax.grad(loss))(*arguments))).peak

    reserved = jax.jit(jax.grad(loss)).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert reserved / FACTOR < estimated < reserved * FACTOR


def test_a_chain_of_products_keeps_what_its_gradient_reads() -> None:
    weights = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 6

    def loss(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = jnp.sin(x @ weight)
        return x.sum()

    traced = jax.make_jaxpr(jax.grad(loss))(weights, jax.ShapeDtypeStruct((1000, 64), jnp.float32))

    activation = 1000 * 64 * 4
    assert 6 * activation <= memory(operations(traced)).peak <= 14 * activation


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gradient_is_a_result_also_where_it_is_made_as_a_transpose_or_in_half_the_bytes(dtype: Any) -> None:
    rows, width = 4, 1024

    def gradient(x: Any, y: Any) -> Any:
        return (x.astype(dtype).T @ y.astype(dtype)).T.astype(jnp.float32)

    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)

    assert memory(operations(jax.make_jaxpr(gradient)(x, x))).peak <= 2 * 4 * rows * width


def test_remat_lowers_the_peak_of_a_deep_chain() -> None:
    weights = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 12

    def loss(block: Any, weights: Any, x: Any) -> Any:
        for weight in weights:
            x = block(x, weight)
        return x.sum()

    def block(x: Any, weight: Any) -> Any:
        return jnp.sin(jnp.sin(jnp.sin(x @ weight) @ weight) @ weight)

    x = jax.ShapeDtypeStruct((1000, 64), jnp.float32)
    kept, again = (
        memory(operations(jax.make_jaxpr(jax.grad(lambda w, x, each=each: loss(each, w, x)))(weights, x))).peak
        for each in (block, jax.checkpoint(block))
    )

    assert again < kept / 2
