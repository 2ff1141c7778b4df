"""`fit` and `steps()`: what is recorded, what is kept, how a run goes on, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import re
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from small_pictures import SHAPE, SmallData, make_data, metrics_of, mlp_scores, noisy

import mms_sdk as mms
from mms_sdk.compute.data.preprocess.image import Normalize, RandomFlip, RandomShift
from mms_sdk.compute.models import MLP
from mms_sdk.compute.training import trainer as trainer_module
from mms_sdk.compute.training.loop import Step
from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, History
from mms_sdk.compute.training.trainer import Result, TrainedCheckpoint, Trainer, suited_batch_size
from mms_sdk.errors import DataError, InvalidRequest, SplitNotFound, StorageFull, TrainingFailed
from mms_sdk.schema.job import Job, Progress
from mms_sdk.storage import metric_log
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.checkpoints import CheckpointFolder

BATCHES = 9  # of 8 in the 70 training rows; the last has 6
SMALL = Trainer(model=MLP(num_classes=3, widths=(16,)), optimizer=optax.adam(1e-2), batch_size=8, epochs=3)
RANDOM = replace(SMALL, model=noisy, preprocess=(Normalize(), RandomFlip(), RandomShift(1)))


def fit(trainer: Trainer, data: SmallData, **options: Any) -> Result:
    return trainer.fit(data, progress="none", **options)


def newest_job(data: SmallData) -> Job:
    return data.workspace.catalog.jobs.list(limit=1)[0]


def checkpoints_of(data: SmallData, job: str) -> list[Any]:
    folder = CheckpointFolder(data.workspace.job_folder(job) / "checkpoints", keep=1)
    try:
        return folder.all()
    finally:
        folder.close()


def plain_orbax(folder: Path) -> Any:
    """The arrays of a checkpoint, as somebody reads them who has Orbax and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sharding info not provided")  # it then asks the file, as is wanted here
        return jax.tree.map(np.asarray, ocp.load(folder / "state"))


def arrays_of(checkpoint: TrainedCheckpoint) -> Any:
    """Everything that a run goes on from."""
    return plain_orbax(checkpoint.path)


def assert_equal_to_the_bit(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


@dataclass(frozen=True)
class Afterwards:
    """A stop policy that does something once so many epochs are done."""

    epochs: int
    do: Callable[[], object]

    def reason(self, history: History) -> str | None:
        if len(history) == self.epochs:
            self.do()
        return None


# A run that succeeds --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(pets: SmallData) -> Result:
    """A finished run of three epochs."""
    return fit(SMALL, pets)


def test_a_finished_run_is_a_job_that_succeeded(pets: SmallData, result: Result) -> None:
    job = pets.workspace.catalog.jobs.get(result.job)

    assert (job.kind, job.name, job.state, job.error) == ("train", "pets", "succeeded", None)
    assert job.ended_at is not None
    assert job.spec["dataset"] == "pets@1"
    assert job.spec["trainer"]["model"] == "MLP(num_classes=3, widths=(16,))"
    assert {**job.result, "seconds": 0} == {**json.loads(json.dumps(result.summary())), "seconds": 0}
    assert job.result["steps"] == result.steps == 3 * BATCHES


def test_the_history_has_every_metric_of_every_epoch_and_training_learns(result: Result) -> None:
    assert len(result.history) == 3
    assert all(set(epoch) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} for epoch in result.history)
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert result.stopped == "all 3 epochs are done"


def test_best_and_last_restore_with_plain_orbax_to_what_the_result_holds(result: Result) -> None:
    for trained in (result.best, result.last):
        arrays = arrays_of(trained)

        assert set(arrays) == {"params", "rest", "opt", "step", "extra", "totals"}
        assert int(arrays["step"]) == trained.step
        for path, value in trained.state.params.items():
            np.testing.assert_array_equal(arrays["params"][path], value)
    assert result.last.step == 3 * BATCHES
    assert result.best.step == BATCHES * (1 + min(range(3), key=lambda epoch: result.history[epoch]["val/loss"]))


def test_metrics_of_an_epoch_are_those_of_its_checkpoint_in_numpy(pets: SmallData, result: Result) -> None:
    pictures, labels = pets.rows("val")

    expected = metrics_of(mlp_scores(result.last.state.params, pictures), labels, "val")

    measured = {name: value for name, value in result.history[-1].items() if name.startswith("val/")}
    assert measured == pytest.approx(expected, rel=1e-5)
    assert result.last.metrics == result.history[-1]


