"""What would make a plan fit, or faster: each change is planned, and only what helps is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from mms_sdk.compute.planning.plan import Plan, Suggestion
from mms_sdk.compute.sharding.mesh import BATCH_AXES

_FASTER = 0.9  # of the time, from which on a change is worth being said
_SMALLER = 0.99  # of the bytes, likewise


def suggest(plan: Plan) -> tuple[Suggestion, ...]:
    """Changes that make it fit, or leave less missing; where it fits, changes that make it faster."""
    if plan.fits:
        return tuple(_faster(plan))
    most = _SMALLER * plan.device_bytes.total
    return tuple(each for each in _smaller(plan) if each.plan.fits or each.plan.device_bytes.total <= most)


def _faster(plan: Plan) -> Iterator[Suggestion]:
    if plan.options.precision == "fp32":
        made = plan.replan(precision="bf16")
        if made.fits and made.step_s[1] < _FASTER * plan.step_s[1]:
            yield Suggestion(change={"precision": "bf16"}, why="products and memory are faster in it", plan=made)


def _smaller(plan: Plan) -> Iterator[Suggestion]:
    options = plan.options
    if divided := _divided(options.mesh):
        yield _of(plan, {"mesh": divided}, "parameters, gradients and optimizer state are divided over more devices")
    if options.remat == "none":
        yield _of(plan, {"remat": "dots"}, "values of the forward pass are computed again instead of kept")
    if options.precision == "fp32":
        yield _of(plan, {"precision": "bf16"}, "activations take half the room")
    yield from _first_that_fits(plan, "accumulate", "a batch is worked off in parts")
    yield from _first_that_fits(plan, "batch_size", "fewer rows are worked on at once; the run takes other steps")


def _of(plan: Plan, change: Mapping[str, Any], why: str) -> Suggestion:
    return Suggestion(change=change, why=why, plan=plan.replan(**change))


def _divided(mesh: Mapping[str, int]) -> dict[str, int] | None:
    # All devices of the batch along fsdp.
    devices = mesh.get("data", 1) * mesh.get("fsdp", 1)
    if devices == mesh.get("fsdp", 1):
        return None
    return {"fsdp": devices, **{axis: size for axis, size in mesh.items() if axis not in BATCH_AXES}}


def _first_that_fits(plan: Plan, option: str, why: str) -> Iterator[Suggestion]:
    # Halved until it fits; without any that fits, as far as it goes. Each is a trace, so the first that is planned is
    # the first that would fit if what depends on the rows shrank as they do.
    options = plan.options
    rows = options.batch_size // (options.accumulate * prod(options.mesh.get(axis, 1) for axis in BATCH_AXES))
    most = (rows & -rows).bit_length() - 1
    found = None
    for power in range(_first(plan, most), most + 1):
        value = options.accumulate * 2**power if option == "accumulate" else options.batch_size // 2**power
        found = _of(plan, {option: value}, why)
        if found.plan.fits:
            break
    if found is not None:
        yield found


def _first(plan: Plan, most: int) -> int:
    own = plan.device_bytes
    shrinking = own.activations + own.batch
    would_fit = (power for power in range(1, most) if own.total - shrinking + shrinking / 2**power <= plan.limit)
    return next(would_fit, max(1, most))
