"""A mixture of experts: a feed-forward layer of which each token uses a few parts, with the parts on many devices.

A router gives each token to its `top_k` experts (Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2).
Each device takes a part of the tokens and keeps a part of the experts along the `expert` axis; two all-to-all
exchanges bring tokens to their experts and back. An expert has room for so many tokens of each device; what comes later
is dropped and passes by, and is counted (Fedus, Zoph and Shazeer 2022, "Switch Transformers", sections 2.1 and 2.2).
"""

from __future__ import annotations

from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from mms_sdk.compute.sharding.mesh import current_mesh
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh

_TOKEN_AXES = ("data", "fsdp", "sequence", "expert")


class Routing(NamedTuple):
    """How the tokens of one call were spread over the experts.

    Attributes:
        balance: float32 scalar: experts · Σ fᵢPᵢ, where fᵢ is the share of the choices that fell on expert i and Pᵢ its
            mean probability (Fedus et al. 2022, equations 4 to 6, without the factor). 1 if all are used alike, and
            more otherwise; add it to the loss times a small number, e.g. 0.01.
        dropped: int32 scalar: choices for which an expert had no room, of tokens × top_k.
        load: float32, shape (experts,): fᵢ.
    """

    balance: jax.Array
    dropped: jax.Array
    load: jax.Array


