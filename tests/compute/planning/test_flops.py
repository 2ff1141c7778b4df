"""FLOPs: closed forms, XLA's own analysis, and loops that count as what they unroll to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.planning.flops import flops


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def xla(function: Any, *arguments: Any) -> float:
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


def test_a_step_of_an_mlp_is_six_flops_a_weight_and_row_but_for_the_gradient_of_its_input() -> None:
    sizes, batch = (48, 96, 32, 10), 20
    weights = [shape(a, b) for a, b in pairwise(sizes)]

    def loss(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = jnp.maximum(x @ weight, 0)
        return x.sum()

    work = flops(jax.grad(loss), weights, shape(batch, sizes[0]))

    count = sum(a * b for a, b in pairwise(sizes))
    assert work.products == 6 * count * batch - 2 * sizes[0] * sizes[1] * batch
    assert work.matmul == {"float32": work.products}
    assert not work.unknown


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_is_two_flops_a_tap_channel_and_pixel(kernel: int) -> None:
    def convolve(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    work = flops(convolve, shape(2, 16, 16, 6), shape(kernel, kernel, 6, 12))

    side = 16 - kernel + 1
    assert work.products == 2 * kernel**2 * 6 * 12 * side * side * 2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_and_their_gradients_are_counted_as_by_xla(stride: int, groups: int, padding: str) -> None:
    def loss(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        ).sum()

    arguments = shape(3, 17, 14, 8), shape(3, 3, 8 // groups, 12)

    work = flops(jax.grad(loss, argnums=(0, 1)), *arguments)

    assert work.total == pytest.approx(xla(jax.grad(loss, argnums=(0, 1)), *arguments), rel=0.02)


def test_attention_is_four_flops_a_pair_of_tokens_and_channel() -> None:
    batch, tokens, heads, width = 2, 24, 4, 16
    each = shape(batch, tokens, heads, width)

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)

    assert flops(attend, each, each, each).products == 4 * batch * heads * tokens**2 * width


@pytest.mark.parametrize("family", [MLP(num_classes=3, widths=(64, 32)), ConvNet(num_classes=3, widths=(16,))])
def test_a_training_step_of_a_family_is_counted_as_by_xla(family: Any) -> None:
    model = functional(family, (12, 12, 3))
    params, rest = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params: Any, x: Any) -> Any:
        return model.apply(params, rest, x, None)[0].sum()

    arguments = params, shape(8, 12, 12, 3)

    assert flops(jax.grad(loss), *arguments).total == pytest.approx(xla(jax.grad(loss), *arguments), rel=0.02)


def test_a_scan_counts_as_what_it_unrolls_to_forward_and_backward() -> None:
    def through(unroll: Any, w: Any, x: Any) -> Any:
        def body(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ w), None

        if unroll:
            for each in w:
                x, _ = body(x, each)
            return x.sum()
        return jax.lax.scan(body, x, w)[0].sum()

    arguments = shape(7, 16, 16), shape(4, 16)

    looped, unrolled = (
        flops(jax.grad(lambda w, x, unroll=unroll: through(unroll, w, x)), *arguments) for unroll in (False, True)
    )

    assert unrolled.products == (3 * 7 - 1) * 2 * 4 * 16 * 16  # nobody asks for the gradient of the first input
    assert looped.products == 3 * 7 * 2 * 4 * 16 * 16  # a loop's rounds are alike, and so is its first
    assert not looped.unknown


def test_what_remat_computes_again_counts_again() -> None:
    def loss(w: Any, x: Any) -> Any:
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    arguments = shape(16, 16), shape(4, 16)
    product = 2 * 4 * 16 * 16

    plain, again = (flops(jax.value_and_grad(each), *arguments) for each in (loss, jax.checkpoint(loss)))

    assert plain.products == 5 * product
    assert again.products == 7 * product


def test_of_a_choice_the_larger_branch_counts() -> None:
    def chosen(pick: Any, x: Any) -> Any:
        return jax.lax.cond(pick, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(chosen, shape(dtype=bool), shape(8, 8)).products == 2 * 2 * 8**3


def test_a_loop_of_unknown_length_is_said_and_counted_once() -> None:
    def loop(x: Any) -> Any:
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    work = flops(loop, shape(8, 8))

    assert work.products == 2 * 8**3
    assert "a while loop" in work.unknown[0]


def test_calls_with_derivatives_of_their_own_and_jit_are_looked_into() -> None:
    @jax.custom_vjp
    def product(x: Any) -> Any:
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

    work = flops(jax.value_and_grad(lambda x: jax.jit(product)(x).sum()), shape(8, 8))

    assert work.products == 3 * 2 * 8**3


def test_a_mapped_function_counts_what_one_device_does() -> None:
    from jax.sharding import AxisType, PartitionSpec

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows)

    assert flops(mapped, shape(16, 8), shape(8, 8)).products == 2 * 4 * 8 * 8


def test_products_are_told_apart_by_what_is_multiplied() -> None:
    def both(x: Any) -> Any:
        return (x @ x).astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)

    assert flops(both, shape(8, 8)).matmul == {"float32": 2 * 8**3, "bfloat16": 2 * 8**3}


def test_shapes_are_all_that_is_needed() -> None:
    weight = shape(100_000, 100_000)  # 40 GB, were it made

    assert flops(jnp.matmul, shape(2, 100_000), weight).products == 2 * 2 * 1e10
