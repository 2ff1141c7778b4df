"""A mixture of experts: a feed-forward layer of which each token uses a few parts, with the parts on many devices.

A router gives each token to its `top_k` experts (Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2).
Each device takes a part of the tokens and keeps a part of the experts along the `expert` axis; two all-to-all
exchanges bring tokens to their experts and back. An expert has room for so many tokens of each device; what comes later
is dropped and passes by, and is counted (Fedus, Zoph and Shazeer 2022, "Switch Transformers", sections 2.1 and 2.2).
Without such an axis every device has all experts, and nothing is exchanged.
"""

from __future__ import annotations

from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from mms_sdk.compute.models.options import check_at_least
from mms_sdk.compute.sharding.mesh import current_mesh
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh

_TOKEN_AXES = ("data", "fsdp", "sequence", "expert")
Said: TypeAlias = dict[str, jax.Array]
"""What a mixture says of a call, by the variable it is kept in."""


class Routed(nnx.Variable[jax.Array]):
    """What a mixture says of its last call: float32, in the state that is not trained; stacked blocks have one each."""


class MoE(nnx.Module):
    """Experts of two layers each, `silu(x·up)·down`, weighted by the router.

    Probabilities are float32; of several choices the weights add up to 1, of a single one it is the probability: a
    share of the only choice would teach the router nothing. The trainer adds a hundredth of `balance_loss`, the mean
    over the mixtures of a model, to the loss, or a few experts would get all tokens; and a thousandth of
    `router_z_loss`, where there is one.

    Args:
        features: Numbers of a token, in and out.
        hidden: Width of each expert.
        experts: Their number; a multiple of the devices of the `expert` axis.
        top_k: Experts of a token.
        capacity_factor: Room of an expert in training, in multiples of what it would get if all were used alike; None
            for room for every token, so that none is dropped, for experts / top_k times the work. Outside training
            there is room for every token: a row gets the same scores whatever stands beside it.
        gated: Whether an expert is `(silu(x·gate) ⊙ x·up)·down` instead (SwiGLU; Shazeer 2020).
        router_z_loss: Whether large scores of the router cost something, which keeps large models stable.
        rngs: For initial values.

    Attributes:
        balance_loss: Scalar: experts · Σ fᵢPᵢ, where fᵢ is the share of the choices that fell on expert i and Pᵢ its
            mean probability (Fedus et al. 2022, equations 4 to 6, without the factor). 1 if all are used alike, and
            up to their number otherwise.
        dropped: Scalar: share of the choices for which an expert had no room.
        load: Shape (experts,): fᵢ.
        router_z_loss: Scalar: mean over the tokens of (log Σ exp of the router's scores)² (Zoph et al. 2022, "ST-MoE",
            equation 5); None if it was not asked for.

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
        router_z_loss: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check_at_least(1, features=features, hidden=hidden)
        check_experts(experts, top_k, capacity_factor)
        self.top_k, self.capacity_factor = top_k, capacity_factor
        self.deterministic = False  # Flax's word, which `train()` and `eval()` set
        make = nnx.initializers.lecun_normal(batch_axis=0)

        def expert_kernels(*shape: int) -> nnx.Param[jax.Array]:
            value = make(rngs.params(), (experts, *shape), jnp.float32)
            return nnx.Param(value, out_sharding=("expert", None, None), eager_sharding=False)

        self.router = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (features, experts), jnp.float32))
        self.up = expert_kernels(features, hidden)
        self.gate = expert_kernels(features, hidden) if gated else None
        self.down = expert_kernels(hidden, features)
        self.balance_loss = Routed(jnp.ones((), jnp.float32))
        self.dropped = Routed(jnp.zeros((), jnp.float32))
        self.load = Routed(jnp.full((experts,), 1 / experts, jnp.float32))
        self.router_z_loss = Routed(jnp.zeros((), jnp.float32)) if router_z_loss else None

    def __call__(self, x: jax.Array, keep: jax.Array | None = None, *, mesh: Mesh | None = None) -> jax.Array:
        """The weighted answers of the experts.

        Args:
            x: Shape (..., features).
            keep: bool, shape (...): which tokens are sent and counted, False for padding; None for all.
            mesh: If left out that of the trainer whose step is traced; without one, one device has all experts.

        Returns:
            Shape (..., features), of the dtype of `x`; 0 for what was not sent or was dropped, so add it to `x`.

        Raises:
            InvalidRequest: Tokens or experts do not divide over the mesh.
        """
        tokens = x.reshape(-1, x.shape[-1])
        kept = jnp.ones(tokens.shape[:1], bool) if keep is None else keep.reshape(-1)
        kernels = [self.up[...], self.down[...], *([] if self.gate is None else [self.gate[...]])]
        out, said = self._routed(mesh or current_mesh(), tokens, kept, self.router[...], *kernels)
        for name, value in said.items():
            getattr(self, name).set_value(value)
        return out.reshape(x.shape)

    def _routed(self, mesh: Mesh | None, tokens: jax.Array, *given: jax.Array) -> tuple[jax.Array, Said]:
        # Each device on its tokens; `given` is which of them count, the router and the kernels.
        axes = tuple(axis for axis in mesh.axis_names if axis in _TOKEN_AXES) if mesh else ()
        parts = prod(mesh.shape[axis] for axis in axes) if mesh else 1
        if mesh is None or parts == 1:
            return self._on_part((), 1, tokens, *given)
        self._check(mesh, tokens.shape[0], parts)
        by_token, by_expert = PartitionSpec(axes), PartitionSpec("expert" if "expert" in mesh.shape else None)
        divided = jax.shard_map(
            partial(self._on_part, axes, mesh.shape.get("expert", 1)),
            mesh=mesh,
            in_specs=(by_token, by_token, PartitionSpec(), *[by_expert] * (len(given) - 2)),
            out_specs=(by_token, PartitionSpec()),
        )
        answered: tuple[jax.Array, Said] = divided(tokens, *given)
        return answered

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
        self, axes: tuple[str, ...], over: int, x: jax.Array, keep: jax.Array, router: jax.Array, *kernels: jax.Array
    ) -> tuple[jax.Array, Said]:
        # What one device does with its tokens and its experts.
        experts = router.shape[1]
        # In float32: a choice between two experts that are almost equal must not hang on the precision of the rest.
        scores = x.astype(jnp.float32) @ router.astype(jnp.float32)
        probabilities = jax.nn.softmax(scores, axis=-1)
        weights, chosen = lax.top_k(probabilities, self.top_k)
        if self.top_k > 1:
            weights /= weights.sum(-1, keepdims=True)
        room = self._room(x.shape[0], experts)
        choices = chosen.T.reshape(-1)  # all first choices come before all second ones
        counted = jnp.tile(keep, self.top_k)
        came = jax.nn.one_hot(choices, experts, dtype=jnp.int32) * counted[:, None]
        places = (came.cumsum(0) * came).sum(1) - 1  # how many came to the same expert before
        goes = counted & (places < room)
        # A place beyond the room is outside of the array: writes there are dropped, and reads give 0.
        where = choices, jnp.where(goes, places, room)
        sent = jnp.zeros((experts, room, x.shape[1]), x.dtype)
        sent = sent.at[where].set(jnp.tile(x, (self.top_k, 1)), mode="drop")
        answers = _exchanged(_experts(_exchanged(sent, over, out=True), *kernels), over, out=False)
        answered = answers.at[where].get(mode="fill", fill_value=0).astype(jnp.float32)
        out = (answered * weights.T.reshape(-1, 1)).reshape(self.top_k, *x.shape).sum(0)
        said = _said(axes, probabilities, keep, came.sum(0), counted & ~goes)
        if self.router_z_loss is not None:
            said["router_z_loss"] = _mean(axes, jnp.square(jax.nn.logsumexp(scores, axis=-1)), keep)
        return out.astype(x.dtype), said

    def _room(self, tokens: int, experts: int) -> int:
        if self.capacity_factor is None or self.deterministic:
            return tokens
        return min(tokens, ceil(self.capacity_factor * self.top_k * tokens / experts))


def check_experts(experts: int, top_k: int, capacity_factor: float | None) -> None:
    """Sees to it that a token can go through so many experts, and they have room for some.

    Raises:
        InvalidRequest: It cannot, or they have not.
    """
    check_at_least(1, experts=experts)
    if not 1 <= top_k <= experts:
        raise InvalidRequest(f"a token goes through 1 to {experts} of {experts} experts; got {top_k}")
    if capacity_factor is not None and not capacity_factor > 0:
        raise InvalidRequest(f"capacity_factor is above 0, or None for no limit; got {capacity_factor}")


def _exchanged(sent: jax.Array, over: int, *, out: bool) -> jax.Array:
    # Out: (experts, room, features) → (own experts, devices × room, features). And back.
    if over == 1:
        return sent
    split, concat = (0, 1) if out else (1, 0)
    exchanged: jax.Array = lax.all_to_all(sent, "expert", split_axis=split, concat_axis=concat, tiled=True)
    return exchanged


def _experts(x: jax.Array, up: jax.Array, down: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    hidden = jnp.einsum("ecf,efh->ech", x, up.astype(x.dtype))
    if gate is None:
        hidden = jax.nn.silu(hidden)
    else:
        hidden *= jax.nn.silu(jnp.einsum("ecf,efh->ech", x, gate.astype(x.dtype)))
    return jnp.einsum("ech,ehf->ecf", hidden, down.astype(x.dtype))


def _said(
    axes: tuple[str, ...], probabilities: jax.Array, keep: jax.Array, came: jax.Array, dropped: jax.Array
) -> Said:
    # Sums over all tokens before they are multiplied: a mean of the products of parts is something else.
    kept = keep.astype(jnp.float32)
    sums = kept.sum(), (probabilities * kept[:, None]).sum(0), came.astype(jnp.float32), dropped.sum(dtype=jnp.float32)
    tokens, probable, fell, lost = lax.psum(sums, axes) if axes else sums
    choices = jnp.maximum(fell.sum(), 1)
    load = fell / choices
    balance = probabilities.shape[1] * (load * probable).sum() / jnp.maximum(tokens, 1)
    return {"balance_loss": balance, "dropped": lost / choices, "load": load}


def _mean(axes: tuple[str, ...], values: jax.Array, keep: jax.Array) -> jax.Array:
    # Over the tokens of all devices that count.
    sums = jnp.where(keep, values, 0).sum(), keep.sum(dtype=jnp.float32)
    total, tokens = lax.psum(sums, axes) if axes else sums
    mean: jax.Array = total / jnp.maximum(tokens, 1)
    return mean
