"""The best mesh for a target: all that its devices allow are planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mms_sdk.compute.planning.plan import Choice, Plan
from mms_sdk.compute.sharding.mesh import BATCH_AXES
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest


def choose(plan: Plan, *, rules: PartitionRules) -> Choice:
    """Plans every mesh over `data`, `fsdp` and the axes that rules name; where none fits, also with parts and remat.

    Raises:
        InvalidRequest: No mesh divides the batch and the parameters.
    """
    axes = list(dict.fromkeys((*BATCH_AXES, *_named(rules), *plan.options.mesh)))
    tried = list(_plans(plan, axes))
    if not tried:
        raise InvalidRequest(
            f"a mesh of {plan.devices} devices divides the batch and the parameters; none does so for a batch of "
            f"{plan.options.batch_size}; use a multiple of {plan.devices}"
        )
    if not any(each.fits for each in tried):
        tried += [better for each in tried for better in _helped(each)]
    tried.sort(key=_rank)
    return Choice(best=tried[0], tried=tuple(tried))


def _rank(plan: Plan) -> tuple[bool, float, int]:
    # Of those that fit the one whose worst case is best; of others the smallest; of equals the one with fewer axes.
    measure = plan.step_s[1] if plan.fits else float(plan.device_bytes.total)
    return not plan.fits, measure, len(plan.options.mesh)


def _named(rules: PartitionRules) -> Iterator[str]:
    for _, spec in rules.rules:
        for entry in spec:
            yield from (entry,) if isinstance(entry, str) else entry or ()


def _plans(plan: Plan, axes: Sequence[str]) -> Iterator[Plan]:
    for sizes in _shares(plan.devices, len(axes)):
        # Axes that rules name stay in the mesh, also with one device.
        mesh = {axis: size for axis, size in zip(axes, sizes, strict=True) if size > 1 or axis not in BATCH_AXES}
        try:
            yield plan.replan(mesh=mesh or {"data": 1})
        except InvalidRequest:  # the batch or a parameter does not divide so
            continue


def _helped(plan: Plan) -> Iterator[Plan]:
    for each in plan.suggestions:
        if set(each.change) & {"accumulate", "remat"}:
            yield each.plan


def _shares(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    # Every way of writing a count as a product of so many factors, in order.
    if axes == 1:
        yield (count,)
        return
    for first in range(count, 0, -1):
        if count % first == 0:
            yield from ((first, *rest) for rest in _shares(count // first, axes - 1))
