"""What devices tell one another in a step, in bytes, and how long that takes at least.

Costs are those of rings (Thakur, Rabenseifner, Gropp 2005, section 4): of n devices each sends (n - 1)/n of the whole
value in an all-gather or a reduce-scatter, and twice that in an all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from mms_sdk.compute.planning.devices import Device
from mms_sdk.compute.planning.division import Dims, Exchange
from mms_sdk.compute.sharding.mesh import BATCH_AXES

_SENT = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0}


def for_parameters(
    params: Mapping[str, Any], dims: Mapping[str, Dims], sizes: Mapping[str, int], *, micro_batches: int, itemsize: int
) -> list[Exchange]:
    """The exchanges that parameters and their gradients need.

    A parameter that a batch axis divides (FSDP) is gathered for the forward and again for the backward pass, and its
    gradient is summed and scattered (Rajbhandari et al. 2020, ZeRO, section 7); any gradient is then summed over the
    batch axes that are left.

    Args:
        params: By path: anything with `shape` and `dtype`.
        dims: Of each, which axes divide which dimension.
        sizes: Devices along each mesh axis.
        micro_batches: How often in a step the gradient is computed.
        itemsize: Bytes of a value as it is computed with.
    """
    totals: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(kind: str, axes: tuple[str, ...], count: float, size: int) -> None:
        if prod(sizes[axis] for axis in axes) > 1:
            totals[kind, axes] = totals.get((kind, axes), 0) + int(count * size)

    batch = tuple(axis for axis in BATCH_AXES if sizes.get(axis, 1) > 1)
    for path, value in params.items():
        used = {axis for dim in dims[path] for axis in dim}
        elsewhere = prod(sizes[axis] for axis in used if axis not in BATCH_AXES)
        count = float(np.prod(value.shape, dtype=np.int64)) / elsewhere
        own = tuple(axis for axis in batch if axis in used)
        rest = tuple(axis for axis in batch if axis not in used)
        add("all-gather", own, 2 * micro_batches * count, itemsize)
        add("reduce-scatter", own, micro_batches * count, np.dtype(value.dtype).itemsize)
        add("all-reduce", rest, count / prod(sizes[axis] for axis in own), np.dtype(value.dtype).itemsize)
    told = {"all-gather": "parameters", "reduce-scatter": "gradients", "all-reduce": "gradients"}
    return [Exchange(kind=kind, axes=axes, bytes=size, what=told[kind]) for (kind, axes), size in totals.items()]


def joined(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """The same, with those alike put together; each then takes place once."""
    totals: dict[tuple[str, tuple[str, ...], str], float] = {}
    for each in exchanges:
        key = each.kind, each.axes, each.what
        totals[key] = totals.get(key, 0.0) + each.bytes * each.times
    return [Exchange(kind=kind, axes=axes, bytes=int(size), what=what) for (kind, axes, what), size in totals.items()]


def sent_bytes(each: Exchange, sizes: Mapping[str, int]) -> float:
    """Bytes that one device sends for an exchange."""
    devices = prod(sizes[axis] for axis in each.axes)
    return _SENT[each.kind] * (devices - 1) / devices * each.bytes * each.times


def seconds(exchanges: Iterable[Exchange], sizes: Mapping[str, int], device: Device) -> float:
    """How long they take at the full rate, one after the other.

    An axis whose devices do not all stand in one linked group goes at the rate of the network. Axes are laid out in the
    order of the mesh, the last one within the smallest group.
    """
    return sum(sent_bytes(each, sizes) / _rate(each.axes, sizes, device) for each in exchanges)


def _rate(axes: tuple[str, ...], sizes: Mapping[str, int], device: Device) -> float:
    names = list(sizes)
    outermost = min(names.index(axis) for axis in axes)
    spanned = prod(sizes[axis] for axis in names[outermost:])
    return device.link_rate if spanned <= device.linked else device.network_rate
