"""The mesh: which sizes make one, what is refused, how a batch lies on it. Eight devices, see `tests/conftest.py`."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from mms_sdk.compute.sharding.mesh import batch_parts, batch_sharding, batch_share, describe, make_mesh
from mms_sdk.errors import InvalidRequest


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({"data": -1}, {"data": 8}),
        ({"data": 8}, {"data": 8}),
        ({"data": -1, "fsdp": 2}, {"data": 4, "fsdp": 2}),
        ({"fsdp": 4, "data": -1}, {"fsdp": 4, "data": 2}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"fsdp": 8, "data": -1}, {"fsdp": 8, "data": 1}),
    ],
)
def test_a_mesh_has_the_asked_axes_in_order_and_minus_one_takes_what_is_left(
    asked: dict[str, int], sizes: dict[str, int]
) -> None:
    mesh = make_mesh(asked)

    assert list(mesh.shape.items()) == list(sizes.items())
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}
    # Models written for propagation fail on the explicit axes that JAX makes by default.
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch": 8}, ["mesh axes are data, fsdp, tensor", "['batch']", "rename"]),
        ({}, ["sizes from 1", "{}"]),
        ({"data": 0}, ["sizes from 1", "{'data': 0}"]),
        ({"data": -2}, ["sizes from 1", "{'data': -2}"]),
        ({"data": -1, "fsdp": -1}, ["one of them may be -1", "{'data': -1, 'fsdp': -1}"]),
        ({"data": 4}, ["uses every device", "{'data': 4}", "there are 8", '{"data": -1}']),
        ({"data": 16}, ["uses every device", "there are 8"]),
        ({"data": -1, "fsdp": 3}, ["uses every device", "multiple of 3", "there are 8"]),
        ({"data": -1, "fsdp": 16}, ["uses every device", "multiple of 16", "there are 8"]),
    ],
)
def test_other_axes_and_sizes_are_refused_with_the_rule_the_value_and_the_next_step(
    asked: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_mesh(asked)

    assert all(word in refused.value.message for word in words), refused.value.message


@pytest.mark.parametrize(
    ("asked", "parts"),
    [({"data": 8}, 8), ({"data": 4, "fsdp": 2}, 8), ({"data": 2, "tensor": 4}, 2), ({"tensor": 8}, 1)],
)
def test_a_batch_is_divided_over_the_batch_axes_and_whole_along_the_others(asked: dict[str, int], parts: int) -> None:
    mesh = make_mesh(asked)
    rows = np.arange(16 * 3).reshape(16, 3)

    placed = jax.device_put(rows, batch_sharding(mesh))

    assert batch_parts(mesh) == parts
    assert {shard.data.shape for shard in placed.addressable_shards} == {(16 // parts, 3)}
    np.testing.assert_array_equal(placed, rows)


def test_a_mesh_is_told_in_words() -> None:
    assert describe(make_mesh({"data": -1, "fsdp": 2})) == "8 cpu devices: data=4, fsdp=2"


def test_a_mesh_may_be_of_chosen_devices() -> None:
    mesh = make_mesh({"data": 2, "fsdp": -1}, jax.devices()[2:6])

    assert [device.id for device in mesh.devices.flat] == [2, 3, 4, 5]
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}


@pytest.mark.parametrize("devices", [[], [0, 0]])
def test_devices_that_are_none_or_twice_the_same_are_refused(devices: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="different devices, at least one"):
        make_mesh({"data": -1}, [jax.devices()[at] for at in devices])


def test_replicated_is_a_batch_over_all_devices() -> None:
    assert dict(make_mesh("replicated").shape) == {"data": 8}
    with pytest.raises(InvalidRequest, match='"replicated" or sizes'):
        make_mesh("pmap")  # type: ignore[arg-type]


def test_a_mesh_that_is_there_is_taken_and_one_that_xla_does_not_divide_by_itself_is_not() -> None:
    mesh = make_mesh({"data": 4}, jax.devices()[:4])

    assert make_mesh(mesh) is mesh
    with pytest.raises(InvalidRequest, match="axes of a mesh are Auto"):
        make_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)))
    with pytest.raises(InvalidRequest, match=r"\['batch'\]; rename"):
        make_mesh(jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,)))


@pytest.mark.parametrize("asked", [{"data": 4, "fsdp": 2}, {"fsdp": 4, "data": 2}, {"tensor": 2, "fsdp": 2, "data": 2}])
def test_rows_lie_in_the_order_of_the_devices_whatever_the_order_of_the_axes(asked: dict[str, int]) -> None:
    mesh = make_mesh(asked)
    parts = batch_parts(mesh)

    placed = jax.device_put(np.arange(16), batch_sharding(mesh))

    firsts = {shard.device.id: int(shard.data[0]) for shard in placed.addressable_shards}
    assert [firsts[at] for at in range(parts)] == [at * 16 // parts for at in range(parts)]
    assert batch_share(batch_sharding(mesh)) == (0, 1)


class Elsewhere(NamedTuple):
    """A device of some process."""

    id: int
    process_index: int


@dataclass(frozen=True)
class Rows:
    """Which process holds which part of a batch, as a sharding over several processes says it."""

    held: tuple[tuple[int, ...], ...]

    @property
    def mesh(self) -> Any:
        parts = {part for each in self.held for part in each}
        return SimpleNamespace(shape={"data": len(parts)})

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Elsewhere, Any]:
        assert shape == (self.mesh.shape["data"],)
        numbered = enumerate((process, part) for process, parts in enumerate(self.held) for part in parts)
        return {Elsewhere(id, process): (slice(part or None, part + 1),) for id, (process, part) in numbered}


@pytest.mark.parametrize(
    ("held", "shares"),
    [
        (((0, 1), (2, 3)), [(0, 2), (1, 2)]),
        (((2, 3), (0, 1)), [(1, 2), (0, 2)]),
        (((0, 1), (0, 1)), [(0, 1), (0, 1)]),
        (((0, 0), (1, 1), (0, 0), (1, 1)), [(0, 2), (1, 2), (0, 2), (1, 2)]),
    ],
)
def test_a_process_brings_the_part_of_a_batch_that_its_devices_hold(
    held: Any, shares: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: len(held))
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert batch_share(Rows(held)) == share  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [((0, 2), (1, 3)), ((0, 1), (2,), (3,)), ((0, 1), (1, 2), (2, 3))])
def test_parts_of_a_batch_that_a_process_does_not_hold_together_are_refused(
    held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: len(held))
    monkeypatch.setattr(jax, "process_index", lambda: 0)

    with pytest.raises(InvalidRequest, match=r"stand together, as many as the others; .* write data and fsdp first"):
        batch_share(Rows(held))  # type: ignore[arg-type]