def test_a_result_is_evaluated_on_rows_that_training_never_saw(pets: SmallData, result: Result) -> None:
    pictures, labels = pets.rows("test")

    expected = metrics_of(mlp_scores(result.best.state.params, pictures), labels, "test")

    assert result.evaluate() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SplitNotFound, match="holdout"):
        result.evaluate("holdout")


def test_the_metric_log_has_a_line_for_every_epoch(result: Result) -> None:
    lines, _ = metric_log.read(result.folder / "metrics.jsonl")

    ends = [line for line in lines if "epoch" in line]
    assert [(line["epoch"], line["step"]) for line in ends] == [(1, BATCHES), (2, 2 * BATCHES), (3, 3 * BATCHES)]
    assert [line["val/loss"] for line in ends] == [epoch["val/loss"] for epoch in result.history]


def test_a_result_tells_what_it_is(result: Result) -> None:
    told = repr(result)

    assert "pets@1: 3 epochs, 27 steps" in told
    assert "8 cpu devices: data=8" in told
    assert f"val/loss {result.best.metrics['val/loss']:.4f}" in told
    assert result.parameters == 12 * 16 + 16 + 16 * 3 + 3
    assert 0 <= result.input_wait_fraction <= 1


def test_the_same_seed_gives_the_same_run_to_the_bit_and_another_seed_another(pets: SmallData, result: Result) -> None:
    again, other = fit(SMALL, pets), fit(replace(SMALL, seed=1), pets)

    assert again.history == result.history
    assert_equal_to_the_bit(arrays_of(again.last), arrays_of(result.last))
    assert other.history != result.history


def test_a_run_with_an_early_stop_ends_and_says_why(pets: SmallData) -> None:
    still = replace(SMALL, optimizer=optax.set_to_zero(), epochs=50, stop=EarlyStopping("val/loss", patience=2))

    ended = fit(still, pets)

    assert len(ended.history) == 3
    assert ended.stopped.startswith("val/loss has not improved for 2 epochs; best was")
    assert ended.best.step == BATCHES


def test_only_the_newest_few_checkpoints_and_the_best_stay(pets: SmallData) -> None:
    worse = optax.sgd(lambda step: jnp.where(step < BATCHES, 0.05, -0.05))  # after the first epoch it unlearns

    ended = fit(replace(SMALL, optimizer=worse, epochs=4, checkpoint=Checkpoints(keep=2)), pets)

    assert [checkpoint.step for checkpoint in checkpoints_of(pets, ended.job)] == [9, 27, 36]
    assert ended.best.step == 9


def test_checkpoints_are_made_between_epochs_too(pets: SmallData) -> None:
    ended = fit(replace(SMALL, epochs=2, checkpoint=Checkpoints(every="4steps", keep=9)), pets)

    assert [checkpoint.step for checkpoint in checkpoints_of(pets, ended.job)] == [4, 8, 9, 12, 16, 18]


