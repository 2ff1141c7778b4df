"""Floating-point operations, counted from a traced function.

A multiplication and an addition are two. What multiplies matrices is counted apart from what works element by
element: devices are rated by the first, and the second is bound by memory. Taps of a convolution that fall between
dilated values or on padding multiply nothing and are not counted, as in XLA's own analysis. A loop with a known number
of rounds counts its body so often, which `cost_analysis()` of a compiled program does not; what remat computes a second
time stands twice in the trace and counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from mms_sdk.compute.planning.operations import Operation, Operations, operations

FREE = frozenset(
    {
        "reshape",
        "squeeze",
        "expand_dims",
        "broadcast_in_dim",
        "transpose",
        "convert_element_type",
        "copy",
        "slice",
        "dynamic_slice",
        "dynamic_update_slice",
        "concatenate",
        "pad",
        "rev",
        "gather",
        "iota",
        "stop_gradient",
        "bitcast_convert_type",
        "split",
        "sharding_constraint",
        "random_wrap",
        "random_unwrap",
        "random_seed",
        "optimization_barrier",
        "device_put",
        "pvary",
    }
)
"""Operations that move or name values and compute none."""

_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin")
Ways: TypeAlias = Callable[[Operations, Operation], int]
"""Over how many devices the work of an operation is divided."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is computed.

    Attributes:
        matmul: FLOPs of matrix products and convolutions, by the dtype of what is multiplied.
        convolutions: Of these, FLOPs of convolutions.
        elementwise: Everything else, one for each element that comes out, or goes into a sum.
        unknown: What could not be counted in full, in words.
    """

    matmul: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    convolutions: float = 0.0
    elementwise: float = 0.0
    unknown: tuple[str, ...] = ()

    @property
    def products(self) -> float:
        """FLOPs of matrix products and convolutions."""
        return sum(self.matmul.values())

    @property
    def total(self) -> float:
        """All FLOPs."""
        return self.products + self.elementwise

    def __add__(self, other: Work) -> Work:
        dtypes = dict.fromkeys((*self.matmul, *other.matmul))
        return Work(
            matmul={dtype: self.matmul.get(dtype, 0.0) + other.matmul.get(dtype, 0.0) for dtype in dtypes},
            convolutions=self.convolutions + other.convolutions,
            elementwise=self.elementwise + other.elementwise,
            unknown=tuple(dict.fromkeys((*self.unknown, *other.unknown))),
        )

    def __mul__(self, times: float) -> Work:
        return Work(
            matmul={dtype: count * times for dtype, count in self.matmul.items()},
            convolutions=self.convolutions * times,
            elementwise=self.elementwise * times,
            unknown=self.unknown,
        )


def whole(_traced: Operations, _operation: Operation) -> int:
    """Work that is not divided."""
    return 1


def count(traced: Operations, ways: Ways = whole) -> Work:
    """The work of a traced function.

    Args:
        traced: Its operations.
        ways: Over how many devices each is divided; the work of one device is counted.
    """
    products: dict[str, float] = {}
    convolutions = elementwise = 0.0
    bodies = Work()
    for each in traced.list:
        if each.bodies:
            bodies = bodies + _of_bodies(each, ways)
            continue
        own = _of_one(each) / ways(traced, each)
        if each.name in ("dot_general", "conv_general_dilated"):
            dtype = _multiplied(each)
            products[dtype] = products.get(dtype, 0.0) + own
            convolutions += own if each.name == "conv_general_dilated" else 0.0
        else:
            elementwise += own
    return Work(matmul=products, convolutions=convolutions, elementwise=elementwise) + bodies


def flops(function: Callable[..., Any], *arguments: Any) -> Work:
    """The work of a function, from shapes alone; nothing is computed.

    Args:
        function: Anything that JAX traces.
        arguments: Arrays, or `jax.ShapeDtypeStruct`s in trees.
    """
    import jax

    return count(operations(jax.make_jaxpr(function)(*arguments)))


def _of_bodies(each: Operation, ways: Ways) -> Work:
    inside = [count(body, ways) * times for body, times in each.bodies]
    match each.name:
        case "cond":
            return max(inside, key=lambda work: work.total)
        case "while":
            told = "a while loop runs as often as its data says; one round of it is counted"
            return sum(inside, Work()) + Work(unknown=(told,))
        case "scan" | "shard_map":
            return sum(inside, Work())
    return sum(inside, Work()) + Work(unknown=(f"{each.name} is counted as its body run once",))


def _of_one(each: Operation) -> float:
    if each.name in FREE:
        return 0.0
    if each.name == "dot_general":
        return _of_dot(each)
    if each.name == "conv_general_dilated":
        return _of_convolution(each)
    if each.name in _REDUCTIONS or each.name.startswith(("reduce", "scatter", "cum", "sort")):
        return float(max(prod(shape) for shape in each.shapes_in))
    return float(
        max((prod(variable.aval.shape) for variable in each.equation.outvars if _is_array(variable)), default=0)
    )


def _is_array(variable: Any) -> bool:
    return hasattr(variable.aval, "shape")


def _multiplied(each: Operation) -> str:
    dtypes = [np.dtype(variable.aval.dtype) for variable in each.equation.invars[:2]]
    return str(max(dtypes, key=lambda dtype: dtype.itemsize))


def _of_dot(each: Operation) -> float:
    (contracted, _), _ = each.equation.params["dimension_numbers"]
    left = each.shapes_in[0]
    terms: int = prod(left[axis] for axis in contracted)
    return 2.0 * terms * float(prod(each.equation.outvars[0].aval.shape))


def _of_convolution(each: Operation) -> float:
    params, (left, right) = each.equation.params, each.shapes_in[:2]
    out = each.equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    positions = 1.0
    for axis, (low, _) in enumerate(params["padding"]):
        positions *= _taps(
            size=left[numbers.lhs_spec[2 + axis]],
            taps=right[numbers.rhs_spec[2 + axis]],
            out=out[numbers.out_spec[2 + axis]],
            low=low,
            stride=params["window_strides"][axis],
            holes=params["lhs_dilation"][axis],
            spread=params["rhs_dilation"][axis],
        )
    channels = int(right[numbers.rhs_spec[1]])  # of one group; and the batch that comes out is that of one batch group
    batch, features = (int(out[axis]) for axis in numbers.out_spec[:2])
    return 2.0 * positions * channels * batch * features


def _taps(*, size: int, taps: int, out: int, low: int, stride: int, holes: int, spread: int) -> int:
    # Pairs of an output and a tap that meet a value: neither padding nor a hole between dilated values.
    places = np.arange(out)[:, None] * stride + np.arange(taps)[None] * spread - low
    return int(((places >= 0) & (places < (size - 1) * holes + 1) & (places % holes == 0)).sum())
