"""Two processes that train as one: real ones under `jax.distributed`, with two CPU devices each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pictures import make_data

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.checkpoints import CheckpointFolder
from mms_sdk.storage.heartbeat import beats
from mms_sdk.storage.metric_log import read
from mms_sdk.storage.workspace import Workspace

DRIVER = Path(__file__).with_name("trains_together.py")
EPOCHS, STEPS = 3, 15
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Run:
    """What one run of all its processes left."""

    into: Path
    codes: list[int]
    said: list[str]

    def told(self, index: int = 0) -> dict[str, Any]:
        assert self.codes == [0] * len(self.codes), "\n".join(self.said)
        loaded: dict[str, Any] = json.loads((self.into / f"result-{index}.json").read_text())
        return loaded

    def state(self, index: int) -> list[Any]:
        held = np.load(self.into / f"result-{index}.npz")
        return [held[name] for name in held.files]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(
    workspace: Path,
    into: Path,
    *,
    count: int = 2,
    deaths: dict[int, int] | None = None,
    terminated: dict[int, int] | None = None,
    **more: Any,
) -> Run:
    """Runs all processes to their ends, of which some are killed, or terminated, by themselves after a step."""
    into.mkdir()
    coordinator = f"127.0.0.1:{free_port()}"
    options = {"mesh": {"data": 2, "fsdp": 2}, "epochs": EPOCHS, "every": "3steps", **more}
    asked = {"workspace": str(workspace), "count": count, "coordinator": coordinator, "into": str(into), **options}
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, sys.path[1:]), str(DRIVER.parent)])
    running = []
    for index in range(count):
        told = {**asked, "index": index, "die_at": (deaths or {}).get(index)}
        told["terminate_at"] = (terminated or {}).get(index)
        log = (into / f"{index}.log").open("w")
        command = [sys.executable, "-W", "error", str(DRIVER), json.dumps(told)]
        running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        log.close()
    try:
        codes = [process.wait(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return Run(into, codes, [(into / f"{index}.log").read_text() for index in range(count)])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A workspace, and two processes that trained in it to the end."""
    root = tmp_path_factory.mktemp("unbroken")
    make_data(root / "ws").workspace.close()
    return root / "ws", together(root / "ws", root / "out")


def test_two_processes_train_as_one_with_the_same_devices(unbroken: tuple[Path, Run], tmp_path: Path) -> None:
    _, two = unbroken
    make_data(tmp_path / "ws").workspace.close()

    one = together(tmp_path / "ws", tmp_path / "out", count=1)

    for mine, theirs in zip(one.told()["history"], two.told()["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert two.told(0) == two.told(1)
    assert "there are 2 here; in one process, fit(data, resume=" in two.told()["export"]
    assert one.told()["test"] == pytest.approx(two.told()["test"], rel=1e-5)


def test_the_first_process_alone_writes_the_catalog_the_metric_log_and_the_manifests(
    unbroken: tuple[Path, Run],
) -> None:
    root, run = unbroken
    workspace = Workspace(root)

    (job,) = workspace.catalog.jobs.list()

    assert (job.id, job.state) == (run.told()["job"], "succeeded")
    lines, _ = read(workspace.job_folder(job.id) / "metrics.jsonl")
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    kept = CheckpointFolder(workspace.job_folder(job.id) / "checkpoints", keep=3)
    for checkpoint in kept.all():
        checkpoint.verify()
    assert kept.all()[-1].step == STEPS
    assert [(each.rank, each.step) for each in beats(workspace.job_folder(job.id))] == [(0, STEPS), (1, STEPS)]
    workspace.close()


def test_one_process_takes_up_the_run_of_two_and_exports_it(unbroken: tuple[Path, Run], tmp_path: Path) -> None:
    root, two = unbroken
    shutil.copytree(root, tmp_path / "ws")

    one = together(tmp_path / "ws", tmp_path / "out", count=1, resume=two.told()["job"])

    assert (one.told()["steps"], one.told()["export"]) == (STEPS, "exported")
    assert one.told()["history"] == two.told()["history"]


@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_both_go_on_bit_for_bit(
    unbroken: tuple[Path, Run], tmp_path: Path, dies: int
) -> None:
    make_data(tmp_path / "ws").workspace.close()

    broken = together(tmp_path / "ws", tmp_path / "broken", deaths={dies: 7})

    assert broken.codes[dies] == -9
    assert broken.codes[1 - dies] not in (0, None)  # with an error, and well before the limit of `together`
    workspace = Workspace(tmp_path / "ws")
    (job,) = workspace.catalog.jobs.list()
    workspace.close()
    resumed = together(tmp_path / "ws", tmp_path / "resumed", resume=job.id)
    assert resumed.told()["steps"] == STEPS
    assert "step 1\n" not in resumed.said[0]
    assert "step 7\n" in resumed.said[0]
    for index in range(2):
        for mine, whole in zip(resumed.state(index), unbroken[1].state(index), strict=True):
            np.testing.assert_array_equal(mine, whole)
    assert resumed.told()["history"] == unbroken[1].told()["history"]


@pytest.mark.parametrize(("asked", "step", "saved"), [(0, 1, 5), (1, 6, 8)])
def test_when_one_process_is_terminated_all_end_after_the_same_step_and_go_on_bit_for_bit(
    unbroken: tuple[Path, Run], tmp_path: Path, asked: int, step: int, saved: int
) -> None:
    make_data(tmp_path / "ws").workspace.close()

    ended = together(tmp_path / "ws", tmp_path / "ended", terminated={asked: step}, every="epoch")

    assert ended.codes == [128 + signal.SIGTERM] * 2, "\n".join(ended.said)
    workspace = Workspace(tmp_path / "ws")
    (job,) = workspace.catalog.jobs.list()
    kept = CheckpointFolder(workspace.job_folder(job.id) / "checkpoints", keep=3).all()
    workspace.close()
    assert (job.state, (job.error or {})["title"]) == ("cancelled", "terminated")
    assert kept[-1].step == saved  # the next at which they ask one another: every eighth, and the end of an epoch
    kept[-1].verify()
    resumed = together(tmp_path / "ws", tmp_path / "resumed", resume=job.id)
    for index in range(2):
        for mine, whole in zip(resumed.state(index), unbroken[1].state(index), strict=True):
            np.testing.assert_array_equal(mine, whole)


def test_parameters_over_processes_with_the_whole_batch_in_each(tmp_path: Path, unbroken: tuple[Path, Run]) -> None:
    make_data(tmp_path / "ws").workspace.close()

    run = together(tmp_path / "ws", tmp_path / "out", mesh={"tensor": 2, "data": 2}, every="1s")

    # Both processes bring all rows of a batch, because they hold the same ones.
    for mine, theirs in zip(run.told()["history"], unbroken[1].told()["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 2, "index": 2}, ["numbered from 0 to count-1", "index=2"]),
        ({"count": 0, "index": 0}, ["count=0"]),
        ({"coordinator": "localhost", "count": 2, "index": 0}, ["address and a port", "'localhost'"]),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        mms.sharding.join_processes(**{"coordinator": "127.0.0.1:1", **options})

    assert all(word in refused.value.message for word in words), refused.value.message


def test_processes_join_before_jax_is_used() -> None:
    import jax

    jax.devices()
    with pytest.raises(InvalidRequest, match="before anything else of JAX"):
        mms.sharding.join_processes("127.0.0.1:1", count=1, index=0)
