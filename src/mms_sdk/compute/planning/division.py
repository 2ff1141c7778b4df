"""Which dimensions of which values a mesh divides, followed from the parameters through a traced function.

The batch is divided before tracing, by giving the function the rows of one device; what is followed here are the
other axes (`tensor`, `sequence`, `expert`), from the partition rules of the parameters: a small part of what XLA's
partitioner does (Xu et al. 2021, GSPMD, section 3.5), which is enough to see that a product over a divided dimension
leaves each device with a part of a sum, to be added up by an all-reduce (Shoeybi et al. 2019, Megatron-LM,
section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

from mms_sdk.compute.planning.operations import Operation, Operations, bytes_of

Dims: TypeAlias = tuple[tuple[str, ...], ...]
"""For each dimension of a value the mesh axes that divide it."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One exchange among the devices along some axes.

    Attributes:
        kind: `all-reduce`, `all-gather` or `reduce-scatter`.
        axes: Of the mesh.
        bytes: Of the value, as it is whole on these devices.
        what: Whose exchange it is, in words.
        times: How often it takes place in a step.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    what: str
    times: float = 1.0


@dataclass
class Division:
    """How a traced function is divided.

    Attributes:
        sizes: Devices along each mesh axis.
        dims: Of each value, by the identity of the operations and its number.
        exchanges: What devices must tell one another for it.
    """

    sizes: Mapping[str, int]
    dims: dict[tuple[int, int], Dims] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)
    _work: dict[tuple[int, int], int] = field(default_factory=dict)

    def ways(self, traced: Operations, value: int) -> int:
        """Over how many devices a value is divided."""
        return self._count(self.dims.get((id(traced), value), ()))

    def work_ways(self, traced: Operations, operation: Operation) -> int:
        """Over how many devices the work of an operation is divided."""
        return self._work.get((id(traced), operation.outputs[0]), 1) if operation.outputs else 1

    def _count(self, dims: Dims) -> int:
        return prod(self.sizes[axis] for axis in {axis for axes in dims for axis in axes})


def divide(traced: Operations, inputs: Sequence[Dims], sizes: Mapping[str, int]) -> Division:
    """Follows divided dimensions through a function.

    Args:
        traced: Its operations.
        inputs: How each argument is divided; `()` for whole.
        sizes: Devices along each mesh axis.
    """
    made = Division(sizes)
    _follow(made, traced, dict(zip(traced.arguments, inputs, strict=True)), 1.0)
    return made


def _follow(made: Division, traced: Operations, known: dict[int, Dims], times: float) -> list[Dims]:
    for each in traced.list:
        given = [known.get(value, ()) for value in each.inputs]
        if not any(any(dims) for dims in given):
            continue  # nothing divided comes in, so nothing goes out
        outs = _through(made, traced, each, known, times)
        known.update(zip(each.outputs, outs, strict=True))
        axes = {axis for dims in (*outs, *(given if each.name in _PRODUCTS else ())) for own in dims for axis in own}
        made._work[id(traced), each.outputs[0]] = prod(made.sizes[axis] for axis in axes)
    made.dims.update({(id(traced), value): dims for value, dims in known.items() if any(dims)})
    return [known.get(value, ()) for value in traced.outputs]


_PRODUCTS = ("dot_general", "conv_general_dilated")


def _through(made: Division, traced: Operations, each: Operation, known: dict[int, Dims], times: float) -> list[Dims]:
    given = _given(each, known)
    shape = tuple(getattr(each.equation.outvars[0].aval, "shape", ()))
    match each.name:
        case "dot_general":
            out, summed = _dot(each, given)
        case "conv_general_dilated":
            out, summed = _convolution(each, given)
        case "scan":
            return _scan(made, each, given, times)
        case "transpose":
            out, summed = tuple(given[0][axis] for axis in each.equation.params["permutation"]), ()
        case "broadcast_in_dim":
            out, summed = _broadcast(each, given[0], shape), ()
        case "reshape" | "squeeze" | "expand_dims":
            out, summed = _reshaped(each.shapes_in[0], given[0], shape), ()
        case "gather":
            out, summed = _gathered(each, given[0], shape)
        case name if name.startswith(("reduce_", "argm")):
            axes = each.equation.params["axes"]
            out = tuple(dim for axis, dim in enumerate(given[0]) if axis not in axes)
            summed = tuple(name for axis in axes for name in given[0][axis])
        case name if name.startswith(("sort", "cum", "top_k", "fft")):
            out, summed = ((),) * len(shape), ()
        case _:
            out, summed = _element_by_element(each, given, shape), ()
    out = _each_once(out)
    if summed:
        part = bytes_of(each.equation.outvars[0].aval) // made._count(out)
        what = "sums over divided dimensions of activations"
        made.exchanges.append(Exchange(kind="all-reduce", axes=tuple(summed), bytes=part, what=what, times=times))
    elif not any(out) and each.name not in ("slice", "dynamic_slice"):
        _gather_inputs(made, each, given, times)
    return [out, *(() for _ in each.outputs[1:])]


