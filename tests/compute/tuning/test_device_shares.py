"""What trials at once get of a machine, and which variables they see."""

from __future__ import annotations

from pathlib import Path

import pytest

from mms_sdk.compute.engines.machine import environment, gpus_here
from mms_sdk.compute.tuning.devices import share


def test_secrets_stay_behind() -> None:
    given = {
        "PATH": "/bin",
        "MMS_TOKEN": "secret",
        "GITHUB_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "JAX_PLATFORMS": "cpu",
        "LC_ALL": "C",
        "WANDB_API_KEY": "mine",
    }
    assert environment(given) == {"PATH": "/bin", "JAX_PLATFORMS": "cpu", "LC_ALL": "C"}
    assert "AWS_SECRET_ACCESS_KEY" in environment(given, stores=True)
    assert environment(given, more=["WANDB_API_KEY"])["WANDB_API_KEY"] == "mine"


@pytest.mark.parametrize(("gpus", "slots"), [(8, 3), (4, 4), (2, 2), (5, 2)])
def test_each_gpu_is_one_trials_own_where_there_are_enough(gpus: int, slots: int) -> None:
    names = [str(number) for number in range(gpus)]
    given = [share({}, slot, slots, gpus=names, cores=8)["CUDA_VISIBLE_DEVICES"].split(",") for slot in range(slots)]
    assert sorted(gpu for own in given for gpu in own) == names
    assert max(map(len, given)) - min(map(len, given)) <= 1


def test_fewer_gpus_than_trials_are_shared_with_their_memory() -> None:
    given = [share({}, slot, 4, gpus=["0", "1"], cores=8) for slot in range(4)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in given] == ["0", "1", "0", "1"]
    assert {each["XLA_PYTHON_CLIENT_MEM_FRACTION"] for each in given} == {"0.450"}


def test_threads_are_divided_unless_somebody_said_how_many() -> None:
    assert share({}, 0, 1, gpus=["0"], cores=8) == {}
    assert share({}, 1, 3, gpus=[], cores=8) == {"NPROC": "2", "OMP_NUM_THREADS": "2"}
    assert share({}, 1, 3, gpus=[], cores=1) == {"NPROC": "1", "OMP_NUM_THREADS": "1"}
    assert share({"OMP_NUM_THREADS": "5"}, 0, 2, gpus=[], cores=8) == {"NPROC": "4"}


def test_gpus_are_those_that_the_process_may_use(tmp_path: Path) -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "2, 5"}) == ["2", "5"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here({}, tmp_path) == ["2", "10"]
