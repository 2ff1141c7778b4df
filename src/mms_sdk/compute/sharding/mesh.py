"""The mesh: devices in a grid with named axes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
BATCH_AXES = ("data", "fsdp")
"""Axes over which a batch is divided."""


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices of the process, or of all processes after `jax.distributed`.

    Args:
        axes: Devices along each axis; one of them may be -1 for all that are left.

    Raises:
        InvalidRequest: An axis has no known name, or the sizes do not use every device.
    """
    import jax
    from jax.sharding import AxisType

    count = jax.device_count()
    sizes = mesh_sizes(axes, count)
    # JAX 0.10 makes explicit axes by default, with which models written for propagation fail.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_sizes(axes: Mapping[str, int], count: int) -> dict[str, int]:
    """Devices along each axis, with -1 filled in.

    Args:
        axes: As `make_mesh` takes them.
        count: Devices there are.

    Raises:
        InvalidRequest: An axis has no known name, or the sizes do not use every device.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise InvalidRequest(f"mesh axes are {', '.join(AXES)}; got {unknown}; rename them")
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch divided over the batch axes along its first dimension."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


def batch_parts(mesh: Mesh) -> int:
    """Into how many equal parts a batch is divided."""
    return prod(size for axis, size in mesh.shape.items() if axis in BATCH_AXES)


def describe(mesh: Mesh) -> str:
    """The mesh in words, e.g. `8 cpu devices: data=4, fsdp=2`."""
    count = mesh.devices.size
    kind = mesh.devices.flat[0].platform
    told = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{count} {kind} device{'s' if count > 1 else ''}: {told}"
