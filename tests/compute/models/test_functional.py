"""Models as two pure functions: the same outputs as the module a person wrote, and nothing that outlives a step."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import Arrays, Functional, describe, functional
from mms_sdk.errors import InvalidRequest

SHAPE = (6, 5, 2)
FAMILY = ConvNet(num_classes=3, widths=(8,), dropout=0.5)


class Normed(nnx.Module):
    """One linear layer, batch normalisation, dropout."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(60, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.linear(x.reshape(len(x), -1))))


def rows_of(count: int = 4) -> Any:
    return np.random.default_rng(1).normal(size=(count, *SHAPE)).astype(np.float32)


@cache
def taken_apart(model: Any) -> tuple[Functional, Arrays, Arrays]:
    """Compiled, as the loop has it, with initial values."""
    taken = functional(model, SHAPE)
    return Functional(taken.init, jax.jit(taken.apply)), *jax.jit(taken.init)(jax.random.key(5))


@nnx.jit(static_argnums=0)
def build(seed: int) -> nnx.Module:
    return FAMILY.build(SHAPE, rngs=nnx.Rngs(jax.random.key(seed)))


class LinenNet(linen.Module):
    """Everything that a Linen module may need: running averages, dropout, and being told whether it is trained."""

    @linen.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = linen.Dense(6)(x.reshape(x.shape[0], -1))
        x = linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return linen.Dense(3, name="head")(linen.Dropout(0.5, deterministic=not train)(x))


def test_a_linen_module_gives_its_own_outputs_and_keeps_its_running_averages() -> None:
    module, rows, key = LinenNet(), rows_of(), jax.random.key(3)
    variables = module.init(jax.random.key(5), rows, train=False)
    taken, params, rest = taken_apart(module)

    np.testing.assert_array_equal(params["Dense_0/kernel"], variables["params"]["Dense_0"]["kernel"])
    told, same = taken.apply(params, rest, rows, None)
    np.testing.assert_allclose(told, module.apply(variables, rows, train=False), rtol=1e-6)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, rest))

    trained, after = taken.apply(params, rest, rows, key)
    expected, changed = module.apply(variables, rows, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, expected, rtol=1e-5)
    np.testing.assert_allclose(
        after["batch_stats/BatchNorm_0/mean"], changed["batch_stats"]["BatchNorm_0"]["mean"], rtol=1e-6
    )


