"""A SIGTERM at any moment: a checkpoint of where the run stands is on the disk, and it goes on bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_pictures import SmallData, make_data
from test_trainer import arrays_of, assert_equal_to_the_bit, checkpoints_of
from trains_until_terminated import DWELL, trainer

from mms_sdk.compute.training.trainer import Result
from torture import times

DRIVER = Path(__file__).with_name("trains_until_terminated.py")
ROUNDS = times(8, full=20)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What comes out if nobody ends it."""
    data = make_data(tmp_path_factory.mktemp("unbroken") / "workspace")
    return trainer().fit(data, progress="none")


@contextlib.contextmanager
def started(data: SmallData, dwell: str, resume: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that trains; `JAX_PLATFORMS` and the eight devices come with the environment."""
    command = [sys.executable, str(DRIVER), str(data.workspace.root), dwell, resume]
    path = os.pathsep.join([str(DRIVER.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"{word}\n"


def newest_job(data: SmallData) -> str:
    """The newest with a checkpoint, which one killed at its very beginning has not; empty if there is none."""
    return next((job.id for job in data.workspace.catalog.jobs.list(limit=100) if checkpoints_of(data, job.id)), "")


def newest_step(data: SmallData) -> int:
    """Of the newest good checkpoint of that job."""
    checkpoints = checkpoints_of(data, newest_job(data))
    checkpoints[-1].verify()
    return int(checkpoints[-1].step)


def assert_goes_on_as_if_nothing_had_been(data: SmallData, unbroken: Result) -> None:
    on = trainer().fit(data, resume=newest_job(data), progress="none")
    assert on.history == unbroken.history
    assert_equal_to_the_bit(arrays_of(on.last), arrays_of(unbroken.last))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("dwell", "steps"), [("record", {0}), ("step", {5, 6}), ("evaluation", {18}), ("compiler", {0}), ("data", {11})]
)
def test_a_run_that_is_terminated_has_saved_where_it_stands_and_goes_on_bit_for_bit(
    tmp_path: Path, unbroken: Result, dwell: str, steps: set[int]
) -> None:
    data = make_data(tmp_path / "workspace")
    with started(data, dwell) as process:
        said(process, "here")
        began = time.monotonic()

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30  # what it waited for would have taken a minute
    job = data.workspace.catalog.jobs.list(limit=1)[0]
    assert (job.state, (job.error or {})["title"]) == ("cancelled", "terminated")
    assert newest_step(data) in steps
    assert_goes_on_as_if_nothing_had_been(data, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_that_comes_when_all_is_done_ends_the_process_and_not_the_run(tmp_path: Path) -> None:
    data = make_data(tmp_path / "workspace")
    with started(data, "end") as process:
        said(process, "here")

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == -signal.SIGTERM  # as if nobody had listened
    assert data.workspace.catalog.jobs.list(limit=1)[0].state == "succeeded"
    assert newest_step(data) == 27


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_a_run_that_is_terminated_at_any_moment_has_saved_where_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, saved = random.Random(0), 0
    for number in range(ROUNDS):
        dwell = sorted(DWELL.keys() - {"end"})[number % (len(DWELL) - 1)]
        data = make_data(tmp_path / str(number))
        with started(data, dwell) as process:
            said(process, "here")
            time.sleep(drawn.uniform(0, 0.3))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        newest_step(data)
        saved += 1
    with capsys.disabled():
        print(f"\n{ROUNDS} runs terminated in a step, an evaluation, the compiler, or waiting for data: {saved} saved")


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_time_after_time_ends_as_an_unbroken_one_bit_for_bit(
    tmp_path: Path, unbroken: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, killed = random.Random(1), 0
    data = make_data(tmp_path / "workspace")
    while killed < ROUNDS:
        job = newest_job(data)
        fresh = not job or newest_step(data) == 27
        with started(data, "step", "" if fresh else job) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it has come as far as to train
            time.sleep(drawn.uniform(0, 2.5))
            process.kill()
            process.wait(60)
        killed += process.returncode == -signal.SIGKILL
    assert_goes_on_as_if_nothing_had_been(data, unbroken)
    with capsys.disabled():
        print(f"\n{killed} kills at any moment of a run of 27 steps: it ended bit for bit as an unbroken one")
