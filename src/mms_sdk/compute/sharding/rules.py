"""Partition rules: which dimension of a parameter is divided over which mesh axis, and who decided it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mms_sdk.compute.sharding.mesh import AXES
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from jax.sharding import Mesh

Entry = str | tuple[str, ...] | None
Spec = tuple[Entry, ...]
Names = Mapping[str, Spec]
"""By path of a parameter: the name of each dimension, as its model gives it. An axis of a mesh, or one's own word."""

LARGE_BYTES = 2**20
"""A parameter above it that stays whole on a mesh that divides parameters is named."""

_NO_NAMES: Names = MappingProxyType({})


@dataclass(frozen=True)
class PartitionRules:
    """Ordered regular expressions over parameter paths; the first that matches decides.

    What no rule matches goes by the names that its model gives to the dimensions (`nnx.with_partitioning`,
    `linen.with_partitioning`), then by the rules of the model's family, then it is divided over the `fsdp` axis along
    its largest dimension that divides, and is whole on every device where none does.

    Attributes:
        rules: Pairs of a pattern, searched for in paths such as `features/stages/0/conv1/kernel`, and one entry a
            dimension: an axis name, a tuple of them, or None.
        axis_rules: Pairs of a dimension's name and the axis that stands for it, a tuple of axes, or None for whole. Of
            several pairs for one name the first counts whose axes are in the mesh and not yet taken in the parameter.
    """

    rules: tuple[tuple[str, Spec], ...] = ()
    axis_rules: tuple[tuple[str, Entry], ...] = ()

    def __post_init__(self) -> None:
        for pattern, spec in self.rules:
            if isinstance(spec, str):
                raise InvalidRequest(
                    f"a rule has one entry a dimension, e.g. ({pattern!r}, ({spec!r}, None)); got {(pattern, spec)}"
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise InvalidRequest(f"a rule begins with a regular expression; got {pattern!r}: {error}") from error
        for name, entry in self.axis_rules:
            if unknown := [axis for axis in _axes(entry) if axis not in AXES]:
                raise InvalidRequest(f"axis_rules name axes of {list(AXES)}; got {unknown} for {name!r}")

    def spec(self, path: str, shape: Sequence[int], mesh: Mesh) -> Spec:
        """How one parameter is divided whose dimensions have no names.

        Raises:
            InvalidRequest: A rule names an axis the mesh lacks or one twice, more dimensions than there are, or a
                dimension that does not divide.
        """
        return _decide(_Parameter(path, tuple(shape), mesh), self, None, ()).spec

    def to_json(self) -> dict[str, Any]:
        """The rules as JSON."""
        return {
            "rules": [[pattern, [listed(entry) for entry in spec]] for pattern, spec in self.rules],
            "axis_rules": [[name, listed(entry)] for name, entry in self.axis_rules],
        }


WHOLE = PartitionRules(((".*", ()),))
"""Every parameter whole on every device."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one parameter lies.

    Attributes:
        path: e.g. `features/stages/0/conv1/kernel`.
        shape: Of the whole parameter.
        spec: One entry a dimension.
        decided_by: e.g. `rule 'kernel'`, `names ('embed', 'mlp')`, `family rule 'head'`, `fsdp`; `nothing` where
            nothing divides it.
        bytes: Of the whole parameter.
        bytes_per_device: What each device holds of it.
        note: What did not divide, and what to do about it.
    """

    path: str
    shape: tuple[int, ...]
    spec: Spec
    decided_by: str
    bytes: int
    bytes_per_device: int
    note: str = ""


class _Parameter(NamedTuple):
    path: str
    shape: tuple[int, ...]
    mesh: Mesh


class _Decision(NamedTuple):
    spec: Spec
    by: str
    note: str = ""


def listed(entry: Entry) -> Any:
    """One entry of a spec as JSON."""
    return list(entry) if isinstance(entry, tuple) else entry


def placements(
    params: Mapping[str, Any],
    rules: PartitionRules,
    mesh: Mesh,
    *,
    names: Names = _NO_NAMES,
    family: Sequence[tuple[str, Spec]] = (),
) -> list[Placement]:
    """Where every parameter lies.

    Args:
        params: By path: anything with `shape` and `dtype`.
        rules: What the person asked for: followed or refused.
        mesh: The mesh.
        names: Of dimensions, from the model.
        family: Rules of the model's family: followed where the mesh and the shape allow it.

    Raises:
        InvalidRequest: A rule matches no parameter, or cannot be followed; or names cannot.
    """
    _refuse_idle(rules, list(params))
    out = []
    for path, value in params.items():
        parameter = _Parameter(path, tuple(value.shape), mesh)
        spec, by, note = _decide(parameter, rules, names.get(path), family)
        size = int(np.prod(value.shape, dtype=np.int64)) * np.dtype(value.dtype).itemsize
        share = size // prod(_ways(entry, mesh) for entry in spec)
        note = note or _kept_whole(parameter, by, share if share == size else 0)
        out.append(
            Placement(
                path=path,
                shape=parameter.shape,
                spec=spec,
                decided_by=by,
                bytes=size,
                bytes_per_device=share,
                note=note,
            )
        )
    return out


def _refuse_idle(rules: PartitionRules, paths: list[str]) -> None:
    for pattern, _ in rules.rules:
        if paths and not any(re.search(pattern, path) for path in paths):
            word = re.sub(r"[^\w/]+", "", pattern)
            near = difflib.get_close_matches(word, paths, n=3, cutoff=0.3) or paths[:3]
            raise InvalidRequest(
                f"a partition rule matches at least one parameter; {pattern!r} matches none of {len(paths)}; near are "
                f"{near}; change the pattern, or leave the rule out"
            )


def _decide(
    parameter: _Parameter, rules: PartitionRules, names: Spec | None, family: Sequence[tuple[str, Spec]]
) -> _Decision:
    path, shape, mesh = parameter
    for pattern, spec in rules.rules:
        if re.search(pattern, path):
            _check(f"rule {pattern!r}", spec, parameter)
            return _Decision(tuple(spec), f"rule {pattern!r}")
    if names is not None and (found := _named(names, rules, parameter)) is not None:
        return _Decision(found, f"names {tuple(names)}")
    note = ""
    for pattern, spec in family:
        if re.search(pattern, path):
            able = tuple(entry if set(_axes(entry)) <= set(mesh.shape) else None for entry in spec)
            if not _divides(able, shape, mesh):
                note = f"the family's rule {pattern!r} does not divide {shape} evenly over {dict(mesh.shape)}"
            elif any(able) or not any(spec):
                return _Decision(able, f"family rule {pattern!r}")
            break
    divided = _fsdp(shape, mesh)
    return _Decision(divided, "fsdp" if divided else "nothing", note)


def _named(names: Spec, rules: PartitionRules, parameter: _Parameter) -> Spec | None:
    # None where names are given and none of them means an axis of this mesh: then they do not decide.
    taken: set[str] = set()
    out: list[Entry] = []
    decided = not any(names)
    for name in names:
        axes: list[str] = []
        for word in _axes(name):
            found = _translated(word, rules, parameter.mesh, taken)
            decided = decided or found is not None
            axes += found or ()
            taken |= set(found or ())
        out.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
    if not decided:
        return None
    _check(f"names {tuple(names)}", tuple(out), parameter)
    return tuple(out)


def _translated(word: str, rules: PartitionRules, mesh: Mesh, taken: set[str]) -> tuple[str, ...] | None:
    for name, entry in rules.axis_rules:
        axes = _axes(entry)
        if name == word and set(axes) <= set(mesh.shape) and not taken & set(axes):
            return axes
    return (word,) if word in mesh.shape else None


def _kept_whole(parameter: _Parameter, by: str, size: int) -> str:
    # What to do about a parameter that each device holds as a whole although the mesh could divide it.
    path, shape, mesh = parameter
    ways = {axis: mesh.shape[axis] for axis in ("fsdp", "tensor") if mesh.shape.get(axis, 1) > 1}
    axis, parts = next(iter(ways.items()), ("", 1))
    fitting = [at for at, length in enumerate(shape) if length >= parts and length % parts == 0]
    if not ways or not size or (size <= LARGE_BYTES and (fitting or by != "nothing")):
        return ""
    if fitting:
        at = max(fitting, key=lambda at: shape[at])
        spec = tuple(axis if at == each else None for each in range(len(shape)))
        why = "nothing divides it" if by == "nothing" else f"{by} keeps it whole"
        return f"{why}; divide it with a rule, e.g. ({path!r}, {spec})"
    if size <= LARGE_BYTES and max(shape, default=0) < parts:
        return f"too small to divide over {axis}={parts}"
    return _padded(shape, axis, parts)


def _padded(shape: tuple[int, ...], axis: str, parts: int) -> str:
    longest = max(shape)
    return (
        f"no dimension of {shape} divides over {axis}={parts}; make {longest} a multiple, e.g. "
        f"{-(-longest // parts) * parts}, or {axis} a size that divides"
    )


def _check(who: str, spec: Spec, parameter: _Parameter) -> None:
    path, shape, mesh = parameter
    if len(spec) > len(shape):
        raise InvalidRequest(f"{who} has {len(spec)} dimensions, {path} has {len(shape)}; shorten the rule")
    used = [axis for entry in spec for axis in _axes(entry)]
    if missing := [axis for axis in used if axis not in mesh.shape]:
        raise InvalidRequest(f"{who} names axes of the mesh, {list(mesh.shape)}; got {missing}")
    if twice := sorted({axis for axis in used if used.count(axis) > 1}):
        raise InvalidRequest(
            f"an axis divides one dimension of a parameter; {who} has {twice} more than once for {path}; put None in "
            f"one of the places"
        )
    for size, entry in zip(shape, spec, strict=False):
        if size % _ways(entry, mesh):
            raise InvalidRequest(
                f"{who} divides a dimension of {size} of {path} over {_ways(entry, mesh)} devices, which does not come "
                f"out even; divide another dimension, or leave it whole with None"
            )


def _divides(spec: Spec, shape: Sequence[int], mesh: Mesh) -> bool:
    even = all(size % _ways(entry, mesh) == 0 for size, entry in zip(shape, spec, strict=False))
    return len(spec) <= len(shape) and even


def _fsdp(shape: Sequence[int], mesh: Mesh) -> Spec:
    ways = mesh.shape.get("fsdp", 1)
    fitting = [dimension for dimension, size in enumerate(shape) if size % ways == 0 and size >= ways]
    if ways == 1 or not fitting:
        return ()
    largest = max(fitting, key=lambda dimension: shape[dimension])
    return tuple("fsdp" if dimension == largest else None for dimension in range(len(shape)))


def _axes(entry: Entry) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _ways(entry: Entry, mesh: Mesh) -> int:
    return prod(mesh.shape.get(name, 1) for name in _axes(entry))