def test_without_a_val_split_the_best_epoch_is_chosen_by_training_metrics(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", rows={"train": 30})

    with pytest.raises(InvalidRequest, match=r"Checkpoints.best watches one of \['train/loss', 'train/accuracy'\]"):
        fit(replace(SMALL, checkpoint=Checkpoints(best="val/loss")), data)
    ended = fit(replace(SMALL, epochs=2), data)

    assert set(ended.history[0]) == {"train/loss", "train/accuracy"}
    losses = [epoch["train/loss"] for epoch in ended.history]
    assert ended.best.metrics["train/loss"] == min(losses)


@pytest.mark.parametrize(
    ("rows", "batch"), [(1, 8), (80, 8), (159, 8), (160, 16), (639, 32), (640, 64), (1280, 128), (10**9, 128)]
)
def test_a_batch_size_left_out_leaves_an_epoch_some_steps(rows: int, batch: int) -> None:
    assert suited_batch_size(rows) == batch


def test_a_batch_size_left_out_divides_over_the_devices_and_is_recorded(pets: SmallData) -> None:
    ended = fit(replace(SMALL, epochs=1, batch_size=None), pets)

    assert ended.steps == -(-70 // 8)  # eight devices, eight rows a step
    assert newest_job(pets).spec["trainer"]["batch_size"] == 8


def test_how_far_training_is_can_be_read_from_its_job(pets: SmallData) -> None:
    seen = []
    for step in replace(SMALL, epochs=2).steps(pets):
        seen.append((step.epoch, newest_job(pets).progress.done))

    assert {(1, 0), (1, 1), (2, 1), (2, 2)} == set(seen)
    assert newest_job(pets).progress == Progress(done=2, total=2, what="epochs")


def test_what_is_no_dataset_is_refused(pets: SmallData) -> None:
    with pytest.raises(InvalidRequest, match=r"training takes a dataset, e\.g\. ws\.datasets\.get.*got 'pets'"):
        SMALL.fit("pets")  # type: ignore[arg-type]


def test_the_options_of_a_trainer_are_json_and_print() -> None:
    told = json.loads(json.dumps(RANDOM.describe()))

    assert told["preprocess"][1] == {"step": "image.random-flip"}
    assert told["mesh"] == {"data": -1}
    assert told["stop"] == "NeverStop()"
    assert "batch_size=8" in repr(SMALL)


# The same loop as a generator -----------------------------------------------------------------------------------


def test_steps_are_counted_and_carry_metrics_at_the_end_of_an_epoch(pets: SmallData) -> None:
    steps = list(replace(SMALL, epochs=2).steps(pets))

    assert [step.number for step in steps] == list(range(1, 2 * BATCHES + 1))
    assert [(step.epoch, step.batch) for step in steps] == [(e, b) for e in (1, 2) for b in range(1, BATCHES + 1)]
    assert {step.batches for step in steps} == {BATCHES}
    assert [step.number for step in steps if step.metrics] == [BATCHES, 2 * BATCHES]
    assert newest_job(pets).state == "succeeded"


def test_leaving_the_steps_early_cancels_the_job_and_keeps_its_checkpoints(pets: SmallData) -> None:
    for step in SMALL.steps(pets):
        if step.number == BATCHES + 3:
            break
    del step
    gc.collect()

    job = newest_job(pets)
    assert job.state == "cancelled"
    assert job.error == {"title": "cancelled", "detail": "stopped by the person"}
    (checkpoint,) = checkpoints_of(pets, job.id)
    checkpoint.verify()
    assert checkpoint.step == BATCHES
    assert not [thread.name for thread in threading.enumerate() if thread.name == "mms-ahead"]


# Going on from a checkpoint ---------------------------------------------------------------------------------------


def interrupted_after(steps: int, trainer: Trainer, data: SmallData) -> str:
    """Id of a job that was left after so many steps."""
    running = trainer.steps(data)
    for _ in islice(running, steps):
        pass
    running.close()  # type: ignore[attr-defined]
    return newest_job(data).id


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "mesh", [pytest.param({"data": 8}, id="data=8"), pytest.param({"data": 4, "fsdp": 2}, id="data=4,fsdp=2")]
)
def test_a_run_that_is_continued_equals_an_unbroken_one_to_the_bit(pets: SmallData, mesh: dict[str, int]) -> None:
    trainer = replace(RANDOM, mesh=mesh, checkpoint=Checkpoints(every="2steps", keep=3))
    unbroken = fit(trainer, pets)

    broken = interrupted_after(2 * BATCHES + 5, trainer, pets)  # in the third epoch; the last checkpoint is at step 22
    continued = fit(trainer, pets, resume=broken)

    assert [checkpoint.step for checkpoint in checkpoints_of(pets, broken)][-1] == 2 * BATCHES + 4
    assert_equal_to_the_bit(arrays_of(continued.last), arrays_of(unbroken.last))
    assert continued.history == unbroken.history
    assert (continued.steps, continued.stopped) == (unbroken.steps, unbroken.stopped)
    assert continued.best.step == unbroken.best.step
    assert_equal_to_the_bit(arrays_of(continued.best), arrays_of(unbroken.best))
    assert pets.workspace.catalog.jobs.get(continued.job).spec["resumed_from"] == broken


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_epochs_as_if_they_had_been_asked_for_at_once(pets: SmallData) -> None:
    first = fit(replace(RANDOM, epochs=1), pets)

    longer = fit(replace(RANDOM, epochs=3), pets, resume=first.job)

    at_once = fit(replace(RANDOM, epochs=3), pets)
    assert longer.history == at_once.history
    assert_equal_to_the_bit(arrays_of(longer.last), arrays_of(at_once.last))


def test_a_run_that_its_policy_stopped_stays_stopped_unless_a_later_stop_is_asked_for(pets: SmallData) -> None:
    still = replace(SMALL, optimizer=optax.set_to_zero(), epochs=9, stop=EarlyStopping("val/loss", patience=1))
    first = fit(still, pets)

    again = fit(still, pets, resume=first.job)

    assert len(first.history) == len(again.history) == 2
    assert again.stopped == first.stopped
    later = fit(replace(still, stop=EarlyStopping("val/loss", patience=2)), pets, resume=first.job)
    assert len(later.history) == 3


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 16}, "batch_size"),
        ({"model": MLP(num_classes=3, widths=(8,))}, "model"),
        ({"precision": "bf16"}, "precision"),
        ({"preprocess": (Normalize(),)}, "preprocess"),
        ({"optimizer": None}, "optimizer"),
    ],
)
def test_a_run_is_not_continued_with_other_options(
    pets: SmallData, result: Result, changed: dict[str, Any], name: str
) -> None:
    before = newest_job(pets).id

    with pytest.raises(InvalidRequest, match=rf"continued with the options it began with; changed are \{{'{name}'"):
        fit(replace(SMALL, **changed), pets, resume=result.job)

    assert newest_job(pets).id == before


