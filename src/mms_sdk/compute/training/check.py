"""One of everything, quickly: what would fail after an hour fails now."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_sdk import html
from mms_sdk.compute.data.load import DeviceBatch, Loader
from mms_sdk.compute.training.program import Leaves, Program
from mms_sdk.errors import InvalidRequest, MmsError, TrainingFailed
from mms_sdk.storage.checkpoints import CheckpointFolder
from mms_sdk.storage.reader import Position
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    from mms_sdk.compute.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one part of a check found.

    Attributes:
        what: The part, e.g. `a training step`.
        told: What it found.
        seconds: How long it took.
    """

    what: str
    told: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """What a check found; it raises where a run would.

    Attributes:
        dataset: What it looked at.
        findings: In order.
        warnings: What a run would go on with, and a person should look at.
    """

    dataset: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON; seconds by finding."""
        return asdict(self)

    def __repr__(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"  {finding.what:{width}}  {finding.seconds:6.2f} s  {finding.told}" for finding in self.findings]
        lines += [f"  look at: {warning}" for warning in self.warnings]
        return "\n".join([f"<one of everything on {self.dataset}", *lines]) + ">"

    def _repr_html_(self) -> str:
        told = {finding.what: f"{finding.told} ({finding.seconds:.2f} s)" for finding in self.findings}
        told |= {f"look at {number}": warning for number, warning in enumerate(self.warnings, 1)}
        return html.facts(f"one of everything on {self.dataset}", told)


def check(trainer: Trainer, program: Program, snapshot: OpenSnapshot) -> Check:
    """Goes once through all that a run does, on a batch of each split, and records nothing.

    Raises:
        DataError, InvalidRequest: What a run would refuse.
        TrainingFailed: The loss or a gradient of the first batch is not finite, or a checkpoint does not come back.
    """
    looking = _Looking(program, snapshot, trainer)
    for part in (looking.data, looking.step, looking.evaluation, looking.checkpoint, looking.export):
        part()
    return Check(snapshot.ref, tuple(looking.findings), tuple(looking.warnings))


class _Looking:
    def __init__(self, program: Program, snapshot: OpenSnapshot, trainer: Trainer) -> None:
        self._program, self._snapshot, self._trainer = program, snapshot, trainer
        self.findings: list[Finding] = []
        self.warnings: list[str] = []
        self._state: Leaves = ()
        self._totals: Any = None

    def data(self) -> None:
        """A batch of the training rows."""
        with self._found("a batch of data") as told:
            loader = self._loader("train")
            self._batch = next(loader.epoch(Position()))
            self._batches = loader.reader.batches
            inputs, targets = np.asarray(self._batch.inputs), np.asarray(self._batch.labels)
            self._look_at(inputs, targets)
            told.append(
                f"{inputs.dtype} {'×'.join(map(str, inputs.shape))}, {self._batches:,} batches an epoch, "
                f"read by {loader.reader.rung}"
            )

    def step(self) -> None:
        """Two training steps: the first compiles, the second says how long one takes."""
        program = self._program
        with self._found("a training step") as told:
            self._state, self._totals = self._stepped(program.flat(program.init()))
            while program.left_out(self._totals) and program.searches(self._state):  # fp16 looks for its scale
                self._state, self._totals = self._stepped(self._state)
            loss = program.averages(self._totals, "train")["train/loss"]
            if not np.isfinite(loss) or program.left_out(self._totals):
                raise TrainingFailed(
                    f"the loss and the gradient of the first batch are finite; the loss is {loss}; look at the inputs "
                    f"for values that are no numbers, and lower the learning rate"
                    + "".join(f"; {warning}" for warning in self.warnings)
                )
            before = {path: np.asarray(value) for path, value in program.tree(self._state).params.items()}
            began = time.perf_counter()
            self._state, self._totals = self._stepped(self._state)
            step_s = time.perf_counter() - began
            told.append(
                f"loss {loss:.4f}; {program.learnt():,} of {program.parameters():,} values learnt; then {step_s:.3f} s "
                f"a step, {step_s * self._batches:.1f} s an epoch"
            )
            self._look_for_dead(before)

    def evaluation(self) -> None:
        """A batch of the rows that a run is evaluated on."""
        split = "val" if "val" in self._snapshot.split_names else "train"
        with self._found("an evaluation") as told:
            program, state = self._program, self._program.tree(self._state)
            batch = next(self._loader(split).epoch(Position()))
            totals = program.evaluate(
                program.served(state), state.rest, program.zero_totals(), batch.inputs, batch.labels, batch.weight
            )
            averages = program.averages(totals, split)
            told.append(", ".join(f"{name} {value:.4f}" for name, value in averages.items()))
            if split == "train":
                self.warnings.append(f"{self._snapshot.ref} has no rows in val; the best epoch goes by train/loss")

    def checkpoint(self) -> None:
        """A checkpoint, and the same state back from it."""
        import jax

        program, state = self._program, self._program.tree(self._state)
        with self._found("a checkpoint") as told, tempfile.TemporaryDirectory(prefix="mms-check-") as folder:
            checkpoints = CheckpointFolder(Path(folder) / "checkpoints", keep=1)
            try:
                checkpoints.save(2, program.to_arrays(state, self._totals), {"options": {}}, best=True)
                checkpoints.wait()
                checkpoint = checkpoints.at(2)
                back, _ = program.from_arrays(checkpoint.load(program.target()))
            finally:
                checkpoints.close()
            same = jax.tree.map(lambda one, other: np.array_equal(one, other, equal_nan=True), back, state)
            if not jax.tree.all(same):
                raise TrainingFailed("a checkpoint comes back as it was saved; this one did not; report it, please")
            size = sum(file.stat().st_size for file in checkpoint.folder.rglob("*") if file.is_file())
            told.append(f"{size / 2**20:,.1f} MiB, back bit for bit")

    def export(self) -> None:
        """The program of a model version, for any number of rows and every platform."""
        import jax

        from mms_sdk.compute.inference.export import PLATFORMS

        program, state = self._program, self._program.tree(self._state)
        with self._found("a model version") as told:
            shapes = jax.tree.map(
                lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), (program.served(state), state.rest)
            )
            (rows,) = jax.export.symbolic_shape("batch")
            batch = jax.ShapeDtypeStruct((rows, *program.served_shape), program.input_dtype)
            try:
                exported = jax.export.export(jax.jit(program.answers), platforms=PLATFORMS)(*shapes, batch)
            except MmsError:
                raise
            except Exception as error:
                raise InvalidRequest(
                    f"a version's program is made for any number of rows; the model does not take that: {error}; use "
                    f"x.shape[0] instead of len(x), and no shape that depends on the batch"
                ) from error
            told.append(f"{len(exported.serialize()) / 1024:,.0f} KiB for {', '.join(PLATFORMS)}")

    @contextlib.contextmanager
    def _found(self, what: str) -> Iterator[list[str]]:
        began = time.perf_counter()
        told: list[str] = []
        yield told
        self.findings.append(Finding(what=what, told="; ".join(told), seconds=time.perf_counter() - began))

    def _loader(self, split: str) -> Loader:
        assert self._trainer.batch_size is not None, "the trainer decides what was left out"
        return Loader(
            self._snapshot,
            split,
            pipeline=self._program.pipeline,
            batch_size=self._trainer.batch_size,
            seed=self._trainer.seed,
            sharding=self._program.batch_sharding,
            inputs=self._program.inputs,
            target=self._program.task.target,
            sample=self._program.task.target if split == "train" and self._trainer.sample else None,
        )

    def _stepped(self, state: Leaves) -> tuple[Leaves, Any]:
        batch: DeviceBatch = self._batch
        after, totals = self._program.step(state, self._program.zero_totals(), batch.inputs, batch.labels, batch.weight)
        totals.block_until_ready()
        return after, totals

    def _look_at(self, inputs: Any, targets: Any) -> None:
        if inputs.dtype.kind == "f" and (wrong := int((~np.isfinite(inputs)).sum())):
            self.warnings.append(f"{wrong:,} of {inputs.size:,} inputs of the first batch are not finite")
        if self._program.labels and targets.dtype.kind == "i" and targets.ndim == 1 and len(np.unique(targets)) == 1:
            self.warnings.append(f"all {len(targets)} rows of the first batch are of one class; is the split mixed?")

    def _look_for_dead(self, before: dict[str, Any]) -> None:
        after = self._program.tree(self._state).params
        learnt = self._trainer._step_options().learnt(before)
        dead = [path for path in learnt if before[path].size and np.array_equal(before[path], after[path])]
        if dead:
            self.warnings.append(f"a step changed nothing in {', '.join(dead[:4])}: no gradient reaches them")
