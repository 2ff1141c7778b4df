"""A plan: what a run needs of a target, how long it takes and what it costs. Each suggestion is one too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from mms_sdk import html, told
from mms_sdk.compute.planning.division import Exchange
from mms_sdk.compute.planning.flops import Work
from mms_sdk.compute.training.precision import PrecisionName
from mms_sdk.compute.training.step_options import Remat

Range = tuple[float, float]
"""From the least that is likely to the most."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a plan may change of a run.

    Attributes:
        mesh: Devices along each axis.
        batch_size: Rows in a step over all devices.
        accumulate: Parts of a batch whose gradients are added up, one after the other.
        remat: What of the forward pass is computed again in the backward pass rather than kept, as the trainer has it.
        precision: What is computed with: `fp32`, `bf16` or `fp16`. Parameters stay float32.
    """

    mesh: Mapping[str, int]
    batch_size: int
    accumulate: int = 1
    remat: Remat = "none"
    precision: PrecisionName = "fp32"


@dataclass(frozen=True, kw_only=True)
class DeviceBytes:
    """Bytes on each device.

    Attributes:
        parameters: And what else of the model is carried, such as running averages.
        optimizer: Its state.
        gradients: One value for each that is trained; twice that while they are added up.
        activations: What is alive at once between the forward and the backward pass, at most; and parameters that are
            gathered while they are used.
        batch: Inputs, labels and weights, for the step and for the two that wait.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.gradients + self.activations + self.batch


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change, and what it leads to.

    Attributes:
        change: Options that change, by name.
        why: In words.
        plan: The plan with the change.
    """

    change: Mapping[str, Any]
    why: str
    plan: Plan = field(repr=False)

    def __str__(self) -> str:
        changed = ", ".join(f"{name}={value}" for name, value in self.change.items())
        return f"{changed}: {self.why}; {self.plan.in_short}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best mesh of those tried.

    Attributes:
        best: The plan that fits and is expected to be done first; where none fits the one that comes nearest.
        tried: All of them, the best first.
    """

    best: Plan
    tried: tuple[Plan, ...]

    @property
    def verdict(self) -> str:
        """The best in a sentence; where none fits, what the nearest lacks."""
        best = self.best
        named = best.row()["mesh"] + best._changed()
        if best.fits:
            return f"the best of {len(self.tried)} for {best.target} is {named}: {best.in_short}"
        lacks = best.device_bytes.total - best.limit
        return (
            f"none of {len(self.tried)} fits {best.target}; {named} comes nearest and needs {told.size(lacks)} less on "
            f"each device; take more devices, a larger one or a smaller model"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each mesh tried."""
        return [each.row() for each in self.tried]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"verdict": self.verdict, "best": self.best.to_json(), "tried": self.rows()}

    def __str__(self) -> str:
        rows = [{name: _cell(value) for name, value in row.items()} for row in self.rows()]
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        lines = ["  ".join(name.ljust(width) for name, width in widths.items()).rstrip()]
        lines += ["  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip() for row in rows]
        return "\n".join([*lines, self.verdict])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()
        title = f"meshes for {self.best.target}, the best first"
        table = html.table(title, list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
        return table + html.line(self.verdict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs of a target. Nothing was read and nothing ran.

    Attributes:
        target: e.g. `h100:8`.
        devices: How many.
        options: Mesh, batch and the rest that it is for.
        rows: Training rows, each once an epoch.
        epochs: Passes over them, at most.
        parameters: Number of trained values.
        device_bytes: What each device holds.
        capacity: Bytes of a device that arrays may take.
        compiled: Whether the bytes are those of a program compiled for the target, and not an estimate.
        work: FLOPs of one step on one device.
        model_flops: FLOPs of the model's products in one step over all devices, what is computed again left out; the
            measure of MFU.
        exchanges: What devices tell one another in a step.
        sent_bytes: What each device sends for that.
        step_s: Seconds of a step, from the best that is likely to the worst.
        mfu: Share of the devices' peak that the model's products reach, from the worst to the best that is likely.
        steps: Of the whole run.
        run_s: Seconds of the whole run, evaluation and input left out.
        cost: Of the run, in the currency of the prices; None without a price for this device.
        notes: What to know of these figures.
    """

    target: str
    devices: int
    options: Options
    rows: int
    epochs: int
    parameters: int
    device_bytes: DeviceBytes
    capacity: int
    compiled: bool
    work: Work
    model_flops: float
    exchanges: tuple[Exchange, ...]
    sent_bytes: float
    step_s: Range
    mfu: Range
    steps: int
    run_s: Range
    cost: Range | None
    notes: tuple[str, ...]
    _again: Callable[[Options], Plan] = field(repr=False, compare=False)
    _suggest: Callable[[Plan], tuple[Suggestion, ...]] = field(repr=False, compare=False)
    _choose: Callable[[Plan], Choice] = field(repr=False, compare=False)

    @property
    def margin(self) -> float:
        """Share of a device's memory that is left; below 0 for what is missing."""
        return 1 - self.device_bytes.total / self.capacity

    @property
    def limit(self) -> int:
        """Bytes that it may take: nine tenths of a device's where they are an estimate, all where they are known."""
        return self.capacity if self.compiled else int(0.9 * self.capacity)

    @property
    def fits(self) -> bool:
        """Whether it takes no more than the limit."""
        return self.device_bytes.total <= self.limit

    @property
    def in_short(self) -> str:
        """Bytes and time in a line."""
        fits = "fits" if self.fits else "does not fit"
        return f"{told.size(self.device_bytes.total)} on each device, {fits}, {_seconds(self.step_s)} a step"

    @cached_property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """What would make it fit, or faster, each planned; computed when they are first asked for."""
        return self._suggest(self)

    def replan(self, **changes: Any) -> Plan:
        """The plan with other options.

        Args:
            changes: Fields of `plan.options`, e.g. `mesh={"data": 2, "fsdp": 4}`, `batch_size`, `accumulate`.

        Raises:
            InvalidRequest: They do not fit the target.
        """
        from dataclasses import replace

        from mms_sdk.errors import InvalidRequest

        known = asdict(self.options)
        if unknown := sorted(set(changes) - set(known)):
            raise InvalidRequest(f"a plan is changed in {', '.join(known)}; got {unknown}")
        return self._again(replace(self.options, **changes))

    def choose(self) -> Choice:
        """The best mesh for this target, among all that its devices and the rules allow."""
        return self._choose(self)

    def row(self) -> dict[str, Any]:
        """The plan as a row of a table."""
        return {
            "mesh": ",".join(f"{axis}={size}" for axis, size in self.options.mesh.items()),
            "accumulate": self.options.accumulate,
            "remat": self.options.remat,
            "fits": self.fits,
            "bytes": self.device_bytes.total,
            "step_s": self.step_s,
            "sent_bytes": self.sent_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON: numbers in bytes, seconds and FLOPs."""
        shown = {
            name: getattr(self, name)
            for name in [
                "target",
                "devices",
                "rows",
                "epochs",
                "parameters",
                "capacity",
                "compiled",
                "margin",
                "fits",
                "model_flops",
                "sent_bytes",
                "steps",
            ]
        }
        return {
            **shown,
            "options": {**asdict(self.options), "mesh": dict(self.options.mesh)},
            "device_bytes": {**asdict(self.device_bytes), "total": self.device_bytes.total},
            "device_flops": {"products": dict(self.work.matmul), "elementwise": self.work.elementwise},
            "exchanges": [{**asdict(each), "axes": list(each.axes)} for each in self.exchanges],
            "step_s": list(self.step_s),
            "mfu": list(self.mfu),
            "run_s": list(self.run_s),
            "cost": None if self.cost is None else list(self.cost),
            "notes": list(self.notes),
            "suggestions": [{"change": dict(each.change), "why": each.why} for each in self.suggestions],
        }

    def facts(self) -> dict[str, str]:
        """What matters, in words."""
        size, own = told.size, self.device_bytes
        about = "compiled for it" if self.compiled else "estimated"
        lack = f"{-self.margin:.0%} too much" if self.margin < 0 else f"{self.margin:.0%} to spare"
        out = {
            "target": f"{self.target}: {told.counted(self.devices, 'device')}, {size(self.capacity)} each",
            "mesh": ", ".join(f"{axis}={count}" for axis, count in self.options.mesh.items()),
            "batch": f"{told.counted(self.options.batch_size, 'row')}, {self._batch()}",
            "parameters": f"{self.parameters:,}",
            "on each device": f"{size(own.total)} ({about}): parameters {size(own.parameters)}, "
            f"optimizer {size(own.optimizer)}, gradients {size(own.gradients)}, activations {size(own.activations)}, "
            f"batch {size(own.batch)}",
            "fits": f"{'yes' if self.fits else 'no'}, {lack}",
            "FLOPs a step": f"{self.model_flops:.3g} of the model; on each device {self.work.products:.3g} in products "
            f"and {self.work.elementwise:.3g} element by element",
            "exchanged a step": self._exchanged(),
            "a step": f"{_seconds(self.step_s)}, MFU {_share(self.mfu)}",
            "the run": f"{told.counted(self.steps, 'step')} in {_seconds(self.run_s)}",
        }
        if self.cost is not None:
            out["cost"] = " to ".join(map(_price, self.cost))
        return out

    def _changed(self) -> str:
        options = self.options
        parts = [f"accumulate={options.accumulate}"] if options.accumulate > 1 else []
        parts += [f"remat={options.remat}"] if options.remat != "none" else []
        return "".join(f" with {part}" if not number else f", {part}" for number, part in enumerate(parts))

    def _batch(self) -> str:
        options = self.options
        parts = [f"computed in {options.precision}"]
        parts += [f"in {options.accumulate} parts"] if options.accumulate > 1 else []
        parts += [f"remat {options.remat}"] if options.remat != "none" else []
        return ", ".join(parts)

    def _exchanged(self) -> str:
        kinds: dict[str, float] = {}
        for each in self.exchanges:
            kinds[each.kind] = kinds.get(each.kind, 0) + each.bytes * each.times
        named = ", ".join(f"{kind} of {told.size(int(size))}" for kind, size in kinds.items())
        return f"{named}; each device sends {told.size(int(self.sent_bytes))}" if kinds else "nothing"

    def __str__(self) -> str:
        facts = self.facts()
        width = max(map(len, facts))
        lines = [f"{name.ljust(width)}  {value}" for name, value in facts.items()]
        lines += [f"{'note'.ljust(width)}  {note}" for note in self.notes]
        lines += [f"{'suggestion'.ljust(width)}  {each}" for each in self.suggestions]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sections = [html.pairs(self.facts())]
        if self.suggestions:
            rows = [
                [", ".join(f"{name}={value}" for name, value in each.change.items()), each.why, each.plan.in_short]
                for each in self.suggestions
            ]
            sections.append(html.table("suggestions", ["change", "why", "leads to"], rows, level=4))
        return html.titled(f"plan for {self.target}", *sections, *map(html.line, self.notes))


def _seconds(between: Range) -> str:
    low, high = between
    factor, unit = next(
        ((factor, unit) for factor, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if high >= 2 * factor),
        (1e-3, "ms"),
    )
    return f"{told.number(float(f'{low / factor:.2g}'))} to {told.number(float(f'{high / factor:.2g}'))} {unit}"


def _share(between: Range) -> str:
    return " to ".join(f"{share:.0%}" if share >= 0.1 or not share else f"{100 * share:.1g}%" for share in between)


def _price(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return _seconds(value)
    if isinstance(value, int | float) and value >= 1024:
        return told.size(int(value))
    return str(value)
