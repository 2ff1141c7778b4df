"""A run that begins with weights that are there: for any model, whole or in part, laid out as the program lies."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import linen
from safetensors.numpy import save_file
from small_pictures import SmallData, noisy
from test_trainer import SMALL, Result, arrays_of, fit

from mms_sdk.compute.models import ResNet, Weights
from mms_sdk.compute.training.lora import LoRA
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.errors import DataError, InvalidRequest, NotFound


class Small(linen.Module):
    """One layer, written with Linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(3)(x.reshape(x.shape[0], 12))


def pair_init(key: jax.Array, input_shape: tuple[int, ...]) -> dict[str, Any]:
    return {"kernel": jax.random.normal(key, (12, 3)), "bias": jax.numpy.zeros((1, 3))}


def pair_apply(params: Any, batch: jax.Array) -> jax.Array:
    return batch.reshape(len(batch), 12) @ params["kernel"] + params["bias"]


@pytest.fixture(scope="module")
def earlier(pets: SmallData) -> Result:
    """A short run of a model with batch statistics."""
    return fit(replace(SMALL, model=noisy, epochs=1), pets)


def begun(trainer: Trainer, data: SmallData) -> Any:
    """The state that a run of it begins with."""
    return trainer._for(data.open())._program(data.open()).init()


def saved(path: Path, **arrays: Any) -> Path:
    """A file of arrays by path, with `__` for `/`."""
    save_file({name.replace("__", "/"): np.asarray(value) for name, value in arrays.items()}, path)
    return path


FILE = {
    "layers__0__kernel": np.linspace(-1, 1, 12 * 16, dtype=np.float32).reshape(12, 16),
    "layers__0__bias": np.linspace(0, 1, 16, dtype=np.float32),
    "other": np.ones(3, np.float32),
}


def test_a_part_of_any_model_begins_with_a_file_and_the_rest_as_it_would(
    pets: SmallData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "some.safetensors", **FILE)
    trainer = replace(SMALL, init_from=Weights(path, match="layers/.*"))

    with caplog.at_level(logging.INFO, "mms.models"):
        state = begun(trainer, pets)

    plain = begun(SMALL, pets)
    np.testing.assert_array_equal(state.params["layers/0/kernel"], FILE["layers__0__kernel"])
    np.testing.assert_array_equal(state.params["layers/0/bias"], FILE["layers__0__bias"])
    np.testing.assert_array_equal(state.params["head/kernel"], plain.params["head/kernel"])
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert f"2 of 4 arrays begin with {path}" in record.getMessage()
    assert re.search("fresh: head/(bias, head/kernel|kernel, head/bias); unused: other$", record.getMessage())


def test_a_run_begins_with_the_checkpoint_of_an_earlier_one_and_its_running_averages(
    pets: SmallData, earlier: Result
) -> None:
    trainer = replace(SMALL, model=noisy, optimizer=optax.sgd(0.0), epochs=1, init_from=earlier.last.path)

    on = fit(trainer, pets)

    before, after = arrays_of(earlier.last), arrays_of(on.last)
    assert before["params"].keys() == after["params"].keys()
    for path, value in before["params"].items():
        np.testing.assert_array_equal(after["params"][path], value)
    state = begun(trainer, pets)
    assert state.rest.keys() == before["rest"].keys()
    for path, value in before["rest"].items():
        np.testing.assert_array_equal(state.rest[path], value)
    told = pets.workspace.catalog.jobs.get(on.job).spec["trainer"]["init_from"]
    assert told["name"] == earlier.last.path.name
    assert len(told["sha256"]) == 64


def test_a_run_begins_with_a_model_version(pets: SmallData, earlier: Result, tmp_path: Path) -> None:
    earlier.export(tmp_path / "version")

    state = begun(replace(SMALL, model=noisy, init_from=str(tmp_path / "version")), pets)

    for path, value in earlier.best.state.params.items():
        np.testing.assert_array_equal(state.params[path], value)