def _given(each: Operation, known: dict[int, Dims]) -> list[Dims]:
    # One entry for each input of the equation, also for constants that stand in it.
    numbers = iter(each.inputs)
    out = []
    for atom, shape in zip(each.equation.invars, each.shapes_in, strict=True):
        dims = () if hasattr(atom, "val") else known.get(next(numbers), ())
        out.append(dims or ((),) * len(shape))
    return out


def _gather_inputs(made: Division, each: Operation, given: list[Dims], times: float) -> None:
    # What the followed rules cannot keep divided is brought together, as the partitioner would.
    for atom, dims in zip(each.equation.invars, given, strict=True):
        axes = tuple({axis for own in dims for axis in own})
        if axes:
            what = f"values brought together for {each.name}"
            size = bytes_of(atom.aval)
            made.exchanges.append(Exchange(kind="all-gather", axes=axes, bytes=size, what=what, times=times))


def _dot(each: Operation, given: list[Dims]) -> tuple[Dims, tuple[str, ...]]:
    (left_summed, right_summed), (left_batch, right_batch) = each.equation.params["dimension_numbers"]
    left, right = given[:2]
    batch = [left[a] or right[b] for a, b in zip(left_batch, right_batch, strict=True)]
    left_free = [dim for axis, dim in enumerate(left) if axis not in (*left_summed, *left_batch)]
    right_free = [dim for axis, dim in enumerate(right) if axis not in (*right_summed, *right_batch)]
    summed = {name for a, b in zip(left_summed, right_summed, strict=True) for name in (*left[a], *right[b])}
    free = tuple(tuple(name for name in dim if name not in summed) for dim in (*batch, *left_free, *right_free))
    return free, tuple(sorted(summed))


def _convolution(each: Operation, given: list[Dims]) -> tuple[Dims, tuple[str, ...]]:
    numbers = each.equation.params["dimension_numbers"]
    left, right = given[:2]
    out: list[tuple[str, ...]] = [()] * len(left)
    out[numbers.out_spec[0]] = left[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = right[numbers.rhs_spec[0]]
    summed = tuple(sorted({*left[numbers.lhs_spec[1]], *right[numbers.rhs_spec[1]]}))
    if each.equation.params["feature_group_count"] > 1:  # groups of channels are apart: nothing is summed over them
        out[numbers.out_spec[1]] = out[numbers.out_spec[1]] or left[numbers.lhs_spec[1]]
        summed = ()
    return tuple(tuple(name for name in dim if name not in summed) for dim in out), summed


def _broadcast(each: Operation, given: Dims, shape: tuple[int, ...]) -> Dims:
    out: list[tuple[str, ...]] = [()] * len(shape)
    for dim, axis, size in zip(given, each.equation.params["broadcast_dimensions"], each.shapes_in[0], strict=True):
        out[axis] = dim if size == shape[axis] else ()
    return tuple(out)


def _reshaped(before: tuple[int, ...], given: Dims, after: tuple[int, ...]) -> Dims:
    # A divided dimension stays so where as much stands before it: the outermost of those that it is split into.
    out: list[tuple[str, ...]] = [()] * len(after)
    starts: dict[int, int] = {}
    for axis, size in enumerate(after):
        if size > 1:
            starts.setdefault(prod(after[:axis]), axis)
    for axis, dim in enumerate(given):
        place = starts.get(prod(before[:axis]))
        if dim and place is not None:
            out[place] = dim
    return tuple(out)


def _gathered(each: Operation, given: Dims, shape: tuple[int, ...]) -> tuple[Dims, tuple[str, ...]]:
    # Rows of a table: what divides the features stays, what divides the rows leaves parts of a sum.
    before = each.shapes_in[0]
    out: list[tuple[str, ...]] = [()] * len(shape)
    if shape and before and shape[-1] == before[-1]:
        out[-1] = given[-1]
    kept = set(out[-1]) if out else set()
    return tuple(out), tuple(sorted({name for dim in given for name in dim} - kept))


def _element_by_element(each: Operation, given: list[Dims], shape: tuple[int, ...]) -> Dims:
    out: list[tuple[str, ...]] = [()] * len(shape)
    for before, dims in zip(each.shapes_in, given, strict=True):
        if len(before) == len(shape):
            for axis, dim in enumerate(dims):
                if before[axis] == shape[axis]:
                    out[axis] = out[axis] or dim
    return tuple(out)


def _each_once(dims: Dims) -> Dims:
    seen: set[str] = set()
    out = []
    for dim in dims:
        out.append(tuple(name for name in dim if name not in seen))
        seen.update(dim)
    return tuple(out)


def _alike(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(out.aval.ndim == own.aval.ndim for out, own in zip(outside, inside, strict=True))


def _scan(made: Division, each: Operation, given: list[Dims], times: float) -> list[Dims]:
    body, rounds = each.bodies[0]
    # What is stacked has an axis more outside than inside; how a scan counts its operands differs by version of JAX.
    inner = each.equation.params["jaxpr"].jaxpr
    whole = _alike(each.equation.invars, inner.invars)
    carried = _alike(each.equation.outvars, inner.outvars)
    stacked = [dims[1:] for dims in given[whole:]]
    known = dict(zip(body.arguments, [*given[:whole], *stacked], strict=True))
    outs = _follow(made, body, known, times * rounds)
    return [*outs[:carried], *(((), *dims) if dims else () for dims in outs[carried:])]