def test_a_run_is_not_continued_with_an_optimiser_that_keeps_other_arrays(pets: SmallData, result: Result) -> None:
    with pytest.raises(InvalidRequest, match="those given keep other arrays than"):
        fit(replace(SMALL, optimizer=optax.sgd(1e-2, momentum=0.9)), pets, resume=result.job)


def test_a_run_is_not_continued_on_other_rows(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws")
    ended = fit(replace(SMALL, epochs=1), data)
    dataset = data.workspace.dataset("pets")
    record = dataset.record()
    dataset.commit(Addition(parts=(), columns=record.columns), base=record, rebase=False)

    with pytest.raises(InvalidRequest, match=r"\{'dataset': \('pets@1', 'pets@2'\)\}"):
        fit(replace(SMALL, epochs=2), data, resume=ended.job)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_and_it_is_said(
    pets: SmallData, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = fit(RANDOM, pets)
    broken = interrupted_after(2 * BATCHES + 1, RANDOM, pets)
    newest = checkpoints_of(pets, broken)[-1]
    victim = max(
        (path for path in (newest.folder / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)

    with caplog.at_level(logging.WARNING, "mms.training"):
        continued = fit(RANDOM, pets, resume=broken)

    assert newest.step == 2 * BATCHES
    assert any(newest.folder.name in record.getMessage() for record in caplog.records)
    assert continued.history == unbroken.history
    assert_equal_to_the_bit(arrays_of(continued.last), arrays_of(unbroken.last))


# A run that does not succeed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "by", "kept"), [("epoch", 18, [9]), ("4steps", 12, [8, 9])])
def test_a_loss_that_is_no_number_fails_the_run_and_only_good_checkpoints_stay(
    pets: SmallData, every: str, by: int, kept: list[int]
) -> None:
    exploding = optax.sgd(lambda step: jnp.where(step < BATCHES + 1, 0.01, jnp.nan))

    with pytest.raises(TrainingFailed) as failed:
        fit(replace(SMALL, optimizer=exploding, checkpoint=Checkpoints(every=every, keep=2)), pets)

    assert f"it became nan in epoch 2, by step {by}; lower the learning rate" in failed.value.message
    job = newest_job(pets)
    assert (job.state, job.error) == ("failed", {"title": "training-failed", "detail": failed.value.message})
    checkpoints = checkpoints_of(pets, job.id)
    assert [checkpoint.step for checkpoint in checkpoints] == kept
    for checkpoint in checkpoints:
        checkpoint.verify()
        assert all(np.isfinite(value).all() for value in plain_orbax(checkpoint.folder)["params"].values())


def test_a_last_step_that_spoils_the_state_fails_the_run_though_every_loss_was_a_number(pets: SmallData) -> None:
    spoiling = optax.sgd(lambda step: jnp.where(step < 2 * BATCHES - 1, 0.01, jnp.nan))

    with pytest.raises(TrainingFailed, match=f"it became nan in epoch 2, by step {2 * BATCHES}"):
        fit(replace(SMALL, optimizer=spoiling, epochs=2), pets)

    (kept,) = checkpoints_of(pets, newest_job(pets).id)
    assert kept.step == BATCHES
    assert all(np.isfinite(value).all() for value in plain_orbax(kept.folder)["params"].values())


class Spoiling(nnx.Module):
    """Learns, but says NaN outside training from its tenth training step on."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(12, 3, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros(()))
        self.deterministic = False

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = self.linear(x.reshape(x.shape[0], 12))
        if self.deterministic:
            return jnp.where(self.seen.get_value() < BATCHES + 1, scores, jnp.nan)
        self.seen.set_value(self.seen.get_value() + 1)
        return scores


def test_a_validation_loss_that_is_no_number_is_never_the_best_not_even_in_a_continued_run(pets: SmallData) -> None:
    spoiling = replace(SMALL, model=lambda rngs: Spoiling(rngs=rngs))

    ended = fit(replace(spoiling, epochs=2), pets)
    continued = fit(replace(spoiling, epochs=3), pets, resume=ended.job)

    assert [isnan(epoch["val/loss"]) for epoch in continued.history] == [False, True, True]
    assert ended.best.step == continued.best.step == BATCHES


def test_an_interrupt_in_the_middle_cancels_the_job_and_leaves_a_good_checkpoint(pets: SmallData) -> None:
    stop = Afterwards(2, lambda: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(replace(SMALL, stop=stop), pets)

    job = newest_job(pets)
    assert stopped.value.__notes__ == [f"the job is {job.id}; resume={job.id!r} goes on from its newest checkpoint"]
    assert job.state == "cancelled"
    assert [checkpoint.step for checkpoint in checkpoints_of(pets, job.id)] == [BATCHES]
    continued = fit(replace(SMALL, epochs=2), pets, resume=job.id)
    assert len(continued.history) == 2


def test_an_interrupt_while_progress_is_shown_cancels_the_job_at_once(
    pets: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, step: Step) -> None:
            if step.number == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, "make_progress", lambda how, epochs, **_: Impatient())

    with pytest.raises(KeyboardInterrupt) as held:  # and with it the frame that held the generator
        SMALL.fit(pets)

    assert newest_job(pets).state == "cancelled"
    assert held.tb is not None


def test_an_error_of_the_persons_own_code_fails_the_job_and_comes_through(pets: SmallData) -> None:
    def trip() -> None:
        raise ZeroDivisionError("own mistake")

    with pytest.raises(ZeroDivisionError, match="own mistake"):
        fit(replace(SMALL, stop=Afterwards(1, trip)), pets)

    job = newest_job(pets)
    assert (job.state, job.error) == ("failed", {"title": "ZeroDivisionError", "detail": "own mistake"})


@pytest.mark.slow
def test_a_full_disk_fails_the_run_and_earlier_checkpoints_stay(
    tmp_path: Path, small_disk: Callable[[Path, int], None]
) -> None:
    data = make_data(tmp_path / "ws")
    jobs = data.workspace.root / "jobs"
    small_disk(jobs, 2048)

    def fill() -> None:
        with (jobs / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    with pytest.raises(StorageFull) as full:
        fit(replace(SMALL, epochs=6, stop=Afterwards(3, fill)), data)

    assert "no space left" in full.value.message
    job = newest_job(data)
    assert (job.state, (job.error or {})["title"]) == ("failed", "storage-full")
    (jobs / "filler").unlink()
    kept = checkpoints_of(data, job.id)
    assert kept[0].step == BATCHES  # complete before the second was begun; that one may have been under way
    for checkpoint in kept:
        checkpoint.verify()
    continued = fit(replace(SMALL, epochs=4), data, resume=job.id)
    assert len(continued.history) == 4


def test_a_run_that_cannot_even_begin_is_recorded_as_failed(
    pets: SmallData, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(CheckpointFolder, "adopt", full)

    with pytest.raises(StorageFull):
        fit(replace(SMALL, epochs=4), pets, resume=result.job)

    assert newest_job(pets).state == "failed"


def test_memory_that_runs_out_is_told_with_what_to_change_and_the_checkpoints_stay(pets: SmallData) -> None:
    def grow() -> None:
        jnp.ones((2**45,)).block_until_ready()  # 128 TiB: what JAX says then is real

    with pytest.raises(TrainingFailed) as failed:
        fit(replace(SMALL, stop=Afterwards(2, grow)), pets)

    told = failed.value.message
    assert re.match(r"a step fits into the memory of the devices; one with batch_size=8 did not: RESOURCE_EXHAUS", told)
    assert all(word in told for word in ("accumulate=2", "remat='dots'", "lower batch_size", "fsdp", "are intact"))
    job = newest_job(pets)
    assert (job.state, job.error) == ("failed", {"title": "training-failed", "detail": told})
    (kept,) = checkpoints_of(pets, job.id)
    kept.verify()
    assert kept.step == BATCHES


class Asked:
    """A callback that writes down what it is asked, and may fail at the beginning."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.seen: list[str] = []

    def begin(self, run: mms.Begun) -> None:
        if self.fails:
            raise ConnectionError("nobody takes my logs")
        self.seen.append(f"began {run.job}")

    def log(self, record: Any) -> None: ...

    def end(self, state: str, why: str) -> None:
        self.seen.append(f"{state}: {why}")


def test_a_callback_that_cannot_begin_fails_the_job_and_those_before_it_are_told_of_the_end(pets: SmallData) -> None:
    told = Asked()

    with pytest.raises(ConnectionError, match="nobody takes my logs"):
        fit(replace(SMALL, callbacks=[told, Asked(fails=True)]), pets)

    job = newest_job(pets)
    assert (job.state, job.error) == ("failed", {"title": "ConnectionError", "detail": "nobody takes my logs"})
    assert told.seen == [f"began {job.id}", "failed: nobody takes my logs"]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mms-checkpoint")]


@pytest.mark.parametrize("error", [RuntimeError("no such terminal"), KeyboardInterrupt()])
def test_what_cannot_be_shown_leaves_no_job_that_runs_for_ever(
    pets: SmallData, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(how: str, epochs: int, **_: object) -> Any:
        raise error

    monkeypatch.setattr(trainer_module, "make_progress", fail)
    before = newest_job(pets)

    with pytest.raises(type(error)):
        SMALL.fit(pets)

    assert newest_job(pets) == before


# What is refused before anything is recorded ----------------------------------------------------------------------


def refusal(kind: type[Exception], trainer: Callable[[], Trainer], data: SmallData) -> str:
    before = data.workspace.catalog.jobs.list(limit=1)
    with pytest.raises(kind) as refused:
        fit(trainer(), data)
    assert data.workspace.catalog.jobs.list(limit=1) == before
    return str(refused.value)


def test_data_of_one_class_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", labels=("ant",))

    told = refusal(DataError, lambda: SMALL, data)

    assert re.fullmatch(r"classification needs at least two classes; pets@1 has 1: \['ant'\]; add rows .*", told)


def test_data_without_training_rows_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", rows={"val": 12, "test": 12})

    told = refusal(SplitNotFound, lambda: SMALL, data)

    assert told == "pets@1 has no rows in split 'train'; its splits are {'val': 12, 'test': 12}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 12}, ["12 rows over 8 devices", "data=8", "use a multiple of 8"]),
        ({"batch_size": 0}, ["a whole number from 1", "batch_size=0"]),
        ({"batch_size": "16"}, ["a whole number from 1", "batch_size='16'"]),
        ({"epochs": 2.5}, ["a whole number from 1", "epochs=2.5"]),
        ({"optimizer": 0.001}, ["optax.adamw(1e-3)", "got 0.001"]),
        ({"model": MLP}, ["a model family is made first", "MLP(num_classes=…)"]),
        ({"model": MLP(num_classes=5)}, ["(batch, 3)", "(2, 5)", "set its num_classes to 3"]),
        ({"model": "resnet50"}, ["mms.models.ConvNet", "got str"]),
        ({"epochs": 0}, ["a whole number from 1", "epochs=0"]),
        ({"mesh": {"data": 3}}, ["uses every device", "there are 8"]),
        ({"preprocess": ["resize"]}, ["mms.image.Resize(64)", "'resize'"]),
        ({"checkpoint": Checkpoints(best="val/f1")}, ["Checkpoints.best watches one of", "'val/accuracy'", "'val/f1'"]),
        ({"stop": EarlyStopping("accuracy")}, ["EarlyStopping watches one of", "'val/accuracy'", "got 'accuracy'"]),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_rule_the_value_and_the_next_step(
    pets: SmallData, options: dict[str, Any], words: list[str]
) -> None:
    told = refusal(InvalidRequest, lambda: replace(SMALL, **options), pets)

    assert all(word in told for word in words), told


def test_a_model_that_fails_on_the_shape_of_the_pictures_is_refused(pets: SmallData) -> None:
    def apply(params: Any, x: Any) -> Any:
        return x.reshape(x.shape[0], 999) @ params["kernel"]

    def init(key: Any, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"kernel": jnp.zeros((999, 3))}

    told = refusal(InvalidRequest, lambda: replace(SMALL, model=(init, apply)), pets)

    assert f"shape (batch, {', '.join(map(str, SHAPE))})" in told
    assert "mms.image.Resize(64)" in told
