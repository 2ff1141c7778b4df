"""Several steps in one call: the same numbers, saved and ended on the same steps, and gone on with from any of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pictures import SmallData, make_data
from test_trainer import BATCHES, RANDOM, SMALL, arrays_of, assert_equal_to_the_bit, checkpoints_of, fit
from test_trainer_options import ALL, BlindedByWhite

from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.training import loop
from mms_sdk.compute.training.policies import Checkpoints, Limits
from mms_sdk.compute.training.profile import Profile
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.reader import Reader

TOGETHER = replace(SMALL, steps_per_call=4)


@pytest.fixture(scope="module")
def blinding(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    """Data with one white picture among the training rows."""
    return make_data(tmp_path_factory.mktemp("white") / "workspace", white=1)


def step_of_white(data: SmallData, seed: int) -> int:
    """In which step of the first epoch the white picture comes."""
    batches = Reader(data.open(), "train", columns=["image"], batch_size=SMALL.batch_size or 0, seed=seed).epoch()
    whites = [(batch.columns["image"].reshape(len(batch.rows), -1).min(1) == 255).any() for batch in batches]
    return whites.index(True) + 1


@pytest.mark.parametrize(
    ("trainer", "mesh"),
    [
        # With half precision, its scale of the loss, micro-batches, averages, adaptations and noise.
        pytest.param(ALL, {"data": 1}, id="one device"),
        pytest.param(RANDOM, {"data": 2, "fsdp": 4}, id="divided", marks=pytest.mark.slow),
    ],
)
def test_calls_of_several_steps_take_the_same_steps(pets: SmallData, trainer: Any, mesh: dict[str, int]) -> None:
    devices = jax.devices()[: mesh["data"] * mesh.get("fsdp", 1)]
    trainer = replace(trainer, mesh=make_mesh(mesh, devices=devices), epochs=2)

    single, several = fit(trainer, pets), fit(replace(trainer, steps_per_call=4), pets)

    assert several.history == single.history
    assert (several.steps, several.left_out) == (single.steps, single.left_out)
    assert_equal_to_the_bit(arrays_of(several.last), arrays_of(single.last))


def test_a_run_goes_on_from_any_step_that_was_saved_as_if_it_had_not_ended(pets: SmallData) -> None:
    trainer = replace(TOGETHER, epochs=2)
    unbroken = fit(trainer, pets)

    often = Checkpoints(every="3steps", keep=9)
    first = fit(replace(trainer, limits=Limits(steps=7), checkpoint=often), pets)
    on = fit(trainer, pets, resume=first.job)

    assert (first.steps, first.stopped) == (7, "all 7 steps are done")
    assert [checkpoint.step for checkpoint in checkpoints_of(pets, first.job)] == [3, 6, 7]
    assert on.history == unbroken.history
    assert_equal_to_the_bit(arrays_of(on.last), arrays_of(unbroken.last))


def test_a_call_is_one_step_of_the_loop_and_says_how_far_it_is(pets: SmallData) -> None:
    steps = list(replace(TOGETHER, epochs=2).steps(pets))

    assert [step.number for step in steps] == [4, 8, 9, 13, 17, 18]
    assert [(step.epoch, step.batch) for step in steps] == [(1, 4), (1, 8), (1, 9), (2, 4), (2, 8), (2, 9)]
    assert [step.number for step in steps if step.metrics] == [BATCHES, 2 * BATCHES]


def test_a_call_takes_an_epoch_at_most(pets: SmallData) -> None:
    steps = list(replace(SMALL, steps_per_call=100, epochs=2).steps(pets))

    assert [step.number for step in steps] == [BATCHES, 2 * BATCHES]


def test_steps_that_are_not_finite_are_left_out_of_a_call(blinding: SmallData) -> None:
    trainer = replace(TOGETHER, model=BlindedByWhite, epochs=2)

    assert fit(replace(trainer, on_nan="skip"), blinding).left_out == 2


def test_a_run_of_calls_returns_to_its_newest_checkpoint(blinding: SmallData) -> None:
    # In an order in which the white picture comes after the first checkpoint.
    seed = next(seed for seed in range(20) if step_of_white(blinding, seed) > 4)
    often = Checkpoints(every="4steps")
    trainer = replace(TOGETHER, model=BlindedByWhite, on_nan="rollback", epochs=2, checkpoint=often, seed=seed)

    result = fit(trainer, blinding)

    assert result.rollbacks == 2  # once an epoch, where the white picture is
    assert result.steps == 2 * BATCHES


def test_a_recording_begins_and_ends_between_calls(pets: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append("begun"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("ended"))
    trainer = replace(TOGETHER, epochs=2, profile=Profile(after=3, steps=5))

    for step in trainer.steps(pets):
        told.append(step.number)

    assert told == [4, "begun", 8, "ended", 9, 13, 17, 18]


def test_a_run_is_continued_with_calls_of_the_same_length(pets: SmallData) -> None:
    first = fit(replace(TOGETHER, epochs=1), pets)

    with pytest.raises(InvalidRequest, match=r"changed are \{'steps_per_call': \(4, 2\)\}"):
        fit(replace(TOGETHER, steps_per_call=2), pets, resume=first.job)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "8"])
def test_a_number_of_steps_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="steps_per_call is a whole number from 1; got steps_per_call="):
        replace(SMALL, steps_per_call=wrong)


@given(
    most=st.integers(1, 40),
    steps=st.integers(0, 100),
    left=st.integers(0, 100),
    every=st.none() | st.integers(1, 50),
    limit=st.none() | st.integers(1, 250),
)
def test_no_call_passes_over_a_step_that_is_saved_or_the_last(
    most: int, steps: int, left: int, every: int | None, limit: int | None
) -> None:
    calls = list(loop._calls(most, steps, left, every_steps=every, limit=limit))

    ends = {steps, *accumulate(calls, initial=steps)}
    assert sum(calls) == left
    assert all(1 <= count <= most for count in calls)
    due = {step for step in range(steps, steps + left) if (every and step % every == 0) or step == limit}
    assert due <= ends