@pytest.mark.parametrize(
    ("model", "names"),
    [(Small(), ("Dense_0/kernel", "Dense_0/bias")), ((pair_init, pair_apply), ("kernel", "bias"))],
    ids=["Linen", "a pair"],
)
def test_models_of_every_kind_begin_with_a_file(pets: SmallData, tmp_path: Path, model: Any, names: Any) -> None:
    kernel = np.arange(36, dtype=np.float32).reshape(12, 3)
    path = saved(tmp_path / "w.safetensors", **{names[0]: kernel})

    state = begun(replace(SMALL, model=model, init_from=Weights(path, match=names[0])), pets)

    np.testing.assert_array_equal(state.params[names[0]], kernel)
    assert names[1] in state.params


def test_given_values_are_divided_as_the_program_divides_them(pets: SmallData, tmp_path: Path) -> None:
    path = saved(tmp_path / "some.safetensors", **FILE)
    trainer = replace(
        SMALL,
        mesh={"data": 2, "fsdp": 4},
        init_from=Weights(path, match="layers/.*"),
        ema=0.9,
        freeze="bias",
        lora=LoRA(rank=2, match="layers/.*kernel"),
    )

    state = begun(trainer, pets)

    kernel = state.params["layers/0/kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 4)}
    np.testing.assert_array_equal(kernel, FILE["layers__0__kernel"])
    added = [value for name, value in state.params.items() if name.startswith("lora/")]
    assert len(added) == 2
    assert any(not np.asarray(value).any() for value in added), "an adaptation begins by adding nothing"


@pytest.mark.parametrize(
    ("arrays", "options", "told"),
    [
        (FILE, {"match": "nothing.*"}, "match='nothing.*', fresh='' leaves none of"),
        (FILE, {"match": "head/.*"}, "holds other names: layers/0/bias"),
        (FILE, {}, "head/kernel needs head/kernel, which is not there"),
        (
            {**FILE, "layers__0__bias": np.ones(9, np.float32)},
            {"match": "layers/.*"},
            "layers/0/bias has shape (16,) here and (9,) in layers/0/bias",
        ),
        ({**FILE, "layers__0__bias": np.full(16, np.nan, np.float32)}, {"match": "layers/.*"}, "takes finite"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_recorded(
    pets: SmallData, tmp_path: Path, arrays: Any, options: dict[str, str], told: str
) -> None:
    path = saved(tmp_path / "some.safetensors", **arrays)
    jobs = len(pets.workspace.catalog.jobs.list(limit=1000))

    with pytest.raises((DataError, InvalidRequest), match=re.escape(told)):
        fit(replace(SMALL, init_from=Weights(path, **options)), pets)

    assert len(pets.workspace.catalog.jobs.list(limit=1000)) == jobs


def test_a_run_is_continued_with_the_same_weights_wherever_they_lie_by_now(pets: SmallData, tmp_path: Path) -> None:
    path = saved(tmp_path / "some.safetensors", **FILE)
    trainer = replace(SMALL, init_from=Weights(path, match="layers/.*"), epochs=1)
    first = fit(trainer, pets)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path = path.rename(moved / path.name)
    longer = replace(trainer, init_from=Weights(path, match="layers/.*"), epochs=2)

    assert len(fit(longer, pets, resume=first.job).history) == 2

    saved(path, **{**FILE, "layers__0__bias": np.zeros(16, np.float32)})
    with pytest.raises(InvalidRequest, match=r"changed are \{'init_from': "):
        fit(longer, pets, resume=first.job)


def test_weights_are_named_once_and_are_there(pets: SmallData, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"named once; got init_from='a\.safetensors', and 'b\.safetensors' of"):
        Trainer(model=ResNet(num_classes=3, depth=18, init_from="b.safetensors"), init_from="a.safetensors")
    with pytest.raises(NotFound, match="there is none at"):
        begun(replace(SMALL, init_from=tmp_path / "gone.pt"), pets)
    with pytest.raises(InvalidRequest, match=r"weights come from a path, .*got 3"):
        begun(replace(SMALL, init_from=3), pets)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"match of Weights is a regular expression"):
        Weights("a", match="(")
