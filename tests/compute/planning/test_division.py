"""Divided dimensions followed through attention and a loop, as Megatron-LM counts its exchanges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mms_sdk.compute.planning.division import Division, divide
from mms_sdk.compute.planning.flops import count
from mms_sdk.compute.planning.operations import operations

BATCH, TOKENS, HEADS, WIDTH = 2, 8, 4, 16
WIDE = HEADS * WIDTH
COLUMN, ROW = ((), ("tensor",)), (("tensor",), ())
SIZES = {"data": 1, "tensor": 4}


def attention(x: Any, query: Any, key: Any, value: Any, out: Any) -> Any:
    def heads(weight: Any) -> Any:
        return (x @ weight).reshape(BATCH, TOKENS, HEADS, WIDTH)

    scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads(query), heads(key)))
    return jnp.einsum("bhqk,bkhd->bqhd", scores, heads(value)).reshape(BATCH, TOKENS, WIDE) @ out


def traced(function: Any, *arguments: Any) -> Any:
    return operations(jax.make_jaxpr(function)(*arguments))


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def sums(division: Division) -> list[tuple[str, tuple[str, ...], int, float]]:
    return [(each.kind, each.axes, each.bytes, each.times) for each in division.exchanges]


def test_attention_over_divided_heads_sums_once_forward() -> None:
    weight = shape(WIDE, WIDE)
    found = traced(attention, shape(BATCH, TOKENS, WIDE), weight, weight, weight, weight)

    division = divide(found, [(), COLUMN, COLUMN, COLUMN, ROW], SIZES)

    assert sums(division) == [("all-reduce", ("tensor",), 4 * BATCH * TOKENS * WIDE, 1.0)]
    assert count(found, division.work_ways).products == count(found).products / 4


def test_a_loop_over_layers_sums_once_a_round() -> None:
    def layers(x: Any, up: Any, down: Any) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.maximum(x @ w[0], 0) @ w[1], None), x, (up, down))[0]

    found = traced(layers, shape(8, 16), shape(5, 16, 64), shape(5, 64, 16))

    division = divide(found, [(), ((), *COLUMN), ((), *ROW)], SIZES)

    assert sums(division) == [("all-reduce", ("tensor",), 4 * 8 * 16, 5.0)]
    assert count(found, division.work_ways).products == count(found).products / 4


def test_what_cannot_stay_divided_is_brought_together() -> None:
    found = traced(lambda w: jnp.sort(w, axis=-1), shape(6, 8))

    assert sums(divide(found, [COLUMN], SIZES)) == [("all-gather", ("tensor",), 4 * 6 * 8, 1.0)]
    assert sums(divide(found, [((), ())], SIZES)) == []


def test_a_table_divided_by_rows_leaves_parts_of_a_sum_and_by_features_does_not() -> None:
    found = traced(lambda table: table[jnp.arange(6)], shape(32, 8))

    assert [each.kind for each in divide(found, [ROW], SIZES).exchanges] == ["all-reduce"]
    assert divide(found, [COLUMN], SIZES).exchanges == []
