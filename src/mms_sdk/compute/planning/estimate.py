"""From a case to a plan: bytes from the shardings, work from a trace, time from the roofline.

The roofline (Williams, Waterman, Patterson 2009): a step takes at least as long as its products at the device's peak,
as its bytes at the memory's rate, and as its exchanges at the links' rate. The best that is likely hides each behind
the longest; the worst does one after the other, at lower rates, with a price for each kernel.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from mms_sdk.compute.planning.case import Case, Traced, abstract_mesh, axes_of
from mms_sdk.compute.planning.choose import choose
from mms_sdk.compute.planning.collectives import for_parameters, joined, seconds, sent_bytes
from mms_sdk.compute.planning.devices import TAKEN_ON_GPU, idle_cores, parse_target
from mms_sdk.compute.planning.division import Dims, Division, Exchange, divide
from mms_sdk.compute.planning.flops import Work, count, flops
from mms_sdk.compute.planning.memory import Memory, memory
from mms_sdk.compute.planning.offline import compiled_bytes
from mms_sdk.compute.planning.operations import Operations, bytes_of
from mms_sdk.compute.planning.plan import DeviceBytes, Options, Plan, Range
from mms_sdk.compute.planning.suggest import suggest
from mms_sdk.compute.sharding.mesh import BATCH_AXES, mesh_sizes
from mms_sdk.compute.training.precision import Precision
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from mms_sdk.compute.training.trainer import Trainer, TrainingData

_WAITING = 3  # batches on the devices: the step's own, and those of the steps in flight
_EXCHANGE_EFFICIENCY = (0.4, 0.9)
_COMPUTED_IN = {"fp32": "float32", "bf16": "bfloat16", "fp16": "bfloat16"}  # at the same rate, in the same bytes


def make_plan(
    trainer: Trainer,
    data: TrainingData,
    *,
    target: str = "local",
    prices: Mapping[str, float] | None = None,
    compile: bool = False,
) -> Plan:
    """What a run needs of a target; see `Trainer.plan`."""
    from mms_sdk.compute.training.trainer import suited_batch_size

    if not hasattr(data, "open"):
        raise InvalidRequest(f"a plan is for a dataset, e.g. ws.datasets.get('flowers'); got {data!r}")
    if prices is not None and not isinstance(prices, Mapping):
        raise InvalidRequest(f"prices are by device, per device and hour, e.g. {{'h100': 2.5}}; got {prices!r}")
    case = Case(
        trainer=trainer, snapshot=data.open(), target=parse_target(target), prices=prices or {}, compile=compile
    )
    mesh, rows = mesh_sizes(axes_of(trainer.mesh), case.target.count), case.rows
    parts = _parts(mesh) * trainer.accumulate
    batch = trainer.batch_size or -(-suited_batch_size(rows) // parts) * parts
    return _plan(
        case,
        Options(
            mesh=mesh,
            batch_size=batch,
            accumulate=trainer.accumulate,
            remat=trainer.remat,
            precision=trainer.precision,
        ),
    )


def _plan(case: Case, options: Options) -> Plan:
    with _nothing_collected():
        return _planned(case, options)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    # A trace makes a million small objects that live until its end; looking for garbage among them is a third of it.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _planned(case: Case, options: Options) -> Plan:
    sizes = mesh_sizes(options.mesh, case.target.count)
    options = Options(**{**vars(options), "mesh": sizes})
    rows = _rows_at_once(options, sizes)
    layout = _Layout.of(case, sizes)
    traced = case.trace(options, rows)
    division = divide(traced.operations, layout.inputs(traced), sizes)
    used = memory(traced.operations, partial(_size, division, layout.shares(traced)))
    work = count(traced.operations, division.work_ways) * options.accumulate + layout.update_work(case)
    exchanges = joined(
        [
            *for_parameters(
                case.program.abstract.params,
                layout.dims,
                sizes,
                micro_batches=options.accumulate,
                itemsize=_itemsize(options),
            ),
            *(Exchange(**{**vars(each), "times": each.times * options.accumulate}) for each in division.exchanges),
        ]
    )
    moved = used.moved * options.accumulate + layout.update_moved
    model = case.trace(Options(**{**vars(options), "remat": "none"}), rows)
    model_flops = count(model.operations).products * options.accumulate * _parts(sizes)
    step = _step_s(case, work, moved, used.kernels * options.accumulate, seconds(exchanges, sizes, case.target.device))
    steps = -(-case.rows // options.batch_size) * case.trainer.epochs
    run = step[0] * steps, step[1] * steps
    own = layout.bytes(case, options, rows, used)
    exact = compiled_bytes(case, options, own) if case.compile else None
    peak = case.target.device.flops_rate(_COMPUTED_IN[options.precision]) * case.target.count
    return Plan(
        target=str(case.target),
        devices=case.target.count,
        options=options,
        rows=case.rows,
        epochs=case.trainer.epochs,
        parameters=case.program.parameters(),
        device_bytes=own if exact is None else exact,
        capacity=case.target.device.memory_bytes,
        compiled=exact is not None,
        work=work,
        model_flops=model_flops,
        exchanges=tuple(exchanges),
        sent_bytes=sum(sent_bytes(each, sizes) for each in exchanges),
        step_s=step,
        mfu=(model_flops / step[1] / peak, model_flops / step[0] / peak),
        steps=steps,
        run_s=run,
        cost=_cost(case, run),
        notes=tuple(_notes(case, layout, work, exact is not None)),
        _again=partial(_plan, case),
        _suggest=suggest,
        _choose=partial(choose, rules=case.trainer.rules),
    )


def _parts(sizes: Mapping[str, int]) -> int:
    return prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def _rows_at_once(options: Options, sizes: Mapping[str, int]) -> int:
    parts = _parts(sizes) * options.accumulate
    if options.accumulate < 1 or options.batch_size < 1 or options.batch_size % parts:
        over = f"{_parts(sizes)} devices" + (f" in {options.accumulate} parts" if options.accumulate != 1 else "")
        raise InvalidRequest(
            f"a batch divides over the devices of data and fsdp; {options.batch_size} rows over {over} does not; use a "
            f"multiple of {max(1, parts)}"
        )
    Precision(options.precision)  # refuses what is none
    return options.batch_size // parts


def _size(division: Division, shares: Mapping[int, int], traced: Operations, value: int) -> int:
    return traced.bytes(value) // (division.ways(traced, value) * shares.get(value, 1))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    # Where the state lies: bytes of one device, and which axes divide which parameter.
    sizes: Mapping[str, int]
    dims: Mapping[str, Dims]
    state: tuple[int, int, int]
    learnt: int
    gathered: int

    @classmethod
    def of(cls, case: Case, sizes: Mapping[str, int]) -> _Layout:
        import jax

        program = case.on(abstract_mesh(sizes))
        state, shardings = program.abstract, program.shardings
        learnt = program.options.learnt(state.params)
        dims = {path: _dims(shardings.params[path].spec, value.shape) for path, value in state.params.items()}

        def held(values: Any, where: Any) -> int:
            each = jax.tree.map(lambda value, place: bytes_of(value) // _ways(place.spec, sizes), values, where)
            return sum(jax.tree.leaves(each))

        whole = [bytes_of(value) for path, value in state.params.items() if any("fsdp" in dim for dim in dims[path])]
        return cls(
            sizes=sizes,
            dims=dims,
            state=(
                held(state.params, shardings.params) + held(state.extra, shardings.extra),
                held(state.rest, shardings.rest),
                held(state.opt, shardings.opt),
            ),
            learnt=held(
                {path: state.params[path] for path in learnt}, {path: shardings.params[path] for path in learnt}
            ),
            # The largest parameter whole, and its gradient before it is summed and scattered.
            gathered=2 * max(whole, default=0) if sizes.get("fsdp", 1) > 1 else 0,
        )

    @property
    def update_moved(self) -> int:
        # The optimizer reads parameters, gradients and its state, and writes all but the gradients.
        return 3 * self.learnt + 2 * self.state[2]

    def inputs(self, traced: Traced) -> list[Dims]:
        # How each argument is divided by axes other than the batch's.
        known = {
            traced.params[path]: tuple(tuple(axis for axis in dim if axis not in BATCH_AXES) for dim in dims)
            for path, dims in self.dims.items()
        }
        return [known.get(value, ()) for value in traced.operations.arguments]

    def shares(self, traced: Traced) -> dict[int, int]:
        # A parameter in another dtype or shape is kept as divided as the parameter, and gathered where it is used.
        out = {
            traced.params[path]: prod(self.sizes[axis] for dim in dims for axis in dim if axis in BATCH_AXES)
            for path, dims in self.dims.items()
        }
        for each in traced.operations.list:
            if each.name in ("convert_element_type", "reshape", "transpose") and each.inputs and each.inputs[0] in out:
                out[each.outputs[0]] = out[each.inputs[0]]
        return out

    def update_work(self, case: Case) -> Work:
        # Element by element, so divided as the parameters are.
        state = case.program.abstract
        if "update" not in case._traces:
            learnt = {path: state.params[path] for path in case.program.options.learnt(state.params)}
            whole = sum(bytes_of(value) for value in learnt.values())
            case._traces["update"] = flops(case.program.optimizer.update, learnt, state.opt, learnt), whole
        update, whole = case._traces["update"]
        divided: Work = update * (self.learnt / max(1, whole))
        return divided

    def bytes(self, case: Case, options: Options, rows: int, used: Memory) -> DeviceBytes:
        """Bytes of one device; activations as estimated."""
        params, rest, opt = self.state
        return DeviceBytes(
            parameters=params + rest,
            optimizer=opt,
            gradients=self.learnt * (2 if options.accumulate > 1 else 1),
            activations=used.peak + self.gathered * _itemsize(options) // 4,
            batch=_WAITING * options.accumulate * sum(map(bytes_of, case.batch(rows))),
        )


def _itemsize(options: Options) -> int:
    # Bytes of a parameter as it is computed with.
    return 4 if options.precision == "fp32" else 2


def _dims(spec: Any, shape: tuple[int, ...]) -> Dims:
    entries = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    return tuple(entries + [()] * (len(shape) - len(entries)))


def _ways(spec: Any, sizes: Mapping[str, int]) -> int:
    return prod(sizes[axis] for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ()))


def _step_s(case: Case, work: Work, moved: float, kernels: float, exchange_s: float) -> Range:
    device = case.target.device
    products = sum(count / device.flops_rate(dtype) for dtype, count in work.matmul.items())
    memory_s = moved / device.memory_rate
    (worst, best), (worst_memory, best_memory) = device.efficiency, device.memory_efficiency
    worst_exchange, best_exchange = _EXCHANGE_EFFICIENCY
    low = max(products / best, memory_s / best_memory, exchange_s / best_exchange, kernels * device.kernel_s / 10)
    high = products / worst + memory_s / worst_memory + exchange_s / worst_exchange + kernels * device.kernel_s
    return low, high


def _cost(case: Case, run_s: Range) -> Range | None:
    price = case.prices.get(case.target.device.name)
    if price is None:
        return None
    low, high = (price * case.target.count * time / 3600 for time in run_s)
    return low, high


def _notes(case: Case, layout: _Layout, work: Work, compiled: bool) -> list[str]:
    device, notes = case.target.device, list(work.unknown)
    dividing = {axis for dims in layout.dims.values() for dim in dims for axis in dim}
    idle = [axis for axis, size in layout.sizes.items() if size > 1 and axis not in (*BATCH_AXES, *dividing)]
    if idle:
        notes.append(
            f"no partition rule divides a parameter over {', '.join(idle)}: what is done there is counted as done by "
            f"each of its devices"
        )
    if not compiled:
        notes.append("activations are an estimate from the trace; XLA may keep fewer or more")
    if case.compile and not device.compiles:
        notes.append(
            "only programs for v5e, v5p and v6e are compiled without the device; the bytes of this one are an estimate"
        )
    elif not compiled and case.compile:
        notes.append('memory is an estimate; for the compiler\'s figures run: pip install "mms-sdk[tpu]"')
    elif device.compiles and not compiled:
        notes.append("memory is an estimate; plan(…, compile=True) asks the compiler")
    if not device.tpu and device.name != "local":
        notes.append(
            f"JAX takes {TAKEN_ON_GPU:.0%} of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives arrays more"
        )
    if device.name == "local" and work.convolutions > work.products / 2 and (cores := idle_cores()):
        notes.append(
            f"XLA runs a convolution of few channels on one core of {cores}; JAX_NUM_CPU_DEVICES={cores}, set before "
            f"JAX starts, divides each batch over all of them"
        )
    notes.append(f"rates: {device.source}")
    return notes
