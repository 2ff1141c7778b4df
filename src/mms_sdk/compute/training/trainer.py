"""The trainer: options that print and travel, and `fit`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

from mms_sdk import html
from mms_sdk.compute.compile_cache import use_compile_cache
from mms_sdk.compute.data.kinds.rows import input_columns
from mms_sdk.compute.data.load import Loader, fitted
from mms_sdk.compute.data.preprocess.pipeline import DeviceStep, HostStep, Pipeline, device_dtype, to_json
from mms_sdk.compute.models import functional as models
from mms_sdk.compute.models import weights
from mms_sdk.compute.sharding.mesh import Axes, batch_parts, default_mesh, describe, make_mesh, told
from mms_sdk.compute.sharding.report import ShardingReport, report
from mms_sdk.compute.sharding.rules import WHOLE, PartitionRules
from mms_sdk.compute.training.callbacks import Begun, Callback, Ending
from mms_sdk.compute.training.check import Check, check
from mms_sdk.compute.training.loop import Run, Step, evaluate, history_in, train
from mms_sdk.compute.training.lora import LoRA
from mms_sdk.compute.training.memory import memory_told
from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, Limits, NeverStop, StopPolicy, check_metric
from mms_sdk.compute.training.precision import Precision, PrecisionName
from mms_sdk.compute.training.profile import Profile, profiled
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.progress import make_progress
from mms_sdk.compute.training.step_options import OnNan, Remat, StepOptions
from mms_sdk.compute.training.tasks import Classification, Task
from mms_sdk.compute.training.termination import Terminated, Termination
from mms_sdk.compute.training.within import within
from mms_sdk.compute.tuning import trial
from mms_sdk.errors import CheckpointNotFound, Damaged, InvalidRequest, MmsError
from mms_sdk.schema.job import Progress
from mms_sdk.schema.lineage import Reference
from mms_sdk.storage import files, processes
from mms_sdk.storage.checkpoints import Checkpoint, CheckpointFolder
from mms_sdk.storage.heartbeat import Heart
from mms_sdk.storage.metric_log import MetricLog, SilentLog
from mms_sdk.storage.reader import Position
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

if TYPE_CHECKING:
    from mms_sdk.compute.planning.plan import Plan

_LONG = 1000
_FREE_TO_CHANGE = frozenset({"epochs", "stop", "limits", "checkpoint"})
_CHANGE_IS_SAID = frozenset({"mesh", "rules", "axis_rules"})
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
        init_from: Weights to begin with, by the model's paths: a file, the folder of a checkpoint or model version, or
            `mms.models.Weights`, which chooses a part of them.
        task: What for; classification of the column `label`.
        optimizer: An optax transformation; None for AdamW at 1e-3.
        inputs: Names of the columns that the model sees. None for the one column of pictures, sound, text, series or
            embeddings if there is exactly one, and for all numbers, categories and times if there is none.
        preprocess: Host steps, then device steps; fitted on the training rows only.
        mesh: Devices along each named axis; -1 for all that are left. Or `replicated`, for all parameters on every
            device; or a mesh of chosen devices, from `mms.sharding.make_mesh`. If left out, that of the job it runs in,
            or all devices along `data`.
        rules: How parameters are divided over the mesh.
        batch_size: Rows in a step, over all devices; if left out 128, or fewer where there are few rows.
        epochs: Passes over the training rows, at most.
        precision: In what the model computes: `fp32`, `bf16` or `fp16`. Parameters are float32 in any case.
        accumulate: Micro-batches that a batch is cut into to need less memory; the gradient is that of the whole batch.
        steps_per_call: Steps that the devices are given at once, at most. More than 1 helps tiny models, whose steps
            take less time than handing them over; on CPUs it slows convolutions down.
        clip_norm: Longest gradient, over all parameters together; a longer one is shortened.
        ema: Decay of an average of the parameters, e.g. 0.999, which evaluation and versions then use.
        freeze: Parameters that are not learnt: regular expressions searched for in paths such as `features/0/kernel`.
        lora: Low-rank adaptation instead of learning large matrices.
        remat: What the backward pass computes again instead of keeping it in memory: `none`, `dots` for all but matrix
            products, `all`.
        on_nan: A loss or gradient that is not finite ends the run (`stop`), is left out (`skip`), or returns the run to
            its newest checkpoint, up to three times (`rollback`).
        sample: `target` draws rows so that each class comes as often as the others; None takes each row once an epoch.
        stop: When to stop earlier.
        limits: Steps or time after which to stop in any case.
        checkpoint: When to save and what to keep.
        callbacks: Who else is told what is logged.
        profile: Steps that JAX's profiler records.
        seed: Of initial values, order and augmentation. The same seed on the same devices gives the same run.
    """

    model: Any
    init_from: weights.Source | None = None
    task: Task = field(default_factory=Classification)
    optimizer: Any = None
    inputs: str | Sequence[str] | None = None
    preprocess: Sequence[HostStep | DeviceStep] = ()
    mesh: Axes = field(default_factory=default_mesh)
    rules: PartitionRules = field(default_factory=PartitionRules)
    batch_size: int | None = None
    epochs: int = 20
    precision: PrecisionName = "fp32"
    accumulate: int = 1
    steps_per_call: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    freeze: str | Sequence[str] = ()
    lora: LoRA | None = None
    remat: Remat = "none"
    on_nan: OnNan = "stop"
    sample: Literal["target"] | None = None
    stop: StopPolicy = field(default_factory=NeverStop)
    limits: Limits = field(default_factory=Limits)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    callbacks: Sequence[Callback] = ()
    profile: Profile | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._step_options()
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InvalidRequest(f"the longest gradient has a positive length; got clip_norm={self.clip_norm}")
        if self.sample not in (None, "target"):
            raise InvalidRequest(f"sample is 'target', or None for each row once an epoch; got {self.sample!r}")
        if self.sample and self.task.target is None:
            raise InvalidRequest(
                f"sample='target' draws by the values of a column, and {self.task.name} has none; leave it out"
            )
        counts = {"epochs": self.epochs, "batch_size": self.batch_size, "steps_per_call": self.steps_per_call}
        for name, value in counts.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} is a whole number from 1; got {name}={value!r}")
        if self.mesh == "replicated" and self.rules.rules:
            raise InvalidRequest(
                f"a replicated mesh keeps every parameter whole; got rules for {len(self.rules.rules)} patterns; leave "
                f'them out, or write mesh={{"data": -1, "fsdp": …}}'
            )
        if self.init_from is not None and getattr(self.model, "init_from", None) is not None:
            raise InvalidRequest(
                f"weights to begin with are named once; got init_from={self.init_from!r}, and "
                f"{self.model.init_from!r} of the model; leave one out"
            )
        asked = (self.inputs,) if isinstance(self.inputs, str) else self.inputs
        if asked is not None and not (isinstance(asked, tuple | list) and all(isinstance(name, str) for name in asked)):
            raise InvalidRequest(f"inputs is the name of a column, or several; got inputs={self.inputs!r}")
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
            resume: Id of an earlier train job to continue from its newest good checkpoint. In a job that is tried again
                after it was cut off, `fit` continues what the attempt before began, without being told.
            progress: `auto` shows a live bar on a terminal or in a notebook, and a line an epoch elsewhere.

        Raises:
            DataError: The data does not suit the task.
            InvalidRequest: Options that do not fit together or do not fit the data.
            TrainingFailed: The loss became infinite or no number, or a device has no memory left.
            StorageFull: A checkpoint could not be written; those before it are intact.
        """
        fitting = Fitting(self, data, resume=resume)
        # Closed at once, not when the last reference to a traceback goes: an interrupt may come between two steps.
        try:
            shown = progress if processes.is_first() else "none"
            view = make_progress(shown, self.epochs, done=fitting.done, history=fitting.history)
            with view as bar, contextlib.closing(fitting.steps()) as steps:
                for step in steps:
                    bar.update(step)
        except (KeyboardInterrupt, Terminated) as stop:  # Python and notebooks show the note below the traceback
            if job := fitting.job:
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

    def check(self, data: TrainingData) -> Check:
        """Goes once through all that `fit` does, in seconds, and records nothing.

        A batch of data, a step, an evaluation, a checkpoint and back, and the program of a model version.

        Args:
            data: What would be trained on.

        Raises:
            DataError, InvalidRequest, TrainingFailed: What `fit` would come to sooner or later.
        """
        snapshot = _opened(data)
        trainer = self._for(snapshot)
        with memory_told(trainer.batch_size or 0):
            return check(trainer, trainer._program(snapshot), snapshot)

    def sharding(self, data: TrainingData) -> ShardingReport:
        """Where each parameter would lie, who decided it and what stays whole; nothing is trained or recorded.

        Raises:
            DataError: The data does not suit the task.
            InvalidRequest: Options that do not fit together or do not fit the data.
        """
        snapshot = _opened(data)
        program = self._for(snapshot)._program(snapshot)
        return report(program.placements, program.mesh)

    def plan(
        self,
        data: TrainingData,
        target: str = "local",
        *,
        prices: Mapping[str, float] | None = None,
        compile: bool = False,
    ) -> Plan:
        """What the run would need of a target: memory, time, cost, and what to change. No data is read, nothing runs.

        Args:
            data: A dataset; of it only the description is looked at.
            target: `local`, a GPU with how many, e.g. `h100:8`, or a TPU with the shape of the slice, e.g. `v5e:8x8`.
            prices: Currency per device and hour, e.g. `{"h100": 2.5}`, for a cost.
            compile: For a TPU, whether to compile the step for it with libtpu, for the compiler's figures of memory.

        Raises:
            DataError: The data does not suit the task.
            InvalidRequest: No such target, a mesh that does not use its devices, a batch that does not divide over
                them, a price below 0, or a model that cannot be traced.
        """
        from mms_sdk.compute.planning.estimate import make_plan

        return make_plan(self, data, target=target, prices=prices, compile=compile)

    def describe(self) -> dict[str, Any]:
        """The options as JSON, for the job and the lineage."""
        return {
            "model": models.describe(self.model),
            "init_from": None if self.init_from is None else weights.describe(self.init_from),
            "task": repr(self.task),
            "optimizer": "optax.adamw(0.001)" if self.optimizer is None else "custom",
            "inputs": [self.inputs] if isinstance(self.inputs, str) else self.inputs and list(self.inputs),
            "preprocess": [_told(step) for step in self.preprocess],
            "mesh": told(self.mesh),
            **self.rules.to_json(),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "steps_per_call": self.steps_per_call,
            "clip_norm": self.clip_norm,
            "ema": self.ema,
            "freeze": list(self._step_options().freeze),
            "lora": None if self.lora is None else asdict(self.lora),
            "remat": self.remat,
            "on_nan": self.on_nan,
            "sample": self.sample,
            "stop": repr(self.stop),
            "limits": asdict(self.limits),
            "checkpoint": repr(self.checkpoint),
            "seed": self.seed,
        }

    def _step_options(self) -> StepOptions:
        return StepOptions(
            precision=Precision(self.precision),
            accumulate=self.accumulate,
            ema=self.ema,
            freeze=(self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze),
            lora=self.lora,
            remat=self.remat,
            on_nan=self.on_nan,
        )

    def _for(self, snapshot: OpenSnapshot) -> Trainer:
        # What was left open, decided by what there is to train on.
        rows = len(snapshot.split_rows("train"))  # says which splits there are, if this one is not
        best = "val/loss" if "val" in snapshot.split_names else "train/loss"
        parts = batch_parts(make_mesh(self.mesh)) * self.accumulate
        return replace(
            self,
            batch_size=self.batch_size or -(-suited_batch_size(rows) // parts) * parts,
            checkpoint=replace(self.checkpoint, best=self.checkpoint.best or best),
        )

    def _program(self, snapshot: OpenSnapshot) -> Program:
        import optax

        use_compile_cache()
        labels = self.task.check(snapshot)
        task = self.task.fit(snapshot)
        mesh = make_mesh(self.mesh)
        parts = batch_parts(mesh) * self.accumulate
        if self.batch_size is None or self.batch_size % parts:
            cut = f", in {self.accumulate} micro-batches," if self.accumulate > 1 else ""
            raise InvalidRequest(
                f"a batch divides over the devices; {self.batch_size} rows over {batch_parts(mesh)} devices "
                f"({describe(mesh)}){cut} does not; use a multiple of {parts}"
            )
        available = [f"{split}/{name}" for split in ("train", "val") for name in task.metrics]
        if "val" not in snapshot.split_names:
            available = [name for name in available if name.startswith("train/")]
        check_metric(self.checkpoint.best, available, asked_by="Checkpoints.best")
        if isinstance(self.stop, EarlyStopping):
            check_metric(self.stop.metric, available, asked_by="EarlyStopping")
        if self.sample and task.target is not None:
            _refuse_no_classes(snapshot, task.target)
        columns = tuple(
            column.name for column in input_columns(snapshot.record.columns, self.inputs, target=task.target)
        )
        pipeline, inputs = fitted(snapshot, Pipeline.of(self.preprocess), columns)
        for step in pipeline.host:
            task.at_serving(step)  # refuses what could be trained and not served
        optimizer = self.optimizer or optax.adamw(1e-3)
        row = task.model_shape(pipeline.device_shape(inputs.shape))
        model = models.functional(self.model, row, dtype=device_dtype(inputs.dtype))
        return Program(
            model=model if self.init_from is None else weights.started_from(model, self.model, self.init_from),
            task=task,
            optimizer=optimizer if self.clip_norm is None else clipped(optimizer, self.clip_norm),
            pipeline=pipeline,
            rules=WHOLE if self.mesh == "replicated" else self.rules,
            mesh=mesh,
            seed=self.seed,
            input_shape=inputs.shape,
            input_dtype=inputs.dtype.name,
            inputs=columns,
            labels=labels,
            options=self._step_options(),
        )


class Fitting:
    """One call of `fit`: the job, the run, and its recorded end.

    Args:
        trainer: The options.
        data: What to train on.
        resume: Id of a train job to continue.

    Attributes:
        job: Its id, once it is recorded.
    """

    def __init__(self, trainer: Trainer, data: TrainingData, *, resume: str | None) -> None:
        self.job = ""
        self.snapshot = _opened(data)
        self.workspace = data.workspace
        self.trainer = trainer._for(self.snapshot)
        assert self.trainer.batch_size is not None
        self.batch_size = self.trainer.batch_size
        self.program = self.trainer._program(self.snapshot)
        self._began = time.monotonic()
        self.notes: list[str] = []
        self._ended: tuple[Ending, str] = ("failed", "")
        self._within = within(self.workspace)
        self._resume = resume or self._within.resume
        self._options = self.trainer.describe()
        try:
            self._earlier = self._found(self._resume) if self._resume else []
        except (InvalidRequest, CheckpointNotFound) as error:
            if resume:
                raise
            _log.warning("begun anew, and not gone on with what an attempt before began: %s", error)
            self._resume, self._earlier = None, []
        self._loaders = {split: self._loader(split) for split in ("train", "val") if split in self.snapshot.split_names}
        with memory_told(self.batch_size):
            *first, self._kept = self._state()
        self._first = [first]

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """Metrics of the epochs that were done before."""
        return tuple(self._kept.get("history", ()))

    @property
    def done(self) -> float:
        """Epochs that were done before, with the part of one."""
        position: Position = self._kept.get("position", Position())
        return position.epoch + position.batch / self._loaders["train"].reader.batches

    def steps(self) -> Generator[Step]:
        """Records a job, trains, and records how it ended."""
        termination = Termination(interrupts=processes.count() == 1)
        with (
            termination.listening(),
            contextlib.ExitStack() as endings,
            contextlib.ExitStack() as last,
            self._end_recorded(),
            memory_told(self.batch_size, more="; the checkpoints made before are intact"),
        ):
            self.job = self._recorded()
            run = self.run = self._made(last, termination)
            self._begin(endings)
            recorded = profiled(
                train(run),
                self.trainer.profile,
                run.log.path.parent / "profile",
                before=run.steps,
                wait=lambda: run.totals.block_until_ready(),
            )
            for step in recorded:
                if step.metrics and processes.is_first():
                    told = Progress(done=step.epoch, total=self.trainer.epochs, what="epochs")
                    self.workspace.catalog.jobs.progress(self.job, told)
                yield step
            self._finish("succeeded", run.stopped, result=self.result().summary())

    @contextlib.contextmanager
    def _end_recorded(self) -> Iterator[None]:
        try:
            yield
        except MmsError as error:
            self._fail("failed", title=error.code(), detail=error.message)
            raise
        except Terminated:
            told = f"stopped by SIGTERM; its checkpoint is on the disk, and resume={self.job!r} goes on from it"
            self._fail("cancelled", title="terminated", detail=told)
            raise
        except (KeyboardInterrupt, GeneratorExit):
            self._fail("cancelled", title="cancelled", detail="stopped by the person")
            raise
        except BaseException as error:
            self._fail("failed", title=type(error).__name__, detail=str(error))
            raise

    def _begin(self, endings: contextlib.ExitStack) -> None:
        # Who was told of the beginning is told of the end.
        for callback in self.run.callbacks:
            callback.begin(
                Begun(
                    job=self.job,
                    run=self._first_job(),
                    dataset=self.snapshot.ref,
                    options=self.run.options,
                    step=self.run.steps,
                    log=self.run.log.path,
                )
            )
            endings.callback(self._tell_end, callback)

    def _first_job(self) -> str:
        job, earlier = self.job, self._resume
        while earlier:
            record = self.workspace.catalog.jobs.get(earlier)
            job, earlier = record.id, record.spec["resumed_from"]
        return job

    def _tell_end(self, callback: Callback) -> None:
        callback.end(*self._ended)

    def _fail(self, state: Ending, *, title: str, detail: str) -> None:
        self._finish(state, detail, error={"title": title, "detail": detail})

    def _finish(self, state: Ending, why: str, **said: Any) -> None:
        self._ended = (state, why)
        if self.job and processes.is_first():
            self.workspace.catalog.jobs.finish(self.job, state, **said)

    def _recorded(self) -> str:
        # One job, whatever the number of processes.
        if not processes.is_first():
            return processes.agreed_text("")
        job, place, _ = self._within
        spec: dict[str, Any] = {
            "trainer": self._options,
            "dataset": self.snapshot.ref,
            "resumed_from": self._resume,
        }
        spec |= {"place": place} if job else {}
        reads = {"data": Reference.of(self.snapshot.ref)}
        jobs, name = self.workspace.catalog.jobs, self.snapshot.record.dataset
        self.job = jobs.start("train", name, spec, parent=job, inputs=reads).id
        return processes.agreed_text(self.job)

    def result(self) -> Result:
        """What came out."""
        run = self.run
        newest = run.checkpoints.all()[-1]
        return Result(
            job=self.job,
            dataset=self.snapshot.ref,
            history=tuple(run.history),
            best=self._trained(run.checkpoints.at(run.best_step) if run.best_step else newest),
            last=self._trained(newest),
            stopped=run.stopped,
            steps=run.steps,
            seconds=time.monotonic() - self._began,
            input_wait_fraction=run.input_wait_s / max(1e-9, time.monotonic() - self._began),
            mesh=describe(self.program.mesh),
            parameters=self.program.parameters(),
            learnt=self.program.learnt(),
            left_out=run.left_out,
            rollbacks=run.rollbacks,
            notes=tuple(self.notes),
            folder=run.checkpoints.root.parent,
        )

    def _made(self, last: contextlib.ExitStack, termination: Termination) -> Run:
        # What is opened here is closed at last.
        state, totals = self._first.pop()  # the loop gives its arrays away
        folder = self.workspace.job_folder(self.job)
        checkpoints = CheckpointFolder(folder / "checkpoints", keep=self.trainer.checkpoint.keep)
        last.callback(checkpoints.close)
        for checkpoint in self._earlier:
            checkpoints.adopt(checkpoint, best=checkpoint.step == self._kept["best_step"])
        if self._earlier and processes.is_first():
            self._take_over_log(self._resume or "", self._earlier[-1], folder)
        log = (MetricLog if processes.is_first() else SilentLog)(folder / "metrics.jsonl")
        last.callback(log.close)
        heart = Heart(folder, rank=processes.rank(), step=self._kept.get("steps", 0))
        last.callback(heart.close)
        return Run(
            program=self.program,
            train=self._loaders["train"],
            val=self._loaders.get("val"),
            epochs=self.trainer.epochs,
            stop=self.trainer.stop,
            limits=self.trainer.limits,
            policy=self.trainer.checkpoint,
            checkpoints=checkpoints,
            log=log,
            heart=heart,
            callbacks=self.trainer.callbacks if processes.is_first() else (),
            termination=termination,
            options=self._options,
            state=state,
            totals=totals,
            steps_per_call=self._stack("train"),
            **self._kept,
        )

    def _take_over_log(self, job: str, checkpoint: Checkpoint, folder: Path) -> None:
        # Up to where the checkpoint was made: what came after it is done again.
        earlier = self.workspace.job_folder(job) / "metrics.jsonl"
        if earlier.is_file():
            with earlier.open("rb") as file, files.writing(folder):
                (folder / "metrics.jsonl").write_bytes(file.read(checkpoint.meta["log_bytes"]))

    def _state(self) -> tuple[Any, Any, dict[str, Any]]:
        if not self._earlier:
            return self.program.flat(self.program.init()), self.program.zero_totals(), {}
        best, newest = self._earlier[0], self._earlier[-1]
        try:
            state, totals = self.program.from_arrays(newest.load(self.program.target()))
        except ValueError as error:  # Orbax lists what differs, array by array
            raise InvalidRequest(
                f"a run is continued with the model and the optimiser it began with; those given keep other arrays "
                f"than {newest.folder} holds; undo that, or start a new run"
            ) from error
        position = Position(**newest.meta["position"])
        history = history_in(newest.meta)
        # Asked anew: a later stop may have been asked for.
        stopped = (self.trainer.stop.reason(history) if history else None) or ""
        stopped = stopped or self.trainer.limits.reason(newest.step, newest.meta["seconds"]) or ""
        kept = {"steps": newest.step, "history": history, "best_step": best.step if newest.meta["best_step"] else 0}
        kept["stopped"] = stopped
        kept |= {name: newest.meta[name] for name in ("seconds", "left_out", "rollbacks")}
        return self.program.flat(state), totals, {**kept, "position": position}

    def _found(self, job: str) -> list[Checkpoint]:
        # The best and the newest good checkpoint of the job; one, if they are the same.
        recorded = self.workspace.catalog.jobs.kept(job)
        folder = CheckpointFolder(self.workspace.job_folder(recorded.id) / "checkpoints", keep=1)
        checkpoint, faults = folder.newest_good()
        for fault in faults:
            _log.warning("passed over while continuing job %s: %s", job, fault)
        best = _good(folder, checkpoint.meta["best_step"], newest=checkpoint.step)
        folder.close()
        before = checkpoint.meta["options"]
        options = self._options
        differ = {name for name, value in options.items() if before.get(name) != value} - _FREE_TO_CHANGE
        changed = {name: (before.get(name), options[name]) for name in sorted(differ - _CHANGE_IS_SAID)}
        if changed or recorded.spec.get("dataset") != self.snapshot.ref:
            seen = changed or {"dataset": (recorded.spec.get("dataset"), self.snapshot.ref)}
            raise InvalidRequest(
                f"a run is continued with the options it began with; changed are {seen}; undo that, or start a new run"
            )
        moved = [f"{name} {before.get(name)} → {options[name]}" for name in sorted(differ & _CHANGE_IS_SAID)]
        if not moved and (devices := describe(self.program.mesh)) != checkpoint.meta["devices"]:
            moved.append(f"{checkpoint.meta['devices']} → {devices}")
        if moved:
            told = ", ".join(moved)
            self.notes.append(
                f"continued on other devices than it began on ({told}): the same rows in the same order from the same "
                f"state, but sums are added up in another order, so that it goes on equal to rounding, not bit for bit"
            )
            _log.warning("job %s is %s", job, self.notes[-1])
        return [*best, checkpoint]

    def _loader(self, split: str) -> Loader:
        return Loader(
            self.snapshot,
            split,
            pipeline=self.program.pipeline,
            batch_size=self.batch_size,
            seed=self.trainer.seed if split == "train" else evaluation_seed(self.program.task),
            sharding=self.program.batch_sharding,
            inputs=self.program.inputs,
            target=self.program.task.target,
            sample=self.program.task.target if split == "train" and self.trainer.sample else None,
            stack=self._stack(split),
        )

    def _stack(self, split: str) -> int:
        # No more than an epoch has: what is never there is not carried about.
        batches = -(-len(self.snapshot.split_rows(split)) // self.batch_size)
        return min(self.trainer.steps_per_call, batches) if split == "train" else 1

    def _trained(self, checkpoint: Checkpoint) -> TrainedCheckpoint:
        return TrainedCheckpoint(
            checkpoint=checkpoint,
            program=self.program,
            snapshot=self.snapshot,
            job=self.job,
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
            seed=evaluation_seed(self.program.task),
            sharding=self.program.batch_sharding,
            inputs=self.program.inputs,
            target=self.program.task.target,
        )
        return self.program.averages(evaluate(self.program, self.state, loader), split)

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the model artefact: everything needed to serve it, and no code. See `docs/models.md`."""
        import jax

        from mms_sdk.compute.inference.export import export_model

        if jax.process_count() > 1:
            raise InvalidRequest(
                f"a model is exported by a process that has all of it; there are {jax.process_count()} here; in one "
                f"process, fit(data, resume={self.job!r}) gives the result to export"
            )
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
        parameters: Number of values in the model's parameters.
        learnt: Number of values that were learnt.
        left_out: Steps that left the state as it was, because their loss or gradient was not finite.
        rollbacks: How often it returned to a checkpoint.
        notes: What a person should know of how it was continued.
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
    learnt: int
    left_out: int
    rollbacks: int
    notes: tuple[str, ...]
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
            "learnt": self.learnt,
            "left_out": self.left_out,
            "rollbacks": self.rollbacks,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        names = list(self.history[0]) if self.history else []
        losses = {name: [epoch[name] for epoch in self.history] for name in names if name.endswith("loss")}
        told = {
            "best": ", ".join(f"{name} {value:.4f}" for name, value in self.best.metrics.items()),
            "ended": self.stopped,
            "ran": f"{len(self.history)} epochs, {self.steps:,} steps in {self.seconds:.1f} s on {self.mesh}",
            "parameters": f"{self.parameters:,}, {self.learnt:,} of them learnt",
            "checkpoint": self.best.path,
        }
        if self.left_out or self.rollbacks:
            told["not finite"] = f"{self.left_out:,} steps left out, {self.rollbacks} returns to a checkpoint"
        if self.notes:
            told["note"] = "; ".join(self.notes)
        return html.facts(f"trained on {self.dataset}", told) + html.curves("loss by epoch", losses)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.best.metrics.items())
        return (
            f"<trained on {self.dataset}: {len(self.history)} epochs, {self.steps} steps in {self.seconds:.1f} s on "
            f"{self.mesh}; best at step {self.best.step}: {told}; {self.stopped}>"
        )


