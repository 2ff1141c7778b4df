"""The training loop, on one page.

The order of things in it is the point: the device is given the next step before anybody looks at the last one, what is
looked at is old enough to be ready, and a checkpoint is asked for only between steps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.training.policies import Checkpoints, StopPolicy
from mms_sdk.compute.training.program import Leaves, Program, State, Totals
from mms_sdk.errors import TrainingFailed
from mms_sdk.storage import processes
from mms_sdk.storage.checkpoints import CheckpointFolder
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.reader import Position

_IN_FLIGHT = 2
_LOOK_EVERY_S = 0.01
_LOG_EVERY_S = 0.25
_NO_METRICS: Mapping[str, float] = MappingProxyType({})


class Step(NamedTuple):
    """What the loop reports after each step, without waiting for the device.

    Attributes:
        number: Steps taken since the run began.
        epoch: From 1.
        batch: Batches of the epoch done.
        batches: Batches in an epoch.
        metrics: Of the epoch that this step ended; empty before its end.
    """

    number: int
    epoch: int
    batch: int
    batches: int
    metrics: Mapping[str, float] = _NO_METRICS


@dataclass(kw_only=True)
class Run:
    """One training run and all that it carries from step to step.

    Attributes:
        steps: Steps taken.
        position: Where the reader stands.
        history: Metrics of the finished epochs.
        stopped: Why it ended, once it has.
    """

    program: Program
    train: Loader
    val: Loader | None
    epochs: int
    stop: StopPolicy
    policy: Checkpoints
    checkpoints: CheckpointFolder
    log: MetricLog
    options: dict[str, Any]
    state: Leaves
    totals: Totals
    steps: int = 0
    position: Position = field(default_factory=Position)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""
    best_step: int = 0
    input_wait_s: float = 0.0


class InFlight:
    """Steps that the devices were given and that nobody has seen done.

    A look at a step waits for the one looked at two looks before: that bounds memory, shows errors soon, and leaves a
    device busy whatever Python does meanwhile. Steps of ten milliseconds or more are each looked at, so two of them
    are in flight; tiny ones a hundred times a second, because waiting for each would cost as much as it does. Where
    several devices exchange sums each step is looked at: on CPUs they do that on a few shared threads, and many steps
    in flight wait for one another for ever.
    """

    def __init__(self, program: Program) -> None:
        self._pause_s = _LOOK_EVERY_S if program.mesh.size == 1 else 0.0
        self._looked_at = 0.0
        self._looks: deque[tuple[int, Totals]] = deque()

    def add(self, number: int, totals: Totals) -> tuple[int, Totals] | None:
        """Adds a step; if it looked, returns the number and totals of one that is done."""
        if time.monotonic() - self._looked_at < self._pause_s:
            return None
        self._looks.append((number, totals))
        seen = self._looks.popleft() if len(self._looks) > _IN_FLIGHT else None
        if seen is not None:
            seen[1].block_until_ready()
        self._looked_at = time.monotonic()
        return seen


def train(run: Run) -> Iterator[Step]:
    """Trains until the epochs are over or the stop policy says so, and yields after every step."""
    every_steps, every_s = run.policy.interval()
    saved_at = logged_at = time.monotonic()
    in_flight = InFlight(run.program)
    step, batches = run.program.step, run.train.reader.batches
    while run.position.epoch < run.epochs and not run.stopped:
        asked = time.monotonic()
        for batch in run.train.epoch(run.position):
            run.input_wait_s += time.monotonic() - asked
            # Dispatched, not awaited: the device works on this while Python goes on.
            run.state, run.totals = step(run.state, run.totals, batch.inputs, batch.labels, batch.weight)
            run.steps += 1
            run.position = batch.position
            seen = in_flight.add(run.steps, run.totals)
            if seen is not None and time.monotonic() - logged_at > _LOG_EVERY_S:
                logged_at = time.monotonic()
                number, totals = seen
                running = run.program.averages(totals, "running")
                run.log.write({"step": number, "time": time.time(), **running})
            last = batch.position.batch == batches
            if last:
                _end_epoch(run)
                saved_at = time.monotonic()
            elif (every_steps and run.steps % every_steps == 0) or (every_s and _is_late(saved_at + every_s)):
                _save(run, best=False)
                saved_at = time.monotonic()
            metrics = run.history[-1] if last else _NO_METRICS
            yield Step(run.steps, batch.position.epoch + 1, batch.position.batch, batches, metrics)
            asked = time.monotonic()
    run.stopped = run.stopped or f"all {run.epochs} epochs are done"
    # The promise of a finished run is that its checkpoints are on the disk.
    run.checkpoints.wait()


def _is_late(due: float) -> bool:
    # By one clock: processes that save together must not think differently about when.
    return bool(processes.agreed(time.monotonic() > due))


def _end_epoch(run: Run) -> None:
    epoch = run.position.epoch + 1
    metrics = _finite(run)
    if run.val is not None:
        metrics |= run.program.averages(evaluate(run.program, run.program.tree(run.state), run.val), "val")
    run.history.append(metrics)
    run.log.write({"step": run.steps, "time": time.time(), "epoch": epoch, **metrics})
    run.totals = run.program.zero_totals()
    run.position = Position(epoch=epoch)
    run.stopped = run.stop.reason(run.history) or ""
    _save(run, best=run.policy.is_best(run.history))


def _finite(run: Run) -> dict[str, float]:
    metrics = run.program.averages(run.totals, "train")
    loss = metrics["train/loss"]
    if not math.isfinite(loss):
        raise TrainingFailed(
            f"the training loss stays finite; it became {loss} in epoch {run.position.epoch + 1}, by step {run.steps}; "
            f"lower the learning rate or look at the data; the checkpoints made before are intact"
        )
    return metrics


def _save(run: Run, *, best: bool) -> None:
    _finite(run)  # no checkpoint to go on from holds a state that is spoilt
    if best:
        run.best_step = run.steps
    meta = {
        "position": {"epoch": run.position.epoch, "batch": run.position.batch},
        # A copy, because the next epoch adds to the list while this is written; and JSON has no NaN.
        "history": [{name: _plain(value) for name, value in epoch.items()} for epoch in run.history],
        "best_step": run.best_step,
        "stopped": run.stopped,
        "options": run.options,
    }
    run.checkpoints.save(run.steps, run.program.to_arrays(run.program.tree(run.state), run.totals), meta, best=best)


def history_in(meta: Mapping[str, Any]) -> list[dict[str, float]]:
    """The history that was saved with a checkpoint."""
    return [{name: float(value) for name, value in epoch.items()} for epoch in meta["history"]]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def evaluate(program: Program, state: State, loader: Loader) -> Totals:
    """Metric sums over a whole split."""
    totals = program.zero_totals()
    in_flight = InFlight(program)
    for number, batch in enumerate(loader.epoch(Position())):
        totals = program.evaluate(state.params, state.rest, totals, batch.inputs, batch.labels, batch.weight)
        in_flight.add(number, totals)
    return totals
