"""What the options of a trainer do to a run as a whole: limits, resumption elsewhere, returns, callbacks, sampling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_pictures import LABELS, SmallData, make_data
from test_trainer import BATCHES, RANDOM, SMALL, arrays_of, assert_equal_to_the_bit, fit, newest_job

from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.sharding.mesh import batch_sharding, make_mesh
from mms_sdk.compute.training.callbacks import Begun, Ending
from mms_sdk.compute.training.loop import ROLLBACKS
from mms_sdk.compute.training.lora import LoRA
from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, Limits
from mms_sdk.compute.training.profile import Profile
from mms_sdk.compute.training.tasks import Classification, Custom, Embedding, Reconstruction
from mms_sdk.compute.training.trainer import Trainer, evaluation_seed
from mms_sdk.errors import InvalidRequest, TrainingFailed
from mms_sdk.storage import metric_log
from mms_sdk.storage.reader import Position

ALL = replace(
    RANDOM,
    ema=0.9,
    accumulate=2,
    clip_norm=1.0,
    precision="fp16",
    lora=LoRA(rank=2, match="first"),
    batch_size=16,
    epochs=2,
)


class BlindedByWhite(nnx.Module):
    """Says what is no number where a picture is white."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], 12)
        return self.linear(x) * jnp.where(x.min(1, keepdims=True) == 1, jnp.nan, 1)


