"""The training loop, on one page.

The order of things in it is the point: the device is given the next step before anybody looks at the last one, what is
looked at is old enough to be ready, and a checkpoint is asked for only between steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.sharding.mesh import describe
from mms_sdk.compute.training.callbacks import Callback
from mms_sdk.compute.training.policies import Checkpoints, Limits, StopPolicy
from mms_sdk.compute.training.program import Leaves, Program, State, Totals
from mms_sdk.compute.training.termination import Terminated, Termination
from mms_sdk.errors import TrainingFailed
from mms_sdk.storage import processes
from mms_sdk.storage.checkpoints import CheckpointFolder
from mms_sdk.storage.heartbeat import Heart
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.reader import Position

ROLLBACKS = 3
"""How often a run returns to a checkpoint before it fails."""

_IN_FLIGHT = 2
_LOOK_EVERY_S = 0.01
_LOG_EVERY_S = 0.25
_AGREE_EVERY_STEPS = 8
_NO_METRICS: Mapping[str, float] = MappingProxyType({})
_log = logging.getLogger("mms.training")


class Step(NamedTuple):
    """What the loop reports after each step, or the last of those in one call, without waiting for the device.

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
        steps_per_call: Steps that the devices are given at once, at most.
        steps: Steps taken.
        called: Of these, in the newest call.
        position: Where the reader stands.
        history: Metrics of the finished epochs.
        stopped: Why it ended, once it has.
        seconds: Of training before this process took it up.
        left_out: Steps of finished epochs that were not finite and left the state as it was.
        rollbacks: How often it returned to a checkpoint.
    """

    program: Program
    train: Loader
    val: Loader | None
    epochs: int
    stop: StopPolicy
    limits: Limits
    policy: Checkpoints
    checkpoints: CheckpointFolder
    log: MetricLog
    heart: Heart
    callbacks: Sequence[Callback]
    options: dict[str, Any]
    state: Leaves
    totals: Totals
    steps_per_call: int = 1
    steps: int = 0
    called: int = 1
    position: Position = field(default_factory=Position)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""
    best_step: int = 0
    seconds: float = 0.0
    left_out: int = 0
    rollbacks: int = 0
    input_wait_s: float = 0.0
    step_wait_s: float = 0.0
    termination: Termination
    began: float = field(default_factory=time.monotonic)

    @property
    def alone(self) -> bool:
        """Whether one process trains, which may decide by its own clock and its own signals."""
        return self.termination.interrupts

    @property
    def may_look_at_clocks(self) -> bool:
        """Whether it is time to: that several processes agree on theirs takes as long as a small step."""
        return self.alone or self.steps % _AGREE_EVERY_STEPS < self.called

    def trained_s(self) -> float:
        """Seconds of training so far, over all its continuations."""
        return self.seconds + time.monotonic() - self.began

    def tell(self, record: Mapping[str, Any]) -> None:
        """Logs a record, and tells the callbacks."""
        self.log.write(record)
        for callback in self.callbacks:
            callback.log(record)


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


def train(run: Run) -> Generator[Step]:
    """Trains until the epochs or the limits are over or the stop policy says so, and yields after every step.

    Raises:
        Terminated: The process was asked to end; a checkpoint of where it stands is on the disk.
    """
    try:
        yield from _steps(run)
        # The promise of a finished run is that its checkpoints are on the disk.
        with run.heart.during("saving"):
            run.checkpoints.wait()
    except Terminated:
        _save(run, best=False)
        run.checkpoints.wait()
        raise


def _steps(run: Run) -> Iterator[Step]:
    every_steps, every_s = run.policy.interval()
    saved_at = logged_at = time.monotonic()
    in_flight, step, batches = InFlight(run.program), _first_apart(run), run.train.reader.batches
    while run.position.epoch < run.epochs and not run.stopped:
        left = batches - run.position.batch
        calls = _calls(run.steps_per_call, run.steps, left, every_steps=every_steps, limit=run.limits.steps)
        coming = run.train.epoch(run.position, calls)
        while run.position.batch < batches:
            asked = time.monotonic()
            with run.termination:
                batch = next(coming)
            run.input_wait_s += time.monotonic() - asked
            # Dispatched, not awaited: the device works on this while Python goes on.
            run.called = batch.position.batch - run.position.batch
            run.state, run.totals = step(run.state, run.totals, batch.inputs, batch.labels, batch.weight, *_many(run))
            run.steps += run.called
            run.position = batch.position
            run.heart.step(run.steps, waited_s=run.input_wait_s, awaited_s=run.step_wait_s)
            asked = time.monotonic()
            seen = in_flight.add(run.steps, run.totals)
            run.step_wait_s += time.monotonic() - asked
            if seen is not None and time.monotonic() - logged_at > _LOG_EVERY_S:
                logged_at = time.monotonic()
                number, totals = seen
                running = run.program.averages(totals, "running")
                run.tell({"step": number, "time": time.time(), **running})
                if run.alone and not math.isfinite(running["running/loss"]):
                    _sound(run)
            if run.position.batch == batches:
                break
            if _asked_to_end(run):
                raise Terminated
            run.stopped = _limit(run) or ""
            if (
                (every_steps and run.steps % every_steps == 0)
                or (every_s and run.may_look_at_clocks and _is_late(saved_at + every_s))
                or run.stopped
            ):
                _save(run, best=False)
                saved_at = time.monotonic()
            yield Step(run.steps, run.position.epoch + 1, run.position.batch, batches)
            if run.stopped:
                return
        coming.close()
        with run.termination, run.heart.during("evaluating"):
            metrics = _measured(run)
        yield _end_epoch(run, metrics, batches)
        saved_at = time.monotonic()
        if not run.alone and processes.anyone(run.termination.asked):
            raise Terminated
    run.stopped = run.stopped or f"all {run.epochs} epochs are done"


def _calls(most: int, steps: int, left: int, *, every_steps: int | None, limit: int | None) -> Iterator[int]:
    # How many steps each call of the rest of an epoch takes: it ends where the epoch does, where a checkpoint is due,
    # and at the limit, so that all of these fall on the very step that they would fall on without.
    while left:
        count = min(most, left)
        if every_steps:
            count = min(count, every_steps - steps % every_steps)
        if limit is not None and limit > steps:
            count = min(count, limit - steps)
        yield count
        steps, left = steps + count, left - count


def _many(run: Run) -> tuple[Any, ...]:
    # What a call is told beside its batches, where it takes several.
    return () if run.steps_per_call == 1 else (np.int32(run.called),)


def _is_late(due: float) -> bool:
    # By one clock: processes that save together must not think differently about when.
    return bool(processes.agreed(time.monotonic() > due))


def _asked_to_end(run: Run) -> bool:
    # Several processes end after the same step: now and then they ask one another.
    if run.alone:
        return run.termination.asked
    return run.may_look_at_clocks and processes.anyone(run.termination.asked)


def _limit(run: Run) -> str | None:
    seconds = run.trained_s()
    if not run.alone and run.limits.time is not None:
        seconds = float(processes.agreed(int(seconds))) if run.may_look_at_clocks else 0.0
    return run.limits.reason(run.steps, seconds)


def _first_apart(run: Run) -> Callable[..., tuple[Leaves, Totals]]:
    # The first call compiles, which may take minutes in which no signal is looked at: it is awaited from outside, and
    # the call then finds what was compiled. Traced here, where what the caller has set of JAX holds.
    step = run.program.step if run.steps_per_call == 1 else run.program.several
    waiting = [True]

    def stepped(*given: Any) -> tuple[Leaves, Totals]:
        if waiting:
            waiting.clear()
            with run.heart.during("compiling"):
                run.termination.awaited(step.lower(*given).compile)
        done: tuple[Leaves, Totals] = step(*given)
        return done

    return stepped


def _measured(run: Run) -> dict[str, float]:
    metrics = _sound(run)
    if run.val is not None:
        metrics |= run.program.averages(evaluate(run.program, run.program.tree(run.state), run.val), "val")
    return metrics


def _sound(run: Run, *, state: bool = False) -> dict[str, float]:
    # Training metrics so far; where they are no numbers, those of a state that is sound again.
    try:
        return _finite(run, state=state)
    except TrainingFailed:
        if run.program.options.on_nan != "rollback" or run.rollbacks == ROLLBACKS:
            raise
        run.checkpoints.wait()
        if not run.checkpoints.all():
            raise
        _roll_back(run)
        return dict.fromkeys(run.program.averages(run.totals, "train"), math.nan)


def _roll_back(run: Run) -> None:
    # Back to an earlier state, but on with the rows that follow: those that led astray would do so again.
    checkpoint, _ = run.checkpoints.newest_good()
    state, totals = run.program.from_arrays(checkpoint.load(run.program.target()))
    same_epoch = checkpoint.meta["position"]["epoch"] == run.position.epoch
    run.state, run.totals = run.program.flat(state), totals if same_epoch else run.program.zero_totals()
    run.rollbacks += 1
    _log.warning("the loss is no number by step %d; back to the state of step %d", run.steps, checkpoint.step)
    run.tell({"step": run.steps, "time": time.time(), "rolled_back_to": checkpoint.step})


def _end_epoch(run: Run, metrics: dict[str, float], batches: int) -> Step:
    epoch = run.position.epoch + 1
    run.history.append(metrics)
    run.left_out += run.program.left_out(run.totals)
    run.tell({"step": run.steps, "time": time.time(), "epoch": epoch, **metrics})
    run.totals = run.program.zero_totals()
    run.position = Position(epoch=epoch)
    run.stopped = run.stop.reason(run.history) or _limit(run) or ""
    _save(run, best=run.policy.is_best(run.history))
    return Step(run.steps, epoch, batches, batches, metrics)


def _finite(run: Run, *, state: bool) -> dict[str, float]:
    metrics = run.program.averages(run.totals, "train")
    if run.program.left_out(run.totals) == run.train.reader.batches:  # an epoch of nothing but steps left out
        metrics = dict.fromkeys(metrics, math.nan)
        if run.program.searches(run.state):
            return metrics
    loss = metrics["train/loss"]
    if state and not run.program.is_sound(run.state):  # the last step spoilt it, which no loss has told yet
        loss = math.nan
    if not math.isfinite(loss):
        epoch = max(1, run.position.epoch + (run.position.batch > 0))  # the one behind its end, not the next
        raise TrainingFailed(
            f"the training loss stays finite; it became {loss} in epoch {epoch}, by step {run.steps}; "
            f"lower the learning rate or look at the data; the checkpoints made before are intact"
        )
    return metrics


def _save(run: Run, *, best: bool) -> None:
    _sound(run, state=True)  # no checkpoint to go on from holds a state that is spoilt
    if best:
        run.best_step = run.steps
    meta = {
        "position": {"epoch": run.position.epoch, "batch": run.position.batch},
        # A copy, because the next epoch adds to the list while this is written; and JSON has no NaN.
        "history": [{name: _plain(value) for name, value in epoch.items()} for epoch in run.history],
        "best_step": run.best_step,
        "chosen_by": run.policy.best,
        "stopped": run.stopped,
        "seconds": run.trained_s(),
        "left_out": run.left_out,
        "rollbacks": run.rollbacks,
        "devices": describe(run.program.mesh),
        "log_bytes": run.log.size(),
        "options": run.options,
    }
    with run.heart.during("saving"):
        run.checkpoints.save(run.steps, run.program.to_arrays(run.program.tree(run.state), run.totals), meta, best=best)


def history_in(meta: Mapping[str, Any]) -> list[dict[str, float]]:
    """The history that was saved with a checkpoint."""
    return [{name: float(value) for name, value in epoch.items()} for epoch in meta["history"]]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def evaluate(program: Program, state: State, loader: Loader) -> Totals:
    """Metric sums over a whole split."""
    totals, params = program.zero_totals(), program.served(state)
    in_flight = InFlight(program)
    for number, batch in enumerate(loader.epoch(Position())):
        totals = program.evaluate(params, state.rest, totals, batch.inputs, batch.labels, batch.weight)
        in_flight.add(number, totals)
    return totals
