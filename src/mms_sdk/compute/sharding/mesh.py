"""The mesh: devices in a grid with named axes."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import MeshAxis
from mms_sdk.settings import MESH_VARIABLE

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding, Sharding

AXES = get_args(MeshAxis)
BATCH_AXES = ("data", "fsdp")
"""Axes over which a batch is divided."""

Axes: TypeAlias = "Mapping[str, int] | Literal['replicated'] | Mesh"
"""Devices along each axis; `replicated` for all parameters on every device; or a mesh that was made before."""

_current: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def default_mesh() -> dict[str, int]:
    """The mesh of whoever names none: what the job was submitted with, or all devices along `data`."""
    told: dict[str, int] = json.loads(os.environ.get(MESH_VARIABLE) or '{"data": -1}')
    return told


def make_mesh(axes: Axes, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over devices of this process, or of all processes after `mms.sharding.join_processes`.

    The last axis changes fastest: devices that are next to one another in JAX's order, and so in one process, are next
    to one another along it. Where several processes work together, write `data` or `fsdp` first.

    Args:
        axes: Devices along each axis, one of which may be -1 for all that are left; `replicated` for `{"data": -1}`. A
            mesh is checked and returned.
        devices: Which devices, e.g. `jax.devices()[:4]`; all if left out.

    Raises:
        InvalidRequest: An axis has no known name, or the sizes do not use every device.
    """
    import jax
    from jax.sharding import AxisType, Mesh

    if isinstance(axes, Mesh):
        return _checked(axes)
    if isinstance(axes, str) and axes != "replicated":
        raise InvalidRequest(f'a mesh is "replicated" or sizes of axes such as {{"data": -1}}; got {axes!r}')
    chosen = list(jax.devices() if devices is None else devices)
    if not chosen or len(set(chosen)) != len(chosen):
        raise InvalidRequest(f"a mesh is made of different devices, at least one; got {chosen}; see jax.devices()")
    sizes = mesh_sizes({"data": -1} if isinstance(axes, str) else axes, len(chosen))
    # JAX 0.10 makes explicit axes by default, with which models written for propagation fail.
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=chosen)


def _checked(mesh: Mesh) -> Mesh:
    from jax.sharding import AxisType

    _known(mesh.axis_names)
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise InvalidRequest(
            f"the axes of a mesh are Auto, so that XLA finds the exchanges; got {mesh.axis_types}; make it with "
            f"mms.sharding.make_mesh"
        )
    return mesh


def _known(axes: Sequence[str]) -> None:
    if unknown := sorted(set(axes) - set(AXES)):
        raise InvalidRequest(f"mesh axes are {', '.join(AXES)}; got {unknown}; rename them")


def mesh_sizes(axes: Mapping[str, int], count: int) -> dict[str, int]:
    """Devices along each axis, with -1 filled in.

    Args:
        axes: As `make_mesh` takes them.
        count: Devices there are.

    Raises:
        InvalidRequest: An axis has no known name, or the sizes do not use every device.
    """
    _known(list(axes))
    if not axes or any(size < 1 and size != -1 for size in axes.values()) or list(axes.values()).count(-1) > 1:
        raise InvalidRequest(f"mesh axes have sizes from 1, and one of them may be -1; got {dict(axes)}")
    fixed = prod(size for size in axes.values() if size != -1)
    rest = count // fixed if -1 in axes.values() else 1
    sizes = {axis: rest if size == -1 else size for axis, size in axes.items()}
    if prod(sizes.values()) != count:
        raise InvalidRequest(
            f"a mesh uses every device; {dict(axes)} takes a multiple of {fixed}, and there are {count}; "
            f'use e.g. {{"data": -1}}'
        )
    return sizes


def told(axes: Axes) -> dict[str, int] | str:
    """What was asked for, as JSON."""
    if isinstance(axes, str):
        return axes
    return dict(axes if isinstance(axes, Mapping) else axes.shape)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh over which a batch is divided, in its order: so each process holds rows that are together."""
    return tuple(axis for axis in mesh.axis_names if axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch divided over the batch axes along its first dimension."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def stacked(sharding: NamedSharding) -> NamedSharding:
    """The same of several batches in one array, along a first dimension that stays whole."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def batch_parts(mesh: Mesh) -> int:
    """Into how many equal parts a batch is divided."""
    return prod(size for axis, size in mesh.shape.items() if axis in BATCH_AXES)


def batch_share(sharding: Sharding) -> tuple[int, int]:
    """Which part of every batch this process brings: the number of the part, and how many there are.

    Processes that hold the same rows, because another axis of the mesh goes over them, bring the same part.

    Raises:
        InvalidRequest: The rows that a process holds are not together.
    """
    import jax

    if jax.process_count() == 1:
        return 0, 1
    held: defaultdict[int, set[int]] = defaultdict(set)
    parts = batch_parts(sharding.mesh)  # type: ignore[attr-defined]  # of a NamedSharding, which alone spans processes
    placed: dict[Any, Any] = dict(sharding.devices_indices_map((parts,)))
    for device, (rows,) in placed.items():
        held[device.process_index].add(rows.start or 0)
    mine = held[jax.process_index()]
    size = len(mine)
    if {tuple(sorted(each)) for each in held.values()} != {tuple(range(at, at + size)) for at in range(0, parts, size)}:
        raise InvalidRequest(
            f"each process brings rows of a batch that stand together, as many as the others; of {parts} parts the "
            f"processes hold {[sorted(held[each]) for each in sorted(held)]}; write data and fsdp first in the mesh"
        )
    return min(mine) // size, parts // size


def describe(mesh: Mesh) -> str:
    """The mesh in words, e.g. `8 cpu devices: data=4, fsdp=2`."""
    count = mesh.devices.size
    kind = mesh.devices.flat[0].platform
    told = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{count} {kind} device{'s' if count > 1 else ''}: {told}"


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[None]:
    """While a step is traced: the mesh that layers find which exchange by hand."""
    token = _current.set(mesh)
    try:
        yield
    finally:
        _current.reset(token)


def current_mesh() -> Mesh | None:
    """The mesh of the trainer whose step is traced now; None elsewhere, as in a model that is exported and served."""
    return _current.get()
