"""The trainer: options that print and travel, and `fit`."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from mms_sdk import html
from mms_sdk.compute.data.load import Loader, Pictures
from mms_sdk.compute.data.preprocess.pipeline import DeviceStep, HostStep, Pipeline, to_json
from mms_sdk.compute.models import functional as models
from mms_sdk.compute.sharding.mesh import batch_parts, describe, make_mesh
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.compute.training.loop import Run, Step, evaluate, history_in, train
from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, NeverStop, StopPolicy, check_metric
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.progress import make_progress
from mms_sdk.compute.training.tasks import Classification, Task
from mms_sdk.compute.tuning import trial
from mms_sdk.errors import CheckpointNotFound, Damaged, InvalidRequest, MmsError
from mms_sdk.schema.job import Job, Progress
from mms_sdk.storage.checkpoints import Checkpoint, CheckpointFolder
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.reader import Position
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

_FIT_ROWS = 4096
_log = logging.getLogger("mms.training")


class TrainingData(Protocol):
    """What can be trained on: a dataset of an embedded workspace."""

    @property
    def workspace(self) -> Workspace:
        """Where the run is recorded and its checkpoints are kept."""

    def open(self) -> OpenSnapshot:
        """The snapshot to train on."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How to train: everything but the data.

    Attributes:
        model: A family such as `mms.models.ConvNet(num_classes=10)`, an NNX module, a function of `nnx.Rngs` that makes
            one, or a pair `(init, apply)`.
        task: What for; classification.
        optimizer: An optax transformation; None for AdamW at 1e-3.
        preprocess: Host steps, then device steps; fitted on the training rows only.
        mesh: Devices along each named axis; -1 for all that are left.
        rules: How parameters are divided over the mesh.
        batch_size: Rows in a step, over all devices; if left out 128, or fewer where there are few rows.
        epochs: Passes over the training rows, at most.
        stop: When to stop earlier.
        checkpoint: When to save and what to keep.
        seed: Of initial values, order and augmentation. The same seed on the same devices gives the same run.
    """

    model: Any
    task: Task = field(default_factory=Classification)
    optimizer: Any = None
    preprocess: Sequence[HostStep | DeviceStep] = ()
    mesh: Mapping[str, int] = field(default_factory=lambda: {"data": -1})
    rules: PartitionRules = field(default_factory=PartitionRules)
    batch_size: int | None = None
    epochs: int = 20
    stop: StopPolicy = field(default_factory=NeverStop)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} is a whole number from 1; got {name}={value!r}")
        if self.optimizer is not None and not hasattr(self.optimizer, "update"):
            raise InvalidRequest(
                f"an optimizer is an optax transformation, e.g. optax.adamw(1e-3); got {self.optimizer!r}"
            )

    def fit(
        self, data: TrainingData, *, resume: str | None = None, progress: Literal["auto", "none"] = "auto"
    ) -> Result:
        """Trains, records the run as a job, and keeps its checkpoints.

        Args:
            data: A dataset with rows in `train`, and in `val` if the best epoch or an early stop depends on it.
            resume: Id of an earlier train job to continue from its newest good checkpoint.
            progress: `auto` shows a live bar on a terminal or in a notebook, and a line an epoch elsewhere.

        Raises:
            DataError: The data does not suit the task.
            InvalidRequest: Options that do not fit together or do not fit the data.
            TrainingFailed: The loss became infinite or no number.
            StorageFull: A checkpoint could not be written; those before it are intact.
        """
        fitting = Fitting(self, data, resume=resume)
        # Closed at once, not when the last reference to a traceback goes: an interrupt may come between two steps.
        try:
            with make_progress(progress, self.epochs) as bar, contextlib.closing(fitting.steps()) as steps:
                for step in steps:
                    bar.update(step)
        except KeyboardInterrupt as stop:  # Python and notebooks show the note below the traceback
            job = fitting.job.id
            stop.add_note(f"the job is {job}; resume={job!r} goes on from its newest checkpoint")
            raise
        result = fitting.result()
        trial.trained(result)
        return result

    def steps(self, data: TrainingData, *, resume: str | None = None) -> Iterator[Step]:
        """The same loop as a generator, for those who want to do something in between.

        Leaving it early ends the job as cancelled; its checkpoints stay.
        """
        yield from Fitting(self, data, resume=resume).steps()

    def describe(self) -> dict[str, Any]:
        """The options as JSON, for the job and the lineage."""
        return {
            "model": models.describe(self.model),
            "task": repr(self.task),
            "optimizer": "optax.adamw(0.001)" if self.optimizer is None else "custom",
            "preprocess": [to_json(step) for step in self.preprocess],
            "mesh": dict(self.mesh),
            "rules": [[pattern, list(spec)] for pattern, spec in self.rules.rules],
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "stop": repr(self.stop),
            "checkpoint": repr(self.checkpoint),
            "seed": self.seed,
        }

    def _for(self, snapshot: OpenSnapshot) -> Trainer:
        # What was left open, decided by what there is to train on.
        rows = len(snapshot.split_rows("train"))  # says which splits there are, if this one is not
        best = "val/loss" if "val" in snapshot.split_names else "train/loss"
        parts = batch_parts(make_mesh(self.mesh))
        return replace(
            self,
            batch_size=self.batch_size or -(-suited_batch_size(rows) // parts) * parts,
            checkpoint=replace(self.checkpoint, best=self.checkpoint.best or best),
        )

    def _program(self, snapshot: OpenSnapshot) -> Program:
        import optax

        labels = self.task.check(snapshot)
        mesh = make_mesh(self.mesh)
        if self.batch_size is None or self.batch_size % batch_parts(mesh):
            raise InvalidRequest(
                f"a batch divides over the devices; {self.batch_size} rows over {batch_parts(mesh)} devices "
                f"({describe(mesh)}) does not; use a multiple of {batch_parts(mesh)}"
            )
        available = [f"{split}/{name}" for split in ("train", "val") for name in self.task.metrics]
        if "val" not in snapshot.split_names:
            available = [name for name in available if name.startswith("train/")]
        check_metric(self.checkpoint.best, available, asked_by="Checkpoints.best")
        if isinstance(self.stop, EarlyStopping):
            check_metric(self.stop.metric, available, asked_by="EarlyStopping")
        pipeline, input_shape = _fitted(Pipeline.of(self.preprocess), snapshot)
        return Program(
            model=models.functional(self.model, pipeline.device_shape(input_shape)),
            task=self.task,
            optimizer=self.optimizer or optax.adamw(1e-3),
            pipeline=pipeline,
            rules=self.rules,
            mesh=mesh,
            seed=self.seed,
            input_shape=input_shape,
            num_classes=len(labels),
        )


class Fitting:
    """One call of `fit`: the job, the run, and its recorded end.

    Args:
        trainer: The options.
        data: What to train on.
        resume: Id of a train job to continue.
    """

    def __init__(self, trainer: Trainer, data: TrainingData, *, resume: str | None) -> None:
        if not hasattr(data, "open"):
            raise InvalidRequest(f"training takes a dataset, e.g. ws.datasets.get('flowers'); got {data!r}")
        self.snapshot = data.open()
        self.workspace = data.workspace
        self.trainer = trainer._for(self.snapshot)
        assert self.trainer.batch_size is not None
        self.batch_size = self.trainer.batch_size
        self.program = self.trainer._program(self.snapshot)
        self._began = time.monotonic()
        self.run = self._make_run(resume)

    def steps(self) -> Generator[Step]:
        """Trains, and records how it ended."""
        try:
            with self._end_recorded():
                for step in train(self.run):
                    if step.metrics:
                        told = Progress(done=step.epoch, total=self.trainer.epochs, what="epochs")
                        self.workspace.catalog.jobs.progress(self.job.id, told)
                    yield step
                self.workspace.catalog.jobs.finish(self.job.id, "succeeded", result=self.result().summary())
        finally:
            self.run.log.close()
            self.run.checkpoints.close()

    @contextlib.contextmanager
    def _end_recorded(self) -> Iterator[None]:
        jobs = self.workspace.catalog.jobs
        try:
            yield
        except MmsError as error:
            jobs.finish(self.job.id, "failed", error={"title": error.code(), "detail": error.message})
            raise
        except (KeyboardInterrupt, GeneratorExit):
            jobs.finish(self.job.id, "cancelled", error={"title": "cancelled", "detail": "stopped by the person"})
            raise
        except BaseException as error:
            jobs.finish(self.job.id, "failed", error={"title": type(error).__name__, "detail": str(error)})
            raise

    def result(self) -> Result:
        """What came out."""
        run = self.run
        newest = run.checkpoints.all()[-1]
        return Result(
            job=self.job.id,
            dataset=self.snapshot.ref,
            history=tuple(run.history),
            best=self._trained(run.checkpoints.at(run.best_step)),
            last=self._trained(newest),
            stopped=run.stopped,
            steps=run.steps,
            seconds=time.monotonic() - self._began,
            input_wait_fraction=run.input_wait_s / max(1e-9, time.monotonic() - self._began),
            mesh=describe(self.program.mesh),
            parameters=self.program.parameters(),
            folder=run.checkpoints.root.parent,
        )

    def _make_run(self, resume: str | None) -> Run:
        options = self.trainer.describe()
        earlier = self._earlier(resume, options) if resume else []
        loaders = {split: self._loader(split) for split in ("train", "val") if split in self.snapshot.split_names}
        state, totals, meta = self._state(earlier)
        spec = {"trainer": options, "dataset": self.snapshot.ref, "resumed_from": resume}
        self.job: Job = self.workspace.catalog.jobs.start("train", self.snapshot.record.dataset, spec)
        with self._end_recorded():
            folder = self.workspace.job_folder(self.job.id)
            checkpoints = CheckpointFolder(folder / "checkpoints", keep=self.trainer.checkpoint.keep)
            for checkpoint in earlier:
                checkpoints.adopt(checkpoint, best=checkpoint.step == meta["best_step"])
            log = MetricLog(folder / "metrics.jsonl")
        return Run(
            program=self.program,
            train=loaders["train"],
            val=loaders.get("val"),
            epochs=self.trainer.epochs,
            stop=self.trainer.stop,
            policy=self.trainer.checkpoint,
            checkpoints=checkpoints,
            log=log,
            options=options,
            state=state,
            totals=totals,
            **meta,
        )

    def _state(self, earlier: list[Checkpoint]) -> tuple[Any, Any, dict[str, Any]]:
        if not earlier:
            return self.program.flat(self.program.init()), self.program.zero_totals(), {}
        best, newest = earlier[0], earlier[-1]
        try:
            state, totals = self.program.from_arrays(newest.load(self.program.target()))
        except ValueError as error:  # Orbax lists what differs, array by array
            raise InvalidRequest(
                f"a run is continued with the model and the optimiser it began with; those given keep other arrays "
                f"than {newest.folder} holds; undo that, or start a new run"
            ) from error
        position = Position(**newest.meta["position"])
        history = history_in(newest.meta)
        stopped = self.trainer.stop.reason(history) or ""  # asked anew: a later stop may have been asked for
        kept = {"steps": newest.step, "history": history, "best_step": best.step, "stopped": stopped}
        return self.program.flat(state), totals, {**kept, "position": position}

    def _earlier(self, job: str, options: dict[str, Any]) -> list[Checkpoint]:
        # The best and the newest good checkpoint of the job; one, if they are the same.
        recorded = self.workspace.catalog.jobs.get(job)
        folder = CheckpointFolder(self.workspace.job_folder(recorded.id) / "checkpoints", keep=1)
        checkpoint, faults = folder.newest_good()
        for fault in faults:
            _log.warning("passed over while continuing job %s: %s", job, fault)
        best = _good(folder, checkpoint.meta["best_step"], newest=checkpoint.step)
        folder.close()
        changed = {
            name: (checkpoint.meta["options"].get(name), value)
            for name, value in options.items()
            if name not in ("epochs", "stop", "checkpoint") and checkpoint.meta["options"].get(name) != value
        }
        if changed or recorded.spec.get("dataset") != self.snapshot.ref:
            seen = changed or {"dataset": (recorded.spec.get("dataset"), self.snapshot.ref)}
            raise InvalidRequest(
                f"a run is continued with the options it began with; changed are {seen}; undo that, or start a new run"
            )
        return [*best, checkpoint]

    def _loader(self, split: str) -> Loader:
        return Loader(
            self.snapshot,
            split,
            pipeline=self.program.pipeline,
            batch_size=self.batch_size,
            seed=self.trainer.seed if split == "train" else None,
            sharding=self.program.batch_sharding,
        )

    def _trained(self, checkpoint: Checkpoint) -> TrainedCheckpoint:
        return TrainedCheckpoint(
            checkpoint=checkpoint,
            program=self.program,
            snapshot=self.snapshot,
            job=self.job.id,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedCheckpoint:
    """A checkpoint together with the program it belongs to: it can be evaluated, and registered as a model version.

    Attributes:
        checkpoint: On disk.
        program: Model, task and preprocessing.
        snapshot: What it was trained on.
        job: Which job made it.
        batch_size: For evaluation.
    """

    checkpoint: Checkpoint
    program: Program = field(repr=False)
    snapshot: OpenSnapshot = field(repr=False)
    job: str
    batch_size: int

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self.checkpoint.step

    @property
    def path(self) -> Path:
        """Where it lies; `state/` within is a plain Orbax checkpoint."""
        return self.checkpoint.folder

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last epoch finished before it."""
        history = history_in(self.checkpoint.meta)
        return history[-1] if history else {}

    @cached_property
    def state(self) -> Any:
        """The restored, verified state."""
        return self.program.from_arrays(self.checkpoint.load(self.program.target()))[0]

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Exact metrics over a whole split of the dataset it was trained on, e.g. `{"test/accuracy": …}`."""
        loader = Loader(
            self.snapshot,
            split,
            pipeline=self.program.pipeline,
            batch_size=self.batch_size,
            seed=None,
            sharding=self.program.batch_sharding,
        )
        return self.program.averages(evaluate(self.program, self.state, loader), split)

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the model artefact: everything needed to serve it, and no code. See `docs/models.md`."""
        from mms_sdk.compute.inference.export import export_model

        for name, value in (metrics or {}).items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidRequest(f"the metrics of a version are finite numbers; got {name}={value!r}; leave it out")
        finite = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        export_model(folder, self, metrics={**finite, **(metrics or {})})


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training run left behind.

    Attributes:
        job: Its id.
        dataset: What it was trained on, with the snapshot's number.
        history: Metrics of each epoch.
        best: The checkpoint of the best epoch.
        last: The newest checkpoint.
        stopped: Why it ended.
        steps: Optimiser steps.
        seconds: From the call of `fit` on.
        input_wait_fraction: Share of that time in which the loop waited for data.
        mesh: Where it ran, in words.
        parameters: Number of trained values.
        folder: The job's folder.
    """

    job: str
    dataset: str
    history: tuple[dict[str, float], ...]
    best: TrainedCheckpoint
    last: TrainedCheckpoint
    stopped: str
    steps: int
    seconds: float
    input_wait_fraction: float
    mesh: str
    parameters: int
    folder: Path

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Metrics of the best checkpoint over a whole split."""
        return self.best.evaluate(split)

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the best checkpoint's model artefact, so that a result can be registered as it is."""
        self.best.export(folder, metrics=metrics)

    def summary(self) -> dict[str, Any]:
        """The result as JSON, for the job."""
        return {
            "metrics": self.best.metrics,
            "epochs": len(self.history),
            "steps": self.steps,
            "best_step": self.best.step,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
            "mesh": self.mesh,
            "parameters": self.parameters,
        }

    def _repr_html_(self) -> str:
        names = list(self.history[0]) if self.history else []
        losses = {name: [epoch[name] for epoch in self.history] for name in names if name.endswith("loss")}
        told = {
            "best": ", ".join(f"{name} {value:.4f}" for name, value in self.best.metrics.items()),
            "ended": self.stopped,
            "ran": f"{len(self.history)} epochs, {self.steps:,} steps in {self.seconds:.1f} s on {self.mesh}",
            "parameters": f"{self.parameters:,}",
            "checkpoint": self.best.path,
        }
        return html.facts(f"trained on {self.dataset}", told) + html.curves("loss by epoch", losses)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.best.metrics.items())
        return (
            f"<trained on {self.dataset}: {len(self.history)} epochs, {self.steps} steps in {self.seconds:.1f} s on "
            f"{self.mesh}; best at step {self.best.step}: {told}; {self.stopped}>"
        )


def suited_batch_size(rows: int) -> int:
    """Rows in a step that leave an epoch of so many rows some ten steps: a power of two from 8 to 128."""
    return int(min(128, max(8, 2 ** ((rows // 10).bit_length() - 1))))


def _good(folder: CheckpointFolder, step: int, *, newest: int) -> list[Checkpoint]:
    # The best checkpoint, if there is one beside the newest and its bytes are right.
    if step in (0, newest):
        return []
    try:
        checkpoint = folder.at(step)
        checkpoint.verify()
    except (CheckpointNotFound, Damaged) as error:
        _log.warning("the best checkpoint so far is lost; the newest stands in for it: %s", error.message)
        return []
    return [checkpoint]


def _fitted(pipeline: Pipeline, snapshot: OpenSnapshot) -> tuple[Pipeline, tuple[int, ...]]:
    rows = snapshot.split_rows("train")
    pictures = Pictures(snapshot, rows, pipeline)
    batches = (pictures.gather(rows[start : start + _FIT_ROWS]) for start in range(0, len(rows), _FIT_ROWS))
    return pipeline.fit(batches), pictures.shape
