"""Partition rules: which rule decides, what happens without one, and what the report adds up to."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.sharding.rules import PartitionRules, placements
from mms_sdk.errors import InvalidRequest


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """data=2, fsdp=4."""
    return make_mesh({"data": 2, "fsdp": 4})


def test_the_first_rule_that_matches_decides(mesh: Mesh) -> None:
    rules = PartitionRules(
        (("head/kernel", ("fsdp", None)), ("kernel$", (None, "fsdp")), ("head", ("data",)), ("bias", ()))
    )

    assert rules.spec("head/kernel", (8, 8), mesh) == ("fsdp", None)
    assert rules.spec("layers/0/kernel", (8, 8), mesh) == (None, "fsdp")
    assert rules.spec("head/bias", (8,), mesh) == ("data",)
    assert rules.spec("layers/0/bias", (8,), mesh) == ()


def test_a_dimension_may_be_divided_over_several_axes(mesh: Mesh) -> None:
    rules = PartitionRules((("kernel", ((("data", "fsdp")), None)),))

    spec = rules.spec("kernel", (16, 3), mesh)

    assert spec == (("data", "fsdp"), None)
    assert NamedSharding(mesh, PartitionSpec(*spec)).shard_shape((16, 3)) == (2, 3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 32), (None, "fsdp")),
        ((32, 16), ("fsdp", None)),
        ((8, 8), ("fsdp", None)),
        ((3, 3, 1, 32), (None, None, None, "fsdp")),
        ((30, 12), (None, "fsdp")),
        ((10,), ()),
        ((2, 2), ()),
        ((), ()),
    ],
)
def test_without_a_rule_the_largest_dimension_that_divides_goes_over_fsdp(
    mesh: Mesh, shape: tuple[int, ...], spec: Any
) -> None:
    assert PartitionRules().spec("any/path", shape, mesh) == spec


def test_without_an_fsdp_axis_parameters_are_whole_everywhere() -> None:
    assert PartitionRules().spec("any/path", (64, 64), make_mesh({"data": -1})) == ()


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(1, 40), max_size=4).map(tuple), min_size=1))
def test_the_report_says_what_jax_then_puts_on_each_device(shapes: dict[str, tuple[int, ...]]) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    params = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}

    report = placements(params, PartitionRules(), mesh)

    assert [line.path for line in report] == list(shapes)
    for line in report:
        sharding = NamedSharding(mesh, PartitionSpec(*line.spec))
        assert line.shape == shapes[line.path]
        assert line.bytes_per_device == prod(sharding.shard_shape(line.shape)) * 4


def test_the_bytes_of_the_report_add_up_to_those_on_the_devices(mesh: Mesh) -> None:
    rules = PartitionRules((("^a$", (("data", "fsdp"),)), ("^b$", ("data", None))))
    params = {
        "a": np.zeros(64, np.float32),
        "b": np.zeros((4, 6), np.float16),
        "c": np.zeros((3, 5), np.float32),
        "d": np.zeros((12, 3), np.int8),
    }

    report = {line.path: line for line in placements(params, rules, mesh)}

    held: dict[int, int] = {}
    for path, value in params.items():
        placed = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*report[path].spec)))
        for shard in placed.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    assert set(held.values()) == {sum(line.bytes_per_device for line in report.values())}


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        (("tensor",), (8,), ["'kernel'", "['data', 'fsdp']", "['tensor']"]),
        ((("fsdp", "expert"),), (8,), ["['expert']"]),
        ((None, None, "fsdp"), (8, 8), ["3 dimensions", "layers/0/kernel has 2", "shorten"]),
        (("fsdp",), (6,), ["dimension of 6 of layers/0/kernel", "4 devices", "leave it whole with None"]),
        ((("data", "fsdp"),), (12,), ["dimension of 12", "8 devices"]),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_and_never_ignored(
    mesh: Mesh, spec: Any, shape: tuple[int, ...], words: list[str]
) -> None:
    rules = PartitionRules((("kernel", spec),))

    with pytest.raises(InvalidRequest) as refused:
        rules.spec("layers/0/kernel", shape, mesh)

    assert all(word in refused.value.message for word in words), refused.value.message
