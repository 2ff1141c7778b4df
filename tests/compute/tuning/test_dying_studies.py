"""A study that is killed, again and again: no finished trial is run again, none is lost, nothing is left running."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_asking import spec
from tunes_until_killed import SPACE

import mms_sdk as mms
from mms_sdk.compute.tuning.asking import Asker
from mms_sdk.storage.workspace import Workspace

TUNES = Path(__file__).with_name("tunes_until_killed.py")


def run_for(folder: Path, seconds: float | None, trials: int) -> int:
    """Runs the study and kills it after some seconds; returns the exit code."""
    words = [sys.executable, str(TUNES), str(folder / "ws"), str(folder), str(trials)]
    environment = {**os.environ, "MARKS": str(folder / "marks")}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            _, told = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, told = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), told.decode()
    return process.returncode


def complete(folder: Path) -> dict[int, str]:
    """The job of each trial that the catalog has as complete."""
    workspace = Workspace(folder / "ws")
    rows = workspace.catalog.jobs.list(limit=500, kind="trial")
    workspace.close()
    return {row.spec["number"]: row.id for row in rows if row.state == "succeeded"}


def left_running(folder: Path) -> list[int]:
    """Trials that still run a little later."""
    pids = {int(path.name.split("-")[2]) for path in (folder / "marks").glob("began-*")}
    until = time.monotonic() + 5
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize(
    ("seed", "kills", "trials"),
    [(0, 3, 6), *(pytest.param(seed, 12, 20, marks=[pytest.mark.slow, pytest.mark.torture]) for seed in (1, 2, 3))],
)
@pytest.mark.timeout(300)
def test_a_study_that_is_killed_goes_on_where_it_was(tmp_path: Path, seed: int, kills: int, trials: int) -> None:
    drawn = random.Random(seed)
    (tmp_path / "marks").mkdir()
    known: dict[int, str] = {}
    for _ in range(kills):
        if run_for(tmp_path, drawn.uniform(0.2, 2.5), trials) == 0:
            break
        assert left_running(tmp_path) == []
        now = complete(tmp_path)
        assert now.items() >= known.items()
        known = now
    else:
        assert run_for(tmp_path, None, trials) == 0

    done = complete(tmp_path)
    assert sorted(done) == list(range(trials))
    assert done.items() >= known.items()
    with mms.connect(workspace=tmp_path / "ws") as ws:
        (study,) = ws.studies.list()
        assert (study.state, study.record.result["complete"]) == ("succeeded", trials)
        asker = Asker(spec(space=SPACE, sampler="random"))  # one that nobody killed
        assert [(trial.number, trial.params) for trial in study.trials] == [asker.ask() for _ in range(trials)]
        assert all(trial.value == trial.params["x"] for trial in study.trials)
        for trial in study.trials:  # as often as it says, and only the last came to its end, or was not heard
            began = list((tmp_path / "marks").glob(f"began-{trial.number}-*"))
            assert len(began) <= trial.attempts