class Plain(linen.Module):
    """Knows no difference between training and prediction."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


def test_a_linen_module_without_any_state_is_a_model() -> None:
    taken, params, rest = taken_apart(Plain())
    output, after = taken.apply(params, rest, rows_of(), jax.random.key(0))

    kernel, bias = np.asarray(params["Dense_0/kernel"]), np.asarray(params["Dense_0/bias"])
    np.testing.assert_allclose(output, rows_of().reshape(4, -1) @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert rest == after == {}


@pytest.mark.parametrize(
    "model", [FAMILY, build(5), lambda rngs: FAMILY.build(SHAPE, rngs=rngs)], ids=["family", "instance", "factory"]
)
def test_a_module_taken_apart_gives_the_outputs_of_the_module_itself(model: Any) -> None:
    module = build(5)
    module.eval()
    rows = rows_of()

    taken, params, rest = taken_apart(model)
    output, after = taken.apply(params, rest, rows, None)

    np.testing.assert_allclose(output, nnx.jit(module)(rows), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(rest)


def test_a_pair_of_functions_is_a_model_too() -> None:
    def init(key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        return {"kernel": jax.random.normal(key, (int(np.prod(shape)), 3))}

    def apply(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:
        return batch.reshape(len(batch), -1) @ params["kernel"]

    taken = functional((init, apply), SHAPE)
    params, rest = taken.init(jax.random.key(0))
    output, after = taken.apply(params, rest, rows_of(), jax.random.key(1))

    np.testing.assert_allclose(output, apply(init(jax.random.key(0), SHAPE), rows_of()), rtol=1e-6)
    assert (rest, after) == ({}, {})


def test_parameters_are_named_by_their_path() -> None:
    taken = functional(MLP(num_classes=3, widths=(4,)), SHAPE)

    params, rest = jax.eval_shape(taken.init, jax.random.key(0))

    assert {path: value.shape for path, value in params.items()} == {
        "layers/0/kernel": (60, 4),
        "layers/0/bias": (4,),
        "head/kernel": (4, 3),
        "head/bias": (3,),
    }
    assert rest == {}


def test_the_seed_decides_the_initial_values() -> None:
    init = jax.jit(functional(MLP(num_classes=3, widths=(4,)), SHAPE).init)

    one, same, other = (init(jax.random.key(seed))[0] for seed in (1, 1, 2))

    assert all(np.array_equal(one[path], same[path]) for path in one)
    assert not np.array_equal(one["head/kernel"], other["head/kernel"])


def test_dropout_is_off_outside_training() -> None:
    taken, params, rest = taken_apart(FAMILY)

    np.testing.assert_array_equal(
        taken.apply(params, rest, rows_of(), None)[0], taken.apply(params, rest, rows_of(), None)[0]
    )


def test_dropout_in_training_depends_on_the_key_and_on_nothing_before() -> None:
    taken, params, rest = taken_apart(FAMILY)

    first, after = taken.apply(params, rest, rows_of(), jax.random.key(7))
    other, _ = taken.apply(params, after, rows_of(), jax.random.key(8))
    again, _ = taken.apply(params, after, rows_of(), jax.random.key(7))

    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_two_dropout_layers_drop_different_things() -> None:
    class Twice(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.first = nnx.Dropout(0.5, rngs=rngs)
            self.second = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.stack([self.first(x), self.second(x)])

    taken = functional(lambda rngs: Twice(rngs=rngs), (64,))
    params, rest = taken.init(jax.random.key(0))

    one, two = taken.apply(params, rest, np.ones((2, 64), np.float32), jax.random.key(3))[0]

    assert not np.array_equal(one, two)


def test_running_averages_are_carried_in_training_and_used_outside() -> None:
    taken, params, rest = taken_apart(lambda rngs: Normed(rngs=rngs))
    rows = rows_of(16)
    hidden = rows.reshape(16, -1) @ np.asarray(params["linear/kernel"]) + np.asarray(params["linear/bias"])

    _, trained = taken.apply(params, rest, rows, jax.random.key(1))
    outside, untouched = taken.apply(params, trained, rows, None)

    np.testing.assert_allclose(trained["norm/mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained["norm/var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)
    np.testing.assert_array_equal(untouched["norm/mean"], trained["norm/mean"])
    mean, var = np.asarray(trained["norm/mean"]), np.asarray(trained["norm/var"])
    np.testing.assert_allclose(outside, (hidden - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)


def test_taking_an_instance_apart_leaves_it_as_it_was() -> None:
    module = Normed(rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(module, nnx.Param))

    taken = functional(module, SHAPE)
    params, rest = taken.init(jax.random.key(0))
    taken.apply(params, rest, rows_of(), jax.random.key(1))

    assert jax.tree.all(jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, nnx.state(module, nnx.Param))))
    np.testing.assert_array_equal(module.norm.mean.get_value(), np.zeros(8))


@pytest.mark.parametrize("model", ["resnet", 3, None, (1, 2)])
def test_what_is_no_model_is_refused_and_what_would_be_one_is_listed(model: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        functional(model, SHAPE)

    assert "mms.models.ConvNet" in refused.value.message
    assert type(model).__name__ in refused.value.message


def test_a_model_is_described_by_its_options_or_its_name() -> None:
    assert describe(FAMILY) == "ConvNet(num_classes=3, widths=(8,), dropout=0.5, init_from=None)"
    assert describe(Normed(rngs=nnx.Rngs(0))) == "Normed"
    assert describe(rows_of) == "rows_of"


def test_a_class_of_modules_is_made_with_its_random_streams_by_name() -> None:
    taken = functional(Normed, SHAPE)
    params, _ = taken.init(jax.random.key(0))

    assert sorted(params) == sorted(functional(Normed(rngs=nnx.Rngs(0)), SHAPE).init(jax.random.key(0))[0])


def test_a_family_that_was_not_made_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"write ConvNet\(num_classes=…\) instead of its class"):
        functional(ConvNet, SHAPE)


@pytest.mark.parametrize("widths", [(), (12,), (32, 4), (0,)])
def test_widths_that_do_not_divide_into_groups_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="multiples of 8; got widths="):
        ConvNet(num_classes=3, widths=widths)
