"""A traced function as one list of operations: calls are put in place, loops and branches keep their bodies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_NOT_IN_PLACE = ("scan", "while", "cond", "shard_map", "pallas_call", "custom_partitioning")


class Operation(NamedTuple):
    """One primitive.

    Attributes:
        name: Of the primitive, e.g. `dot_general`.
        inputs: Numbers of the values it reads; constants written in place are left out.
        outputs: Numbers of the values it makes.
        equation: The equation of the jaxpr: parameters, and the types of what goes in and out.
        bodies: What it runs, if it is a loop or a choice: its parts with how often each runs.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    equation: Any
    bodies: tuple[tuple[Operations, float], ...] = ()

    @property
    def shapes_in(self) -> list[tuple[int, ...]]:
        """Shapes of everything it reads, constants among them."""
        return [tuple(getattr(each.aval, "shape", ())) for each in self.equation.invars]


@dataclass
class Operations:
    """Operations in the order in which they run.

    Attributes:
        inputs: Numbers of the values that come in: first constants, then arguments.
        arguments: Those of the arguments alone.
        outputs: Numbers of the values that go out.
        types: Of each value, by number: anything with `shape` and `dtype`.
        list: The operations.
    """

    inputs: list[int] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    types: list[Any] = field(default_factory=list)
    list: list[Operation] = field(default_factory=list)

    def bytes(self, value: int) -> int:
        """Bytes of a value, whole."""
        return bytes_of(self.types[value])

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return tuple(getattr(self.types[value], "shape", ()))


def bytes_of(kind: Any) -> int:
    """Bytes of an array of a type; keys of random numbers and tokens count as nothing."""
    dtype = getattr(kind, "dtype", None)
    if dtype is None or not isinstance(dtype, np.dtype):
        return 0
    return int(np.prod(kind.shape, dtype=np.int64)) * dtype.itemsize


def operations(closed: Any) -> Operations:
    """The operations of a closed jaxpr, as `jax.make_jaxpr` gives it."""
    made = Operations()
    jaxpr = closed.jaxpr
    names: dict[Any, int] = {}
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        names[variable] = _new(made, variable.aval)
        made.inputs.append(names[variable])
    made.arguments = made.inputs[len(jaxpr.constvars) :]
    _put(made, jaxpr, names)
    made.outputs = [names[each] for each in jaxpr.outvars if _is_variable(each)]
    made.list = _needed(made)
    return made


def _needed(made: Operations) -> list[Operation]:
    # What nobody reads is not computed by XLA either: e.g. the value of a function of which only the gradient is asked.
    read = set(made.outputs)
    kept = []
    for each in reversed(made.list):
        if read.intersection(each.outputs) or each.equation.effects:
            kept.append(each)
            read.update(each.inputs)
    return kept[::-1]


def _put(made: Operations, jaxpr: Any, names: dict[Any, int]) -> None:
    for equation in jaxpr.eqns:
        body = _in_place(equation)
        if body is not None:
            _put_call(made, body, equation, names)
            continue
        for variable in equation.outvars:
            names[variable] = _new(made, variable.aval)
        made.list.append(
            Operation(
                equation.primitive.name,
                tuple(names[each] for each in equation.invars if _is_variable(each)),
                tuple(names[each] for each in equation.outvars),
                equation,
                tuple(_bodies(equation)),
            )
        )


def _put_call(made: Operations, body: Any, equation: Any, names: dict[Any, int]) -> None:
    # A call's own names; what it is given and gives back is known outside under other ones.
    inside: dict[Any, int] = {each: _new(made, each.aval) for each in body.jaxpr.constvars}
    for own, given in zip(body.jaxpr.invars, equation.invars, strict=True):
        inside[own] = names[given] if _is_variable(given) else _new(made, given.aval)
    _put(made, body.jaxpr, inside)
    for outer, own in zip(equation.outvars, body.jaxpr.outvars, strict=True):
        names[outer] = inside[own] if _is_variable(own) else _new(made, own.aval)


def _in_place(equation: Any) -> Any:
    # A call whose body takes just what it is given: jit, remat, functions with derivatives of their own.
    if equation.primitive.name in _NOT_IN_PLACE:
        return None
    for name in _BODIES:
        body = equation.params.get(name)
        if body is not None:
            closed = body if hasattr(body, "jaxpr") else _closed(body)
            return closed if len(closed.jaxpr.invars) == len(equation.invars) else None
    return None


def _bodies(equation: Any) -> Iterator[tuple[Operations, float]]:
    params, name = equation.params, equation.primitive.name
    if name == "scan":
        yield operations(params["jaxpr"]), params["length"]
    elif name == "while":
        yield operations(params["cond_jaxpr"]), 1
        yield operations(params["body_jaxpr"]), 1
    elif name == "cond":
        yield from ((operations(branch), 1) for branch in params["branches"])
    else:
        for key in _BODIES:
            body = params.get(key)
            if body is not None and (hasattr(body, "eqns") or hasattr(body, "jaxpr")):
                yield operations(body if hasattr(body, "jaxpr") else _closed(body)), 1


def _closed(jaxpr: Any) -> Any:
    from jax.extend.core import ClosedJaxpr

    return ClosedJaxpr(jaxpr, ())


def _new(made: Operations, kind: Any) -> int:
    made.types.append(kind)
    return len(made.types) - 1


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")
