"""Attention over a sequence that is divided over devices, by a ring or by an exchange of heads.

Each device holds a part of the queries, keys and values. In a *ring* the keys and values go round from device to
device while each adds up what its queries see (Liu, Zaharia and Abbeel 2023, "Ring Attention with Blockwise
Transformers", section 3): nobody ever holds the whole sequence. By an *exchange* every device first trades its part of
the sequence for the whole sequence of a part of the heads (Jacobs et al. 2023, "DeepSpeed Ulysses", section 3): less to
send, but there have to be as many heads as devices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mms_sdk.compute.sharding.mesh import batch_axes, current_mesh
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh

_MASKED = -1e30  # not an infinity, whose difference from itself is no number


def ring_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False, mesh: Mesh | None = None
) -> jax.Array:
    """Softmax attention, scaled by 1/√width, with keys and values going round the `sequence` axis.

    Scores and sums are float32 whatever the inputs are. The gradient goes round the ring a second time and keeps one
    number a query and head instead of the scores.

    Args:
        query: Shape (batch, length, heads, width).
        key: Shape (batch, length, key heads, width); heads are a multiple of key heads, and each group of them shares
            one (grouped-query attention).
        value: Shape (batch, length, key heads, value width).
        causal: Whether a place sees only itself and those before it.
        mesh: If left out that of the trainer whose step is traced; without one, one device has the whole sequence.

    Returns:
        Shape (batch, length, heads, value width), of the query's dtype.

    Raises:
        InvalidRequest: Shapes that do not fit together, or do not divide over the mesh.
    """
    _check_shapes(query, key, value)
    return _over_sequence(_ring, query, key, value, causal, mesh or current_mesh())


def exchanged_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False, mesh: Mesh | None = None
) -> jax.Array:
    """The same as `ring_attention`, by two all-to-all exchanges over the `sequence` axis (Ulysses).

    It takes and returns the same. The heads are a multiple of the devices of the axis; key heads that are fewer are
    sent to several of them.

    Raises:
        InvalidRequest: Shapes that do not fit together, or do not divide over the mesh.
    """
    _check_shapes(query, key, value)
    return _over_sequence(_exchanged, query, key, value, causal, mesh or current_mesh())


class _Ring(NamedTuple):
    # Hashable, since it chooses what is compiled.
    size: int
    causal: bool


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    shapes = [tuple(each.shape) for each in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes):
        raise InvalidRequest(f"attention takes query, key, value of shape (batch, length, heads, width); got {shapes}")
    asked, keys, values = shapes
    if asked[:2] != keys[:2] or keys[:3] != values[:3] or asked[3] != keys[3] or asked[2] % keys[2]:
        raise InvalidRequest(
            f"query, key and value have the same batch and length, query and key the same width, and heads are a "
            f"multiple of key heads; got {shapes}"
        )


def _over_sequence(
    attend: Callable[..., Any], query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, mesh: Mesh | None
) -> jax.Array:
    if mesh is None:
        return _attend(query, key, value, causal)
    ring = _Ring(mesh.shape.get("sequence", 1), causal)
    spec = _spec(mesh, query, key)
    # The check of what varies over which axis does not know gradients that are written by hand.
    divided = jax.shard_map(partial(attend, ring), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    out: jax.Array = divided(query, key, value)
    return out


def _spec(mesh: Mesh, query: jax.Array, key: jax.Array) -> PartitionSpec:
    batch, length = query.shape[:2]
    axes = batch_axes(mesh)
    for size, over in ((batch, axes), (length, ("sequence",))):
        ways = prod(mesh.shape.get(axis, 1) for axis in over)
        if size % ways:
            raise InvalidRequest(
                f"a batch divides over {axes} and a length over 'sequence'; {size} of {tuple(query.shape)} does not "
                f"over {ways} devices; pad it to a multiple of {ways}"
            )
    tensor = mesh.shape.get("tensor", 1)
    # Heads are divided over `tensor`, where a layer before them did it and whole groups come out.
    by_heads = "tensor" if tensor > 1 and key.shape[2] % tensor == 0 else None
    return PartitionSpec(axes or None, "sequence" if "sequence" in mesh.shape else None, by_heads, None)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    # The whole sequence on one device.
    out: jax.Array = _ring(_Ring(1, causal), query, key, value)
    return out


def _exchanged(ring: _Ring, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    if ring.size == 1:
        return _attend(query, key, value, ring.causal)
    heads, shared = query.shape[2], key.shape[2]
    if heads % ring.size:
        raise InvalidRequest(
            f"an exchange gives each device of the sequence axis some of the heads; {heads} heads do not divide over "
            f"{ring.size} devices; use a multiple of {ring.size}, or ring_attention"
        )
    copies = ring.size // gcd(ring.size, shared)
    key, value = (jnp.repeat(each, copies, axis=2) for each in (key, value))
    trade = partial(lax.all_to_all, axis_name="sequence", tiled=True)
    query, key, value = (trade(each, split_axis=2, concat_axis=1) for each in (query, key, value))
    out: jax.Array = trade(_attend(query, key, value, ring.causal), split_axis=1, concat_axis=2)
    return out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: _Ring, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _forward(ring, query, key, value)[0]


def _forward(ring: _Ring, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    # Blockwise softmax: the largest score so far, the sum of exponentials below it, and the weighted values.
    asked = _grouped(query, key.shape[2])
    B, L, K, G, _ = asked.shape
    begin = (
        key,
        value,
        jnp.full((B, K, G, L), _MASKED, jnp.float32),
        jnp.zeros((B, K, G, L), jnp.float32),
        jnp.zeros((B, L, K, G, value.shape[-1]), jnp.float32),
    )

    def one(carried: Any, turn: jax.Array) -> tuple[Any, None]:
        keys, values, top, total, added = carried
        scores = _scores(ring, asked, keys, turn)
        higher = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - higher[..., None])
        before = jnp.exp(top - higher)
        seen = jnp.einsum("bkgqs,bskv->bqkgv", weights, values.astype(jnp.float32))
        added = added * _by_place(before) + seen
        total = total * before + weights.sum(-1)
        return (*_passed_on(ring, keys, values), higher, total, added), None

    (_, _, top, total, added), _ = lax.scan(one, begin, jnp.arange(ring.size))
    out = (added / _by_place(total)).reshape(*query.shape[:3], value.shape[-1]).astype(query.dtype)
    return out, (query, key, value, out, top + jnp.log(total))


def _backward(ring: _Ring, kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Scores are made again; the gradients of keys and values travel with them and are at home after a full round.
    query, key, value, out, logs = kept
    asked, given = _grouped(query, key.shape[2]), _grouped(cotangent, key.shape[2])
    inner = (given * _grouped(out, key.shape[2])).sum(-1).transpose(0, 2, 3, 1)
    nothing = tuple(jnp.zeros(each.shape, jnp.float32) for each in (key, value))
    begin = (key, value, *nothing, jnp.zeros(asked.shape, jnp.float32))

    def one(carried: Any, turn: jax.Array) -> tuple[Any, None]:
        keys, values, to_keys, to_values, to_asked = carried
        weights = jnp.exp(_scores(ring, asked, keys, turn) - logs[..., None])
        to_values += jnp.einsum("bkgqs,bqkgv->bskv", weights, given)
        to_weights = jnp.einsum("bqkgv,bskv->bkgqs", given, values.astype(jnp.float32))
        to_scores = weights * (to_weights - inner[..., None]) * query.shape[-1] ** -0.5
        to_keys += jnp.einsum("bkgqs,bqkgd->bskd", to_scores, asked)
        to_asked += jnp.einsum("bkgqs,bskd->bqkgd", to_scores, keys.astype(jnp.float32))
        return (*_passed_on(ring, keys, values, to_keys, to_values), to_asked), None

    (_, _, to_keys, to_values, to_asked), _ = lax.scan(one, begin, jnp.arange(ring.size))
    return (
        to_asked.reshape(query.shape).astype(query.dtype),
        to_keys.astype(key.dtype),
        to_values.astype(value.dtype),
    )


_ring.defvjp(_forward, _backward)


def _scores(ring: _Ring, asked: jax.Array, keys: jax.Array, turn: jax.Array) -> jax.Array:
    # Shape (batch, key heads, group, queries, keys), float32.
    scores: jax.Array = jnp.einsum("bqkgd,bskd->bkgqs", asked, keys.astype(jnp.float32)) * asked.shape[-1] ** -0.5
    if not ring.causal:
        return scores
    mine = lax.axis_index("sequence") if ring.size > 1 else 0
    length = asked.shape[1]
    places = mine * length + jnp.arange(length)
    theirs = (mine - turn) % ring.size * length + jnp.arange(keys.shape[1])
    return jnp.where((places[:, None] >= theirs[None, :])[None, None, None], scores, _MASKED)


def _grouped(array: jax.Array, shared: int) -> jax.Array:
    # (batch, length, heads, width) → (batch, length, key heads, group, width), float32.
    B, L, H, D = array.shape
    return array.reshape(B, L, shared, H // shared, D).astype(jnp.float32)


def _by_place(array: jax.Array) -> jax.Array:
    by_place: jax.Array = array.transpose(0, 3, 1, 2)[..., None]
    return by_place


def _passed_on(ring: _Ring, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    if ring.size == 1:
        return arrays
    around = [(at, (at + 1) % ring.size) for at in range(ring.size)]
    return tuple(lax.ppermute(each, "sequence", around) for each in arrays)
