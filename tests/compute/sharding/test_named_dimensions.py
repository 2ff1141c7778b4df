"""Who decides how a parameter is divided: the person, the names that a model gives, its family, and then `fsdp`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import Mesh

from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.sharding.report import report
from mms_sdk.compute.sharding.rules import WHOLE, PartitionRules, Placement, placements
from mms_sdk.errors import InvalidRequest

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
init = nnx.initializers.lecun_normal()


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MESH)


def decided(shape: tuple[int, ...], mesh: Mesh, *, rules: Any = (), axis_rules: Any = (), **more: Any) -> Placement:
    """Of one parameter `mlp/kernel`."""
    params = {"mlp/kernel": jax.ShapeDtypeStruct(shape, np.float32)}
    (placement,) = placements(params, PartitionRules(rules, axis_rules), mesh, **more)
    return placement


def test_a_rule_comes_before_names_names_before_the_family_and_the_family_before_fsdp(mesh: Mesh) -> None:
    names, family = {"mlp/kernel": ("tensor", None)}, (("kernel", (None, "tensor")),)
    rules = (("mlp", ("data",)),)

    found = [
        decided((8, 16), mesh, rules=rules, names=names, family=family),
        decided((8, 16), mesh, names=names, family=family),
        decided((8, 16), mesh, family=family),
        decided((8, 16), mesh),
        decided((7, 5), mesh),
    ]

    assert [(each.spec, each.decided_by) for each in found] == [
        (("data",), "rule 'mlp'"),
        (("tensor", None), "names ('tensor', None)"),
        ((None, "tensor"), "family rule 'kernel'"),
        ((None, "fsdp"), "fsdp"),
        ((), "nothing"),
    ]
    assert [each.bytes_per_device for each in found] == [256, 256, 256, 256, 140]


@pytest.mark.parametrize(
    ("names", "axis_rules", "spec"),
    [
        (("embed", "mlp"), (("mlp", "tensor"), ("embed", "fsdp")), ("fsdp", "tensor")),
        (("embed", "mlp"), (("mlp", "tensor"),), (None, "tensor")),
        (("embed", "mlp"), (("mlp", ("fsdp", "tensor")), ("embed", None)), (None, ("fsdp", "tensor"))),
        # The second pair for a name is for parameters in which the axis of the first is taken.
        (("mlp", "mlp"), (("mlp", "tensor"), ("mlp", "fsdp")), ("tensor", "fsdp")),
        # An axis that this mesh has not got is passed over.
        (("embed", "mlp"), (("mlp", "expert"), ("mlp", "data")), (None, "data")),
        (("embed", None), (("embed", None),), (None, None)),
        ((("data", "fsdp"), None), (), (("data", "fsdp"), None)),
    ],
)
def test_names_of_ones_own_are_translated_by_axis_rules(mesh: Mesh, names: Any, axis_rules: Any, spec: Any) -> None:
    found = decided((8, 16), mesh, axis_rules=axis_rules, names={"mlp/kernel": names})

    assert found.spec == spec
    assert found.decided_by == f"names {names}"


@pytest.mark.parametrize("names", [("embed", "mlp"), ("expert", None)])
def test_names_that_mean_nothing_on_the_mesh_leave_the_parameter_to_fsdp(mesh: Mesh, names: Any) -> None:
    assert decided((8, 16), mesh, names={"mlp/kernel": names}).decided_by == "fsdp"


def test_a_familys_rule_that_does_not_suit_the_mesh_or_the_shape_is_passed_over_and_told(mesh: Mesh) -> None:
    uneven = decided((8, 15), mesh, family=(("kernel", (None, "tensor")),))
    elsewhere = decided((8, 16), mesh, family=(("kernel", (None, "expert")),))

    assert (uneven.spec, elsewhere.spec) == (("fsdp", None), (None, "fsdp"))
    assert "family's rule 'kernel' does not divide (8, 15)" in uneven.note


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rules": (("kernel", ("fsdp", "fsdp")),)},
            ["rule 'kernel'", "['fsdp'] more than once", "mlp/kernel", "None"],
        ),
        ({"rules": (("kernel", (("fsdp", "data"), "data")),)}, ["['data'] more than once"]),
        ({"names": {"mlp/kernel": ("tensor", "tensor")}}, ["names ('tensor', 'tensor')", "more than once"]),
        ({"names": {"mlp/kernel": (None, "tensor")}, "shape": (8, 5)}, ["dimension of 5 of mlp/kernel", "2 devices"]),
        ({"rules": (("mlp/kernl", ()),)}, ["matches none of 1", "['mlp/kernel']", "leave the rule out"]),
        ({"rules": (("kernel", "fsdp"),)}, ["one entry a dimension", "('kernel', ('fsdp', None))"]),
        ({"rules": (("(", ()),)}, ["regular expression", "'('"]),
        ({"axis_rules": (("mlp", "model"),)}, ["axes of ['data'", "['model'] for 'mlp'"]),
    ],
)
def test_what_cannot_be_followed_is_refused(mesh: Mesh, options: dict[str, Any], words: list[str]) -> None:
    shape = options.pop("shape", (8, 16))
    with pytest.raises(InvalidRequest) as refused:
        decided(shape, mesh, **options)

    assert all(word in refused.value.message for word in words), refused.value.message


class Named(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(6, 8, kernel_init=nnx.with_partitioning(init, ("embed", "tensor")), rngs=rngs)
        rules = (("mlp", "fsdp"),)
        self.down = nnx.Linear(
            8, 4, kernel_init=nnx.with_partitioning(init, ("mlp", None), sharding_rules=rules), rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


class Boxed(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        named = linen.with_partitioning(linen.initializers.lecun_normal(), ("embed", "tensor"))
        x = linen.relu(linen.Dense(8, kernel_init=named, name="up")(x))
        logical = linen.with_logical_partitioning(linen.initializers.lecun_normal(), ("mlp", None))
        return linen.Dense(4, kernel_init=logical, name="down")(x)


@pytest.mark.parametrize("model", [Named, Boxed()], ids=["nnx", "linen"])
def test_names_come_from_the_annotations_of_flax_and_the_model_still_runs(model: Any, mesh: Mesh) -> None:
    taken = functional(model, (6,))
    params, rest = jax.jit(taken.init)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)

    out, _ = taken.apply(params, rest, jnp.asarray(x), jax.random.key(1))

    assert dict(taken.names) == {
        "up/kernel": ("embed", "tensor"),
        "down/kernel": ("fsdp" if model is Named else "mlp", None),
    }
    up, down = (np.asarray(params[f"{name}/kernel"]) for name in ("up", "down"))
    np.testing.assert_allclose(out, np.maximum(x @ up, 0) @ down, atol=1e-5)
    rules = PartitionRules(axis_rules=(("mlp", "fsdp"),))
    specs = {each.path: each.spec for each in placements(params, rules, mesh, names=taken.names)}
    assert specs["up/kernel"] == (None, "tensor")
    assert specs["down/kernel"] == ("fsdp", None)


def test_a_module_that_was_made_on_a_mesh_keeps_its_names() -> None:
    with jax.set_mesh(make_mesh(MESH)):
        module = nnx.Linear(6, 8, kernel_init=nnx.with_partitioning(init, (None, "tensor")), rngs=nnx.Rngs(0))

    taken = functional(module, (6,))

    assert taken.names == {"kernel": (None, "tensor")}
    params, rest = taken.init(jax.random.key(0))
    assert jax.jit(lambda *given: taken.apply(*given, None)[0])(params, rest, jnp.ones((2, 6))).shape == (2, 8)


def test_a_family_brings_rules_of_its_own() -> None:
    class Family:
        rules = PartitionRules((("kernel", (None, "tensor")),))

        def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
            return nnx.Linear(*input_shape, 8, rngs=rngs)

    assert functional(Family(), (6,)).rules == (("kernel", (None, "tensor")),)


def large(mesh: Mesh, rules: PartitionRules) -> Any:
    shapes = {"embed": (601, 901), "head": (602, 902), "norm": (5,), "scale": ()}
    params = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return report(placements(params, rules, mesh), mesh)


def test_the_report_names_what_is_large_and_stays_whole_and_says_what_to_do(mesh: Mesh) -> None:
    told = large(mesh, PartitionRules())

    (embed,) = told.whole
    assert embed.path == "embed"
    assert "no dimension of (601, 901) divides over fsdp=2; make 901 a multiple, e.g. 902" in embed.note
    assert f"embed stays whole, {601 * 901 * 4:,} bytes on each device" in str(told)
    assert told.bytes == (601 * 901 + 602 * 902 + 5 + 1) * 4
    assert told.bytes_per_device == (601 * 901 + 602 * 451 + 5 + 1) * 4


def test_the_report_names_what_a_rule_keeps_whole(mesh: Mesh) -> None:
    told = large(mesh, PartitionRules((("head", ()),)))

    head = next(each for each in told.whole if each.path == "head")
    assert head.note == "rule 'head' keeps it whole; divide it with a rule, e.g. ('head', (None, 'fsdp'))"


def test_the_report_names_what_only_a_rule_could_divide() -> None:
    told = large(make_mesh({"data": 4, "tensor": 2}), PartitionRules())

    assert [each.path for each in told.whole] == ["embed", "head"]
    assert told.whole[1].note == "nothing divides it; divide it with a rule, e.g. ('head', (None, 'tensor'))"


def test_the_report_of_a_mesh_that_divides_no_parameters_has_nothing_to_complain_of() -> None:
    told = large(make_mesh("replicated"), WHOLE)

    assert told.whole == ()
    assert {each.note for each in told.placements} == {""}
    assert told.bytes_per_device == told.bytes


def test_the_report_is_text_html_and_json(mesh: Mesh) -> None:
    told = large(mesh, PartitionRules())

    first, *_, last = str(told).splitlines()
    assert first.startswith("8 cpu devices: data=2, fsdp=2, tensor=2; 4 parameters")
    assert last.split() == ["scale", "()", "whole", "nothing", "4", "too", "small", "to", "divide", "over", "fsdp=2"]
    assert "embed stays whole" in told._repr_html_()
    assert told.to_json()["whole"] == ["embed"]
    assert told.to_json()["parameters"][1] == {
        "path": "head",
        "shape": [602, 902],
        "spec": [None, "fsdp"],
        "decided_by": "fsdp",
        "bytes": 602 * 902 * 4,
        "bytes_per_device": 602 * 451 * 4,
        "note": "",
    }
