"""Partition rules: which dimension of a parameter is divided over which mesh axis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh

Spec = tuple[str | tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class PartitionRules:
    """Ordered regular expressions over parameter paths; the first that matches decides.

    What no rule matches is divided over the `fsdp` axis along its largest dimension that divides, and is whole on
    every device where none does.

    Attributes:
        rules: Pairs of a pattern, searched for in paths such as `stages/0/conv/kernel`, and one entry a dimension:
            an axis name, a tuple of them, or None.
    """

    rules: tuple[tuple[str, Spec], ...] = ()

    def spec(self, path: str, shape: Sequence[int], mesh: Mesh) -> Spec:
        """How one parameter is divided.

        Raises:
            InvalidRequest: A rule names an axis the mesh lacks, more dimensions than there are, or a dimension that
                does not divide.
        """
        for pattern, spec in self.rules:
            if re.search(pattern, path):
                _check(pattern, spec, path, shape, mesh)
                return spec
        return _fsdp(shape, mesh)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one parameter lies.

    Attributes:
        path: e.g. `stages/0/conv/kernel`.
        shape: Of the whole parameter.
        spec: One entry a dimension.
        bytes_per_device: What each device holds of it.
    """

    path: str
    shape: tuple[int, ...]
    spec: Spec
    bytes_per_device: int


def placements(params: Mapping[str, Any], rules: PartitionRules, mesh: Mesh) -> list[Placement]:
    """Where every parameter lies.

    Args:
        params: By path: anything with `shape` and `dtype`.
        rules: The rules.
        mesh: The mesh.
    """
    out = []
    for path, value in params.items():
        spec = rules.spec(path, value.shape, mesh)
        parts = prod(_ways(entry, mesh) for entry in spec)
        size = int(np.prod(value.shape, dtype=np.int64)) * np.dtype(value.dtype).itemsize
        out.append(Placement(path=path, shape=tuple(value.shape), spec=spec, bytes_per_device=size // parts))
    return out


def _check(pattern: str, spec: Spec, path: str, shape: Sequence[int], mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise InvalidRequest(f"rule {pattern!r} has {len(spec)} dimensions, {path} has {len(shape)}; shorten the rule")
    for size, entry in zip(shape, spec, strict=False):
        names = (entry,) if isinstance(entry, str) else entry or ()
        missing = [name for name in names if name not in mesh.shape]
        if missing:
            raise InvalidRequest(f"rule {pattern!r} names axes of the mesh, {list(mesh.shape)}; got {missing}")
        if size % _ways(entry, mesh):
            raise InvalidRequest(
                f"rule {pattern!r} divides a dimension of {size} of {path} over {_ways(entry, mesh)} devices, which "
                f"does not come out even; divide another dimension, or leave it whole with None"
            )


def _fsdp(shape: Sequence[int], mesh: Mesh) -> Spec:
    ways = mesh.shape.get("fsdp", 1)
    fitting = [dimension for dimension, size in enumerate(shape) if size % ways == 0 and size >= ways]
    if ways == 1 or not fitting:
        return ()
    largest = max(fitting, key=lambda dimension: shape[dimension])
    return tuple("fsdp" if dimension == largest else None for dimension in range(len(shape)))


def _ways(entry: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return prod(mesh.shape.get(name, 1) for name in names)