def clipped(optimizer: Any, norm: float) -> Any:
    """An optimiser that never sees a gradient longer than `norm`, over all parameters together."""
    import optax

    return optax.chain(optax.clip_by_global_norm(norm), optimizer)


def evaluation_seed(task: Task) -> int | None:
    """Of the order of rows in an evaluation; None for the order they lie in, where it makes no difference."""
    return 0 if task.compares_rows else None


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


def _refuse_no_classes(snapshot: OpenSnapshot, target: str) -> None:
    column = snapshot.column(target)
    if column.labels is None or column.fixed:
        raise InvalidRequest(
            f"sample='target' draws by a column of classes, one a row; {target!r} of {snapshot.ref} is {column.form} "
            f"without such; leave it out"
        )


def _opened(data: TrainingData) -> OpenSnapshot:
    if not hasattr(data, "open"):
        raise InvalidRequest(f"training takes a dataset, e.g. ws.datasets.get('flowers'); got {data!r}")
    return data.open()


def _told(step: HostStep | DeviceStep) -> dict[str, Any]:
    # As it comes back from JSON. A vocabulary is a megabyte; that it is the same can be told from its digest.
    told: dict[str, Any] = orjson.loads(orjson.dumps(to_json(step)))
    long = {name: value for name, value in told.items() if isinstance(value, str) and len(value) > _LONG}
    return told | {name: f"sha256:{hashlib.sha256(value.encode()).hexdigest()}" for name, value in long.items()}
