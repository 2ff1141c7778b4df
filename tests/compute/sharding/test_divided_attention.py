"""Attention over a divided sequence, against softmax attention in NumPy and its gradient by JAX on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mms_sdk.compute.sharding.attention import exchanged_attention, ring_attention
from mms_sdk.compute.sharding.mesh import make_mesh, using
from mms_sdk.errors import InvalidRequest

BATCH, LENGTH, WIDTH, VALUES = 2, 16, 8, 6
TOWARDS = np.random.default_rng(1).normal(size=(BATCH, LENGTH, 8, VALUES)).astype(np.float32)
BOTH = pytest.mark.parametrize("attend", [ring_attention, exchanged_attention])


@cache
def inputs(heads: int = 8, shared: int = 8) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = (heads, WIDTH), (shared, WIDTH), (shared, VALUES)
    query, key, value = (rng.normal(size=(BATCH, LENGTH, *each)).astype(np.float32) for each in shapes)
    return query * 3, key, value


def written_out(query: Any, key: Any, value: Any, *, causal: bool) -> Any:
    """Every head by itself, over the whole sequence."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(jnp.asarray(each), group, axis=2) for each in (key, value))
    scores = jnp.einsum("bqhd,bshd->bhqs", query, key) / jnp.sqrt(query.shape[-1])
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None], scores, -jnp.inf)
    return jnp.einsum("bhqs,bshv->bqhv", jax.nn.softmax(scores), value)


@cache
def plain_gradient(heads: int, shared: int, *, causal: bool) -> tuple[Any, Any, Any]:
    def loss(arrays: Any) -> Any:
        return (written_out(*arrays, causal=causal) * TOWARDS).sum()

    gradient: tuple[Any, Any, Any] = jax.jit(jax.grad(loss))(inputs(heads, shared))
    return gradient


def in_numpy(query: Any, key: Any, value: Any, *, causal: bool) -> Any:
    """One query after the other, in double precision."""
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    group = query.shape[2] // key.shape[2]
    for b, q, h in np.ndindex(*query.shape[:3]):
        seen = q + 1 if causal else LENGTH
        scores = key[b, :seen, h // group].astype(float) @ query[b, q, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, q, h] = weights / weights.sum() @ value[b, :seen, h // group]
    return out


def seen_by_a_device(attend: Callable[..., Any], given: Any) -> list[tuple[int, ...]]:
    """Shape of the queries inside of `shard_map`."""
    equations = jax.make_jaxpr(attend)(*given).eqns
    return [each.params["jaxpr"].invars[0].aval.shape for each in equations if each.primitive.name == "shard_map"]


def over(devices: int) -> Any:
    return make_mesh({"sequence": devices}, jax.devices()[:devices])


@BOTH
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "devices", [1, pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_attention_over_a_divided_sequence_and_its_gradient_are_those_of_plain_attention(
    attend: Callable[..., Any], devices: int, causal: bool
) -> None:
    given, mesh = inputs(8, 4), over(devices)

    def loss(arrays: Any) -> Any:
        out = attend(*arrays, causal=causal, mesh=mesh)
        return (out * TOWARDS).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)

    expected = plain_gradient(8, 4, causal=causal)
    np.testing.assert_allclose(out, in_numpy(*given, causal=causal), atol=1e-5)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-5)


@BOTH
@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (4, 2), (8, 8), (12, 3), (12, 6)])
def test_groups_of_heads_share_a_key_head_wherever_they_lie(
    attend: Callable[..., Any], heads: int, shared: int
) -> None:
    given = inputs(heads, shared)

    out = jax.jit(lambda *arrays: attend(*arrays, causal=True, mesh=over(4)))(*given)

    np.testing.assert_allclose(out, in_numpy(*given, causal=True), atol=1e-5)


@BOTH
@pytest.mark.parametrize(("shared", "divided"), [(2, True), (1, False)])
def test_batch_and_whole_groups_of_heads_are_divided_over_the_other_axes_of_the_mesh(
    attend: Callable[..., Any], shared: int, divided: bool
) -> None:
    given, mesh = inputs(8, shared), make_mesh({"data": 2, "sequence": 2, "tensor": 2})

    def loss(arrays: Any) -> Any:
        return (attend(*arrays, causal=True, mesh=mesh) * TOWARDS).sum()

    grads = jax.jit(jax.grad(loss))(given)

    expected = plain_gradient(8, shared, causal=True)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-5)
    heads = {8 // 2 if divided else 8}
    assert {shape[2] for shape in seen_by_a_device(lambda *arrays: attend(*arrays, mesh=mesh), given)} == heads


@BOTH
def test_half_precision_inputs_are_added_up_in_float32(attend: Callable[..., Any]) -> None:
    given = [jnp.asarray(each, jnp.bfloat16) for each in inputs(8, 4)]

    out = attend(*given, causal=True, mesh=over(4))

    expected = in_numpy(*(np.asarray(each, np.float32) for each in given), causal=True)
    assert out.dtype == jnp.bfloat16
    # Rounding the result to 8 bits is all that is lost.
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=2**-8, atol=2**-8)


@BOTH
def test_without_a_mesh_that_of_the_trainer_counts_and_else_one_device_has_it_all(attend: Callable[..., Any]) -> None:
    given = inputs()
    plain = jax.make_jaxpr(lambda *arrays: attend(*arrays))(*given)
    with using(over(4)):
        divided = jax.make_jaxpr(lambda *arrays: attend(*arrays))(*given)

    assert "shard_map" not in str(plain)
    assert "shard_map" in str(divided)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(2, 16, 8), (2, 16, 8), (2, 16, 8)], ["(batch, length, heads, width)", "(2, 16, 8)"]),
        ([(2, 16, 8, 4), (2, 16, 3, 4), (2, 16, 3, 4)], ["multiple of key heads", "(2, 16, 3, 4)"]),
        ([(2, 16, 8, 4), (2, 8, 8, 4), (2, 8, 8, 4)], ["same batch and length"]),
        ([(2, 15, 8, 4), (2, 15, 8, 4), (2, 15, 8, 4)], ["'sequence'", "15", "multiple of 4"]),
    ],
)
@BOTH
def test_shapes_that_do_not_fit_are_refused(
    attend: Callable[..., Any], shapes: list[tuple[int, ...]], words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        attend(*map(jnp.zeros, shapes), mesh=over(4))

    assert all(word in refused.value.message for word in words), refused.value.message


def test_an_exchange_needs_a_head_for_each_device() -> None:
    with pytest.raises(InvalidRequest, match=r"6 heads do not divide over 4 devices; .* or ring_attention"):
        exchanged_attention(*inputs(6, 6), mesh=over(4))