@pytest.fixture(scope="module")
def blinding(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    """Data with one white picture among the training rows."""
    return make_data(tmp_path_factory.mktemp("white") / "workspace", white=1)


# Limits -------------------------------------------------------------------------------------------------------------


def test_a_run_ends_after_so_many_steps_and_goes_on_as_if_it_had_not(pets: SmallData) -> None:
    unbroken = fit(ALL, pets)

    first = fit(replace(ALL, limits=Limits(steps=3)), pets)
    on = fit(ALL, pets, resume=first.job)

    assert (first.steps, first.stopped, first.history) == (3, "all 3 steps are done", ())
    assert first.best.step == first.last.step == 3
    assert (newest_job(pets).state, on.steps) == ("succeeded", 2 * 5)
    assert on.history == unbroken.history
    assert_equal_to_the_bit(arrays_of(on.last), arrays_of(unbroken.last))


def test_the_time_limit_counts_what_was_trained_before(pets: SmallData) -> None:
    first = fit(replace(SMALL, epochs=1), pets)

    on = fit(replace(SMALL, limits=Limits(time="1s")), pets, resume=first.job)
    later = fit(replace(SMALL, limits=Limits(time="1h")), pets, resume=first.job)

    trained_s = first.last.checkpoint.meta["seconds"]
    assert (on.steps, on.stopped) == ((BATCHES, "the 1s are over") if trained_s >= 1 else (on.steps, on.stopped))
    assert later.last.checkpoint.meta["seconds"] > trained_s
    assert later.steps == 3 * BATCHES


@pytest.mark.parametrize(("asked", "told"), [({"steps": 0}, "steps=0"), ({"time": "1 day"}, "time='1 day'")])
def test_a_limit_that_is_none_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        Limits(**asked)


# Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh_from_the_same_bits_and_it_is_said(
    pets: SmallData, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = fit(replace(RANDOM, mesh={"data": -1}), pets)
    first = fit(replace(RANDOM, mesh={"data": -1}, epochs=2), pets)

    with caplog.at_level(logging.WARNING, logger="mms.training"):
        on = fit(replace(RANDOM, mesh={"data": 4, "fsdp": 2}), pets, resume=first.job)

    assert on.mesh == "8 cpu devices: data=4, fsdp=2"
    assert "on other devices than it began on (mesh {'data': -1} → {'data': 4, 'fsdp': 2})" in on.notes[0]
    assert on.notes[0] in caplog.text
    assert on.history[:2] == first.history
    assert on.history[2] == pytest.approx(unbroken.history[2], rel=2e-3)


def test_the_metric_log_of_a_continued_run_has_each_epoch_once(pets: SmallData) -> None:
    first = fit(replace(SMALL, epochs=1), pets)
    log = first.folder / "metrics.jsonl"
    with log.open("ab") as file:
        file.write(b'{"step": 12, "time": 0, "running/loss": 9}\n')  # after the checkpoint: it is done again

    on = fit(SMALL, pets, resume=first.job)

    lines, _ = metric_log.read(on.folder / "metrics.jsonl")
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    assert not any(line.get("running/loss") == 9 for line in lines)


# What is not finite -----------------------------------------------------------------------------------------------


def test_steps_that_are_not_finite_are_left_out_and_told(blinding: SmallData) -> None:
    result = fit(replace(SMALL, model=BlindedByWhite, on_nan="skip", epochs=2), blinding)

    assert result.left_out == 2
    assert newest_job(blinding).result["left_out"] == 2
    assert all(np.isfinite(list(epoch.values())).all() for epoch in result.history)
    assert "2 steps left out" in result._repr_html_()


def test_a_run_of_nothing_but_steps_that_are_not_finite_fails(tmp_path: Path) -> None:
    data = make_data(tmp_path / "white", white=70)

    with pytest.raises(TrainingFailed, match="it became nan in epoch 1"):
        fit(replace(SMALL, model=BlindedByWhite, on_nan="skip"), data)


def test_a_run_returns_to_its_newest_checkpoint_and_goes_on_with_the_rows_that_follow(
    blinding: SmallData, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = replace(SMALL, model=BlindedByWhite, on_nan="rollback", epochs=2, checkpoint=Checkpoints(every="1steps"))

    with caplog.at_level(logging.WARNING, logger="mms.training"):
        result = fit(trainer, blinding)

    assert result.rollbacks == 2  # once an epoch, where the white picture is
    assert caplog.text.count("back to the state of step") == 2
    assert all(np.isfinite(value).all() for value in arrays_of(result.last)["params"].values())
    lines, _ = metric_log.read(result.folder / "metrics.jsonl")
    assert sum("rolled_back_to" in line for line in lines) == 2


def test_a_run_that_returns_time_after_time_fails(blinding: SmallData) -> None:
    often = replace(SMALL, model=BlindedByWhite, on_nan="rollback", epochs=9, checkpoint=Checkpoints(every="1steps"))

    with pytest.raises(TrainingFailed, match=f"in epoch {ROLLBACKS + 1}"):
        fit(often, blinding)


def dear(outputs: Any, targets: Any) -> Any:
    """A loss whose gradient times 2¹⁵ is none that fp16 has."""
    wanted = jax.nn.one_hot(targets, 3)
    return 1e4 * ((outputs - wanted) ** 2).mean(1)


def test_a_whole_epoch_in_which_fp16_looks_for_its_scale_does_not_fail_the_run(pets: SmallData) -> None:
    searching = replace(SMALL, task=Custom(loss=dear), precision="fp16", optimizer=optax.sgd(1e-6), epochs=2)

    result = fit(searching, pets)

    first, second = result.history
    assert np.isnan(first["train/loss"])
    assert np.isfinite(second["train/loss"])
    assert BATCHES <= result.left_out < 2 * BATCHES


# Callbacks and sampling -------------------------------------------------------------------------------------------


class Told:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin(self, run: Begun) -> None:
        self.seen.append(("begin", run.job, run.options["seed"]))

    def log(self, record: Mapping[str, Any]) -> None:
        if "epoch" in record:
            self.seen.append(("epoch", record["epoch"], record["val/loss"]))

    def end(self, state: Ending, why: str) -> None:
        self.seen.append(("end", state, why))


def test_callbacks_are_told_of_the_beginning_of_each_epoch_and_of_the_end(pets: SmallData) -> None:
    told = Told()

    result = fit(replace(SMALL, epochs=2, callbacks=[told]), pets)

    epochs = [("epoch", number, epoch["val/loss"]) for number, epoch in enumerate(result.history, 1)]
    assert told.seen == [("begin", result.job, 0), *epochs, ("end", "succeeded", "all 2 epochs are done")]


def test_callbacks_are_told_of_a_run_that_failed_and_of_one_that_was_left(blinding: SmallData, pets: SmallData) -> None:
    failed, left = Told(), Told()

    with pytest.raises(TrainingFailed) as error:
        fit(replace(SMALL, model=BlindedByWhite, callbacks=[failed]), blinding)
    for _ in replace(SMALL, callbacks=[left]).steps(pets):
        break

    assert failed.seen[-1] == ("end", "failed", error.value.message)
    assert left.seen[-1] == ("end", "cancelled", "stopped by the person")


def test_callbacks_of_a_continued_run_are_told_where_it_began_and_of_what_was_logged(pets: SmallData) -> None:
    class Begins(Told):
        def begin(self, run: Begun) -> None:
            self.seen.append((run, list(metric_log.records(run.log))))

    first = fit(replace(SMALL, epochs=1), pets)
    second = fit(replace(SMALL, epochs=2), pets, resume=first.job)
    told = Begins()
    third = fit(replace(SMALL, epochs=3, callbacks=[told]), pets, resume=second.job)

    run, logged = told.seen[0]
    assert (run.job, run.run, run.dataset, run.step) == (third.job, first.job, "pets@1", 2 * BATCHES)
    assert [record["epoch"] for record in logged if "epoch" in record] == [1, 2]


def test_a_callback_that_refuses_to_begin_ends_the_run_and_those_before_it_are_told(pets: SmallData) -> None:
    class Refusing(Told):
        def begin(self, run: Begun) -> None:
            raise RuntimeError("no")

    first, last = Told(), Refusing()

    with pytest.raises(RuntimeError, match="no"):
        fit(replace(SMALL, callbacks=[first, last]), pets)

    assert [seen[0] for seen in first.seen] == ["begin", "end"]
    assert first.seen[-1] == ("end", "failed", "no")
    assert last.seen == []
    assert newest_job(pets).state == "failed"


def test_what_a_callback_raises_ends_the_run_and_is_recorded(pets: SmallData) -> None:
    class Failing(Told):
        def log(self, record: Mapping[str, Any]) -> None:
            raise RuntimeError("no disk for my logs")

    with pytest.raises(RuntimeError, match="no disk for my logs"):
        fit(replace(SMALL, callbacks=[Failing()]), pets)

    job = newest_job(pets)
    assert (job.state, job.error) == ("failed", {"title": "RuntimeError", "detail": "no disk for my logs"})


def test_balanced_weights_are_rows_over_classes_times_rows_of_the_class(pets: SmallData) -> None:
    _, codes = pets.rows("train")
    counts = np.bincount(codes, minlength=3)

    fitted = Classification(class_weight="balanced").fit(pets.open())

    assert fitted.class_weight == pytest.approx(tuple(len(codes) / (3 * counts)))


@pytest.mark.parametrize("weights", [{"ant": 1.0}, dict.fromkeys((*LABELS, "dog"), 1.0), dict.fromkeys(LABELS, -1.0)])
def test_weights_for_other_classes_than_there_are_are_refused(pets: SmallData, weights: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"weight from 0 for each class of pets@1, \['ant', 'bee', 'cat'\]"):
        fit(replace(SMALL, task=Classification(class_weight=weights)), pets)


def test_sampling_by_target_draws_rare_classes_as_often_as_others(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", rows={"train": 3000, "val": 30})
    snapshot = data.open()
    codes = snapshot.values("label")
    seen = np.zeros(3)
    loader = Loader(
        snapshot,
        "train",
        pipeline=Pipeline(),
        batch_size=64,
        seed=0,
        sharding=batch_sharding(make_mesh({"data": 8})),
        sample="label",
    )

    for batch in loader.epoch(Position()):
        seen += np.bincount(np.asarray(batch.labels), weights=np.asarray(batch.weight), minlength=3)

    assert codes.size == 3030
    assert seen.sum() == 3000
    assert np.abs(seen / 3000 - 1 / 3).max() < 5 * (2 / 9 / 3000) ** 0.5


class Same(nnx.Module):
    """One linear map from a picture to a picture, or to a row of values."""

    def __init__(self, rngs: nnx.Rngs, *, flat: bool = False) -> None:
        self.linear, self.flat = nnx.Linear(12, 12, rngs=rngs), flat

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.linear(x.reshape(x.shape[0], 12))
        return y if self.flat else y.reshape(x.shape)


def test_a_reconstruction_learns_to_give_back_what_went_in(pets: SmallData) -> None:
    result = fit(replace(SMALL, model=Same, task=Reconstruction(), epochs=20), pets)

    pictures, _ = pets.rows("val")
    flat, params = pictures.reshape(len(pictures), 12), result.last.state.params
    error = flat @ np.asarray(params["linear/kernel"]) + np.asarray(params["linear/bias"]) - flat
    assert result.history[-1]["val/loss"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert result.history[-1]["val/loss"] < result.history[0]["val/loss"] / 3


def test_a_model_that_gives_another_shape_than_the_task_asks_for_is_refused(pets: SmallData) -> None:
    with pytest.raises(InvalidRequest, match=r"gives shape \(batch, 4, 3, 1\) for rows of \(4, 3, 1\); got \(2, 12\)"):
        fit(replace(SMALL, model=lambda rngs: Same(rngs, flat=True), task=Reconstruction()), pets)


def test_rows_that_are_compared_are_evaluated_mixed_and_in_the_same_order_each_time(pets: SmallData) -> None:
    def order(task: Any) -> list[int]:
        loader = Loader(
            pets.open(),
            "val",
            pipeline=Pipeline(),
            batch_size=8,
            seed=evaluation_seed(task),
            sharding=batch_sharding(make_mesh({"data": 8})),
        )
        batches = [(np.asarray(b.labels), np.asarray(b.weight)) for b in loader.epoch(Position())]
        return [int(code) for codes, weight in batches for code in codes[weight > 0]]

    as_they_lie = pets.rows("val")[1].tolist()

    assert order(Classification()) == as_they_lie
    assert order(Embedding()) == order(Embedding()) != as_they_lie
    assert sorted(order(Embedding())) == sorted(as_they_lie)


def test_an_embedding_learns_to_lay_rows_of_one_class_together(pets: SmallData) -> None:
    near = fit(replace(SMALL, task=Embedding(), batch_size=32, epochs=20), pets)

    assert near.history[-1]["train/loss"] < near.history[0]["train/loss"]
    assert near.history[-1]["val/recall"] > 1 / 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"sample": "label"}, "sample is 'target', or None"),
        ({"sample": "target", "task": Reconstruction()}, "reconstruction has none; leave it out"),
        (
            {"sample": "target", "task": Custom(loss=dear, target="image")},
            "'image' of pets@1 is .* without such; leave",
        ),
        ({"precision": "fp8"}, "got 'fp8'"),
        ({"accumulate": 3}, "in 3 micro-batches, does not; use a multiple of 24"),
        ({"stop": EarlyStopping("val/f1")}, "EarlyStopping watches one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(pets: SmallData, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        fit(replace(SMALL, **changed), pets)


def test_a_window_of_steps_is_recorded_by_the_profiler(pets: SmallData) -> None:
    result = fit(replace(SMALL, epochs=2, profile=Profile(after=3, steps=2)), pets)

    (recorded,) = (result.folder / "profile").rglob("*.xplane.pb")
    assert recorded.stat().st_size > 1000
    assert result.steps == 2 * BATCHES


def test_a_recording_ends_with_the_run(pets: SmallData) -> None:
    result = fit(replace(SMALL, epochs=1, profile=Profile(after=BATCHES - 1, steps=50)), pets)

    assert list((result.folder / "profile").rglob("*.xplane.pb"))
    jax.profiler.start_trace(str(result.folder / "another"))  # which it refuses while one is under way
    jax.profiler.stop_trace()


def test_all_options_are_json_and_print() -> None:
    trainer = Trainer(
        model=SMALL.model, freeze="head", lora=LoRA(match="layers", train="none"), limits=Limits(time="2h")
    )

    told = trainer.describe()

    assert told["freeze"] == ["head"]
    assert told["lora"] == {"rank": 8, "alpha": 16.0, "match": "layers", "train": "none"}
    assert told["limits"] == {"steps": None, "time": "2h"}