class MoE(nnx.Module):
    """Experts of two layers each, `activation(x·W)·V`, weighted by the router.

    Probabilities are float32; of several choices the weights add up to 1, of a single one it is the probability.

    Args:
        features: Numbers of a token, in and out.
        hidden: Width of each expert.
        experts: Their number; a multiple of the devices of the `expert` axis.
        top_k: Experts of a token.
        capacity_factor: Room of an expert in multiples of what it would get if all were used alike; None for room for
            every token, so that none is dropped.
        gated: Whether an expert is `(silu(x·W) ⊙ x·U)·V` (SwiGLU; Shazeer 2020) instead of `silu(x·W)·V`.
        rngs: For initial values.

    Raises:
        InvalidRequest: Numbers that do not fit together.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        experts: int,
        top_k: int = 2,
        capacity_factor: float | None = 1.25,
        gated: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if min(features, hidden, experts) < 1 or not 1 <= top_k <= experts:
            raise InvalidRequest(
                f"features, hidden and experts are from 1, and top_k from 1 to experts; got features={features}, "
                f"hidden={hidden}, experts={experts}, top_k={top_k}"
            )
        if capacity_factor is not None and not capacity_factor > 0:
            raise InvalidRequest(f"capacity_factor is above 0, or None for no limit; got {capacity_factor}")
        self.top_k, self.capacity_factor = top_k, capacity_factor
        make = nnx.initializers.lecun_normal(batch_axis=0)

        def expert_kernels(*shape: int) -> nnx.Param[jax.Array]:
            value = make(rngs.params(), (experts, *shape), jnp.float32)
            return nnx.Param(value, out_sharding=("expert", None, None), eager_sharding=False)

        self.router = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (features, experts), jnp.float32))
        self.up = expert_kernels(features, hidden)
        self.gate = expert_kernels(features, hidden) if gated else None
        self.down = expert_kernels(hidden, features)

    def __call__(self, x: jax.Array, *, mesh: Mesh | None = None) -> tuple[jax.Array, Routing]:
        """The weighted answers of the experts.

        Args:
            x: Shape (..., features).
            mesh: If left out that of the trainer whose step is traced; without one, one device has all experts.

        Returns:
            Shape (..., features), of the dtype of `x`; 0 for what was dropped, so add it to `x`. And the routing.

        Raises:
            InvalidRequest: Tokens or experts do not divide over the mesh.
        """
        tokens = x.reshape(-1, x.shape[-1])
        kernels = [self.up[...], self.down[...], *([] if self.gate is None else [self.gate[...]])]
        mesh = mesh or current_mesh()
        if mesh is None:
            out, routing = self._on_part((), 1, tokens, self.router[...], *kernels)
            return out.reshape(x.shape), routing
        axes = tuple(axis for axis in mesh.axis_names if axis in _TOKEN_AXES)
        self._check(mesh, len(tokens), prod(mesh.shape[axis] for axis in axes))
        by_expert = PartitionSpec("expert" if "expert" in mesh.shape else None)
        divided = jax.shard_map(
            partial(self._on_part, axes, mesh.shape.get("expert", 1)),
            mesh=mesh,
            in_specs=(PartitionSpec(axes), PartitionSpec(), *[by_expert] * len(kernels)),
            out_specs=(PartitionSpec(axes), PartitionSpec()),
        )
        out, routing = divided(tokens, self.router[...], *kernels)
        return out.reshape(x.shape), routing

    def _check(self, mesh: Mesh, tokens: int, parts: int) -> None:
        experts, over = self.up.shape[0], mesh.shape.get("expert", 1)
        if experts % over:
            raise InvalidRequest(
                f"experts divide over the axis 'expert'; {experts} over {over} devices do not; use a multiple of {over}"
            )
        if tokens % parts:
            raise InvalidRequest(
                f"tokens divide over {_TOKEN_AXES}; {tokens} over {parts} devices do not; use a batch that makes them "
                f"a multiple of {parts}"
            )

    def _on_part(
        self, axes: tuple[str, ...], over: int, x: jax.Array, router: jax.Array, *kernels: jax.Array
    ) -> tuple[jax.Array, Routing]:
        # What one device does with its tokens and its experts.
        experts = router.shape[1]
        probabilities = jax.nn.softmax(x.astype(jnp.float32) @ router, axis=-1)
        weights, chosen = lax.top_k(probabilities, self.top_k)
        if self.top_k > 1:
            weights /= weights.sum(-1, keepdims=True)
        room = self._room(len(x), experts)
        choices = chosen.T.reshape(-1)  # all first choices come before all second ones
        places = _places(choices, experts)
        # A place beyond the room is outside of the array: writes there are dropped, and reads give 0.
        where = choices, jnp.where(places < room, places, room)
        sent = jnp.zeros((experts, room, x.shape[1]), x.dtype)
        sent = sent.at[where].set(jnp.tile(x, (self.top_k, 1)), mode="drop")
        answers = _exchanged(_experts(_exchanged(sent, over, out=True), *kernels), over, out=False)
        answered = answers.at[where].get(mode="fill", fill_value=0).astype(jnp.float32)
        out = (answered * weights.T.reshape(-1, 1)).reshape(self.top_k, *x.shape).sum(0)
        return out.astype(x.dtype), _routing(axes, probabilities, choices, places >= room)

    def _room(self, tokens: int, experts: int) -> int:
        if self.capacity_factor is None:
            return tokens
        return min(tokens, ceil(self.capacity_factor * self.top_k * tokens / experts))


def _places(choices: jax.Array, experts: int) -> jax.Array:
    # How many came to the same expert before; shape as `choices`.
    came = jax.nn.one_hot(choices, experts, dtype=jnp.int32)
    return (came.cumsum(0) * came).sum(1) - 1


def _exchanged(sent: jax.Array, over: int, *, out: bool) -> jax.Array:
    # Out: (experts, room, features) → (own experts, devices × room, features). And back.
    if over == 1:
        return sent
    split, concat = (0, 1) if out else (1, 0)
    exchanged: jax.Array = lax.all_to_all(sent, "expert", split_axis=split, concat_axis=concat, tiled=True)
    return exchanged


def _experts(x: jax.Array, up: jax.Array, down: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    hidden = jax.nn.silu(jnp.einsum("ecf,efh->ech", x, up.astype(x.dtype)))
    if gate is not None:
        hidden *= jnp.einsum("ecf,efh->ech", x, gate.astype(x.dtype))
    return jnp.einsum("ech,ehf->ecf", hidden, down.astype(x.dtype))


def _routing(axes: tuple[str, ...], probabilities: jax.Array, choices: jax.Array, dropped: jax.Array) -> Routing:
    # Sums over all tokens before they are multiplied: a mean of the products of parts is something else.
    experts = probabilities.shape[1]
    fell = jax.nn.one_hot(choices, experts, dtype=jnp.float32).mean(0)
    probable, lost = probabilities.mean(0), dropped.sum(dtype=jnp.int32)
    if axes:
        fell, probable = lax.pmean((fell, probable), axes)
        lost = lax.psum(lost, axes)
    return Routing(balance=experts * (fell * probable).sum(), dropped=lost, load=fell)
