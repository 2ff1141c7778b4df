"""A mixture of experts against every token sent by hand in NumPy, on one, two and four devices."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mms_sdk.compute.models.decoder import Decoder
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.models.moe import MoE
from mms_sdk.compute.sharding.mesh import make_mesh, using
from mms_sdk.errors import InvalidRequest

FEATURES, HIDDEN, EXPERTS, TOKENS = 6, 10, 4, 32
X = np.random.default_rng(0).normal(size=(2, TOKENS // 2, FEATURES)).astype(np.float32)
TOWARDS = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)


def layer(*, top_k: int = 2, capacity_factor: float | None = None, gated: bool = False, z_loss: bool = False) -> MoE:
    made = MoE(
        FEATURES,
        HIDDEN,
        experts=EXPERTS,
        top_k=top_k,
        capacity_factor=capacity_factor,
        gated=gated,
        router_z_loss=z_loss,
        rngs=nnx.Rngs(0),
    )
    made.router[...] = made.router[...] * 3
    return made


def called(made: MoE, x: Any, keep: Any = None, *, sizes: dict[str, int] | None = None) -> Any:
    """What comes out; what the layer says of it stands in its variables then."""
    mesh = None if sizes is None else mesh_of(sizes)
    return nnx.jit(lambda made, x, keep: made(x, keep, mesh=mesh))(made, x, keep)


def softmax(scores: Any) -> Any:
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def by_hand(made: MoE, x: Any, *, parts: int = 1) -> tuple[Any, float, float]:
    """Outputs, the share of choices dropped and the balance, token by token; each part has room of its own."""
    weights = {name: np.asarray(value, float) for name, value in made_arrays(made).items()}
    tokens = x.reshape(-1, FEATURES).astype(float)
    probabilities = softmax(tokens @ weights["router"])
    chosen = np.argsort(-probabilities, axis=-1)[:, : made.top_k]
    out, dropped, share = np.zeros_like(tokens), 0, len(tokens) // parts
    factor = made.capacity_factor
    room = share if factor is None else min(share, ceil(factor * made.top_k * share / EXPERTS))
    for part in range(parts):
        came = np.zeros(EXPERTS, int)
        for choice in range(made.top_k):
            for token in range(part * share, (part + 1) * share):
                expert = chosen[token, choice]
                came[expert] += 1
                if came[expert] > room:
                    dropped += 1
                    continue
                weight = probabilities[token, expert]
                if made.top_k > 1:
                    weight /= probabilities[token, chosen[token]].sum()
                hidden = tokens[token] @ weights["up"][expert]
                gate = tokens[token] @ weights["gate"][expert] if "gate" in weights else hidden
                hidden = (hidden if "gate" in weights else 1) * gate / (1 + np.exp(-gate))
                out[token] += weight * (hidden @ weights["down"][expert])
    shares = np.bincount(chosen.ravel(), minlength=EXPERTS) / chosen.size
    return out.reshape(x.shape), dropped / chosen.size, EXPERTS * float(shares @ probabilities.mean(0))


def made_arrays(made: MoE) -> dict[str, Any]:
    return {str(path[-1]): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(made, nnx.Param))}


def dense(arrays: dict[str, Any], x: Any, top_k: int) -> Any:
    """Every expert looks at every token, and those that were not chosen count for nothing."""
    probabilities = jax.nn.softmax(x @ arrays["router"], axis=-1)
    top, chosen = jax.lax.top_k(probabilities, top_k)
    chosen_at = jax.nn.one_hot(chosen, EXPERTS)
    weights = (chosen_at * (top / top.sum(-1, keepdims=True))[..., None]).sum(-2)
    answers = jnp.einsum(
        "...eh,ehf->...ef", jax.nn.silu(jnp.einsum("...f,efh->...eh", x, arrays["up"])), arrays["down"]
    )
    shares = chosen_at.mean((0, 1, 2))
    balance = EXPERTS * (jax.lax.stop_gradient(shares) * probabilities.mean((0, 1))).sum()
    return jnp.einsum("...e,...ef->...f", weights, answers), balance


@cache
def dense_gradient() -> dict[str, Any]:
    def loss(arrays: Any) -> Any:
        out, balance = dense(arrays, X, 2)
        return (out * TOWARDS).sum() + balance

    gradient: dict[str, Any] = jax.jit(jax.grad(loss))(made_arrays(layer()))
    return gradient


def mesh_of(sizes: dict[str, int]) -> Any:
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


MESHES = [{"expert": 1}, {"expert": 2}, {"expert": 4}, {"data": 2, "expert": 2}, {"data": 2, "fsdp": 2, "expert": 2}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(("top_k", "gated"), [(1, False), (2, True)])
def test_tokens_get_what_their_experts_say_wherever_those_lie(sizes: dict[str, int], top_k: int, gated: bool) -> None:
    made = layer(top_k=top_k, gated=gated)

    out = called(made, X, sizes=sizes)

    expected, _, balance = by_hand(made, X)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert made.dropped[...] == 0
    np.testing.assert_allclose(made.balance_loss[...], balance, rtol=1e-5)
    np.testing.assert_allclose(made.load[...].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_gradient_of_output_and_balance_is_that_of_a_dense_mixture(sizes: dict[str, int]) -> None:
    def loss(made: MoE) -> Any:
        out = made(X, mesh=mesh_of(sizes))
        return (out * TOWARDS).sum() + made.balance_loss[...]

    grads = nnx.jit(nnx.grad(loss))(layer())

    expected = dense_gradient()
    for path, grad in nnx.to_flat_state(grads):
        np.testing.assert_allclose(grad.get_value(), expected[str(path[-1])], atol=2e-5, err_msg=str(path))


@pytest.mark.parametrize(("sizes", "parts"), [({"expert": 1}, 1), ({"expert": 2}, 2), ({"data": 2, "expert": 2}, 4)])
def test_choices_beyond_the_room_of_an_expert_are_dropped_and_counted(sizes: dict[str, int], parts: int) -> None:
    made = layer(capacity_factor=0.75)

    out = called(made, X, sizes=sizes)

    expected, dropped, _ = by_hand(made, X, parts=parts)
    assert dropped > 0
    np.testing.assert_allclose(made.dropped[...], dropped, rtol=1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_outside_training_nothing_is_dropped() -> None:
    made = layer(capacity_factor=0.75)
    made.eval()

    out = called(made, X)

    np.testing.assert_allclose(out, by_hand(layer(), X)[0], atol=1e-5)
    assert made.dropped[...] == 0


def test_experts_used_alike_have_a_balance_of_one_and_one_that_gets_all_has_their_number() -> None:
    even, alone = layer(), layer(top_k=1)
    even.router[...] = jnp.zeros_like(even.router[...])
    alone.router[...] = jnp.zeros_like(alone.router[...]).at[:, 0].set(50.0)

    called(even, X)
    called(alone, np.abs(X))

    assert even.balance_loss[...] == pytest.approx(1)
    assert alone.balance_loss[...] == pytest.approx(EXPERTS)
    assert alone.load[...].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("sizes", [None, {"data": 2, "expert": 2}])
def test_padding_is_sent_to_no_expert_and_does_not_count(sizes: dict[str, int] | None) -> None:
    keep = np.random.default_rng(3).random(X.shape[:2]) < 0.7
    made, other = layer(), layer()

    out = called(made, X, keep, sizes=sizes)
    again = called(other, np.where(keep[..., None], X, 9.0).astype(np.float32), keep, sizes=sizes)

    expected, _, balance = by_hand(layer(), X[keep])
    np.testing.assert_allclose(out[keep], expected, atol=1e-5)
    assert not np.asarray(out)[~keep].any()
    np.testing.assert_allclose(made.balance_loss[...], balance, rtol=1e-5)
    np.testing.assert_array_equal(again, out)
    assert other.balance_loss[...] == made.balance_loss[...]


@pytest.mark.parametrize("sizes", [None, {"expert": 2}, {"data": 2, "fsdp": 2, "expert": 2}], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum_of_exponentials(
    sizes: dict[str, int] | None, padded: bool
) -> None:
    keep = np.random.default_rng(3).random(X.shape[:2]) < (0.7 if padded else 1.0)
    made = layer(z_loss=True)

    out = called(made, X, keep if padded else None, sizes=sizes)

    scores = X[keep].astype(float) @ np.asarray(made.router[...], float)
    expected = np.mean(np.log(np.exp(scores).sum(-1)) ** 2)
    np.testing.assert_allclose(made.router_z_loss[...], expected, rtol=1e-5)
    np.testing.assert_array_equal(out, called(layer(), X, keep if padded else None, sizes=sizes))


def test_the_z_loss_of_very_large_scores_is_finite_and_that_of_no_tokens_is_zero() -> None:
    made = layer(z_loss=True)
    made.router[...] = made.router[...] * 1000

    called(made, X)
    largest = (X @ np.asarray(made.router[...])).max(-1)
    np.testing.assert_allclose(made.router_z_loss[...], np.mean(largest**2), rtol=1e-4)

    called(made, X, np.zeros(X.shape[:2], bool))
    assert made.router_z_loss[...] == 0


@pytest.mark.parametrize("sizes", [{"expert": 1}, {"data": 2, "expert": 2}], ids=str)
def test_the_gradient_of_the_z_loss_is_its_derivative_by_hand(sizes: dict[str, int]) -> None:
    def loss(made: MoE) -> Any:
        made(X, mesh=mesh_of(sizes))
        return made.router_z_loss[...]

    made = layer(z_loss=True)
    grads = nnx.jit(nnx.grad(loss))(made)

    tokens = X.reshape(-1, FEATURES).astype(float)
    scores = tokens @ np.asarray(made.router[...], float)
    logs = np.log(np.exp(scores).sum(-1, keepdims=True))
    expected = tokens.T @ (2 * logs * softmax(scores)) / len(tokens)
    np.testing.assert_allclose(grads["router"].get_value(), expected, rtol=1e-4, atol=1e-5)


def test_each_block_of_a_decoder_has_a_z_loss_if_asked_for() -> None:
    def told(**options: Any) -> set[str]:
        family = Decoder(vocab_size=8, width=8, layers=2, heads=2, experts=EXPERTS, **options)
        return {path for path in functional(family, (4,), dtype="int32").shapes[1] if path.endswith("router_z_loss")}

    assert told() == set()
    assert told(router_z_loss=True) == {f"features/blocks/{block}/feed_forward/router_z_loss" for block in (0, 1)}


def test_padding_takes_no_room() -> None:
    keep = np.zeros(X.shape[:2], bool)
    keep[1, -4:] = True  # behind everything that would fill the experts
    made = layer(capacity_factor=0.75)

    out = called(made, X, keep)

    np.testing.assert_allclose(out[keep], by_hand(layer(), X[keep])[0], atol=1e-5)
    assert made.dropped[...] == 0


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_what_its_choices_give(top_k: int) -> None:
    grads = nnx.jit(nnx.grad(lambda made: (made(X) ** 2).sum()))(layer(top_k=top_k))

    assert np.abs(grads["router"].get_value()).max() > 1e-4


def test_experts_are_named_for_the_expert_axis_and_the_mesh_is_that_of_the_trainer() -> None:
    def forward(x: Any) -> Any:
        return layer()(x)

    names = functional(lambda rngs: MoE(FEATURES, HIDDEN, experts=EXPERTS, rngs=rngs), (FEATURES,)).names

    assert names == {"up": ("expert", None, None), "down": ("expert", None, None)}
    assert "shard_map" not in str(jax.make_jaxpr(forward)(X))
    with using(mesh_of({"expert": 4})):
        assert "all_to_all" in str(jax.make_jaxpr(lambda x: forward(x))(X))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, ["a token goes through 1 to 4 of 4 experts", "got 5"]),
        ({"top_k": 0}, ["got 0"]),
        ({"capacity_factor": 0.0}, ["capacity_factor is above 0", "None"]),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        layer(**options)

    assert all(word in refused.value.message for word in words), refused.value.message


def test_tokens_and_experts_divide_over_the_mesh() -> None:
    with pytest.raises(InvalidRequest, match=r"experts divide .* 4 over 8 devices .* multiple of 8"):
        layer()(X, mesh=make_mesh({"expert": 8}))
    with pytest.raises(InvalidRequest, match=r"tokens divide .* 30 over 4 devices .* multiple of 4"):
        layer()(X[:, :15], mesh=mesh_of({"expert": 4}))
