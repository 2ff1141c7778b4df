"""A mixture of experts in which every expert sees every token: exact, and as costly as it sounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.errors import InvalidRequest


class BalanceLoss(nnx.Variable[jax.Array]):
    """What a mixture of experts adds to the loss, float32; written by each call.

    It stands in the state that is not trained, under a path that ends in `balance_loss`; stacked blocks have one value
    each. 1 when every expert gets its share, and as much as the number of experts when one gets all.
    """


class DenseExperts(nnx.Module):
    """Each token goes through its best experts, weighted by a softmax over those (Jiang et al. 2024, §2.1).

    A single one is weighted by its chance among all.

    All experts are computed for all tokens and most results weighted by 0: nothing is dropped and no token moves, for
    n / k times the work. It suits few or small experts on one device.

    Args:
        width: Features in and out.
        inner: Features between, of each expert.
        experts: How many, n.
        experts_per_token: How many of them a token goes through, k.

    Raises:
        InvalidRequest: k is not between 1 and n.
    """

    def __init__(self, width: int, inner: int, *, experts: int, experts_per_token: int, rngs: nnx.Rngs) -> None:
        check_experts(experts, experts_per_token)
        self.experts, self.chosen = experts, experts_per_token
        self.router = nnx.Linear(width, experts, use_bias=False, rngs=rngs)
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.gate = nnx.Param(init(rngs.params(), (experts, width, inner)))
        self.up = nnx.Param(init(rngs.params(), (experts, width, inner)))
        self.down = nnx.Param(init(rngs.params(), (experts, inner, width)))
        self.balance_loss = BalanceLoss(jnp.ones((), jnp.float32))

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """The weighted sum of a token's experts, SwiGLU each.

        Args:
            x: (batch, length, width).
            keep: bool, (batch, length): which tokens count in the balance; None for all.
        """
        # In float32: a choice between two experts that are almost equal must not hang on the precision of the rest.
        chances = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        best, which = jax.lax.top_k(chances, self.chosen)
        # A share of the only choice would be 1 whatever the router says, and teach it nothing.
        shares = best / best.sum(-1, keepdims=True) if self.chosen > 1 else best
        picked = jax.nn.one_hot(which, self.experts)  # (batch, length, k, n)
        self.balance_loss.set_value(balance_loss(chances, picked, keep))
        weights = (shares[..., None] * picked).sum(-2).astype(x.dtype)
        hidden = nnx.silu(jnp.einsum("blw,ewi->blei", x, self.gate[...])) * jnp.einsum("blw,ewi->blei", x, self.up[...])
        return jnp.einsum("blei,eiw,ble->blw", hidden, self.down[...], weights)


def check_experts(experts: int, experts_per_token: int) -> None:
    """Sees to it that a token can go through so many experts.

    Raises:
        InvalidRequest: It cannot.
    """
    if not 1 <= experts_per_token <= experts:
        raise InvalidRequest(
            f"a token goes through 1 to {experts} of {experts} experts; got experts_per_token={experts_per_token}"
        )


def balance_loss(chances: jax.Array, picked: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """How uneven the experts are used: n · Σ over experts of (share of choices) · (mean chance).

    Fedus et al. 2022, eq. 4 to 6, with the share taken over all k choices of a token. Chances alone have a gradient.

    Args:
        chances: Softmax of the router, (batch, length, n).
        picked: 1 where a choice fell on an expert, (batch, length, k, n).
        keep: bool, (batch, length), or None.

    Returns:
        A float32 scalar, from about 1 (even) to n.
    """
    counted = jnp.ones(chances.shape[:2], jnp.float32) if keep is None else keep.astype(jnp.float32)
    counted = (counted / jnp.maximum(counted.sum(), 1.0))[..., None]
    share = (picked.mean(-2) * counted).sum((0, 1))
    chance = (chances * counted).sum((0, 1))
    return chances.shape[-1] * (jax.lax.stop_gradient(share) * chance).sum()
