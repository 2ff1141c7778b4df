"""`check`: one of everything, what it says, and what it raises before a run would."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_pictures import SmallData, make_data
from test_trainer import RANDOM, SMALL

import mms_sdk as mms
import small_kinds
from mms_sdk.errors import InvalidRequest, TrainingFailed
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.workspace import Workspace


def test_a_check_goes_through_all_that_a_run_does_and_records_nothing(pets: SmallData) -> None:
    before = pets.workspace.catalog.jobs.list(limit=500)

    found = replace(RANDOM, ema=0.9, precision="bf16").check(pets)

    told = {finding.what: finding.told for finding in found.findings}
    assert list(told) == ["a batch of data", "a training step", "an evaluation", "a checkpoint", "a model version"]
    assert told["a batch of data"] == "uint8 8×4×3×1, 9 batches an epoch, read by mmap"
    assert told["a checkpoint"].endswith("back bit for bit")
    assert "val/accuracy" in told["an evaluation"]
    assert found.warnings == ()
    assert "<one of everything on pets@1" in repr(found)
    assert pets.workspace.catalog.jobs.list(limit=500) == before


class HalfDead(nnx.Module):
    """Has a layer that nothing depends on."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear, self.idle = nnx.Linear(12, 3, rngs=rngs), nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x.reshape(x.shape[0], 12))


def test_a_check_names_parameters_that_no_gradient_reaches(pets: SmallData) -> None:
    (warning,) = replace(SMALL, model=HalfDead).check(pets).warnings

    assert warning == "a step changed nothing in idle/bias, idle/kernel: no gradient reaches them"


def test_frozen_parameters_are_not_called_dead(pets: SmallData) -> None:
    assert replace(SMALL, freeze="layers").check(pets).warnings == ()


def test_a_check_says_where_there_is_nothing_to_choose_the_best_epoch_by(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", rows={"train": 70})

    (warning,) = SMALL.check(data).warnings

    assert warning == "pets@1 has no rows in val; the best epoch goes by train/loss"


class Wild(HalfDead):
    """Says what is no number."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) * jnp.nan


def test_a_loss_that_is_not_finite_fails_a_check(pets: SmallData) -> None:
    with pytest.raises(TrainingFailed, match="the first batch are finite; the loss is nan"):
        replace(SMALL, model=Wild).check(pets)


def test_inputs_that_are_no_numbers_are_counted_where_they_spoil_the_loss(tmp_path: Path) -> None:
    vectors = np.ones((180, 6), np.float32)
    vectors[:, 2] = np.nan
    column = Column(name="vector", kind="embedding", dtype="float32", shape=(6,))
    data = small_kinds.write(Workspace(tmp_path / "ws"), "spoilt", (column,), {"vector": vectors})

    with pytest.raises(TrainingFailed, match="8 of 48 inputs of the first batch are not finite"):
        replace(SMALL, preprocess=[]).check(data)


def test_a_batch_of_one_class_is_said(tmp_path: Path) -> None:
    data = make_data(tmp_path / "ws", labels=("ant", "bee"), rows={"train": 8}, seed=45)
    assert len(np.unique(data.open().values("label"))) == 1

    warnings = replace(SMALL, model=mms.models.MLP(num_classes=2, widths=(4,))).check(data).warnings

    assert "all 8 rows of the first batch are of one class; is the split mixed?" in warnings


class Vast(HalfDead):
    """Sorts 64 TiB on its way: what JAX says of that is real."""

    def __call__(self, x: jax.Array) -> jax.Array:
        counted = jax.lax.broadcasted_iota(jnp.float32, (2**20, 2**24), 1)
        return super().__call__(x) + jnp.sort(jax.lax.stop_gradient(x).max() * counted)[0, 0]


def test_memory_that_runs_out_in_a_check_is_told_with_what_to_change(pets: SmallData) -> None:
    with pytest.raises(TrainingFailed) as failed:
        replace(SMALL, model=Vast).check(pets)

    told = failed.value.message
    assert re.match(r"a step fits into the memory of the devices; one with batch_size=8 did not: RESOURCE_EXHAUS", told)
    assert all(word in told for word in ("accumulate=2", "remat='dots'", "lower batch_size", "fsdp"))
    assert "checkpoints" not in told


class Counting(HalfDead):
    """Asks for the number of rows as a number."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) / len(x) * int(x.shape[0])


def test_a_model_that_cannot_become_a_version_fails_a_check(pets: SmallData) -> None:
    with pytest.raises(InvalidRequest, match="program is made for any number of rows; the model does not take that"):
        replace(SMALL, model=Counting).check(pets)
