"""What submits jobs or looks after them is killed: none is lost, none runs twice at once, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from submits_until_killed import RUNS

from mms_sdk.storage.owners import is_alive, pid_of
from mms_sdk.testing.engines import TREE, Jobs, runs
from torture import times

SUBMITS = Path(__file__).with_name("submits_until_killed.py")

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def kill_while_it_submits(
    jobs: Jobs, marks: Path, after: str, pause_s: float, *, count: int, seconds: float
) -> list[str]:
    """Kills what submits jobs so long after it said a word; returns the ids that it told."""
    command = [sys.executable, str(SUBMITS), str(jobs.workspace.root), str(marks), str(count), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = []
        while not told or told[-1] != after:
            told.append(process.stdout.readline().strip())
            assert process.poll() is None
        time.sleep(pause_s)
        process.kill()
        told += process.stdout.read().split("\n")[:-1]
    return [line for line in told if line not in ("ready", "all")]


def began(marks: Path, job: str) -> int:
    """How often it ran."""
    return len(list(marks.glob(f"began-{job}-*")))


def at_once(marks: Path) -> int:
    """How many ran while another attempt at them, or what it had left behind, did."""
    return len(list(marks.glob("twice-*")))


def submitted(jobs: Jobs) -> list[str]:
    return [job.id for job in jobs.workspace.catalog.jobs.list(limit=500)]


def test_a_job_whose_submitter_is_killed_is_not_there_or_runs_once(
    jobs: Jobs, marks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills, drawn, told = times(6, full=50), random.Random(0), set()
    for _ in range(kills):
        told |= {*kill_while_it_submits(jobs, marks, "ready", drawn.uniform(0, 0.3), count=3, seconds=0.05)}
        jobs.engine.reconcile()
    ids = submitted(jobs)
    states = [jobs.ended(job).state for job in ids]
    often = [began(marks, job) for job in ids]
    left = sum(len(jobs.left(job)) for job in ids)
    with capsys.disabled():
        print(
            f"\n{kills} kills of what submits jobs, {len(ids)} submitted by then: "
            f"{len(ids) - states.count('succeeded')} lost, {sum(count != 1 for count in often)} not run once, "
            f"{at_once(marks)} twice at once, {left} orphans"
        )
    assert told <= set(ids)
    assert set(states) == {"succeeded"}
    assert set(often) == {1}
    assert (at_once(marks), left) == (0, 0)


def test_a_job_whose_supervisor_is_killed_is_tried_again_and_never_runs_twice_at_once(
    jobs: Jobs, marks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills, drawn, ids, killed = times(5, full=20), random.Random(1), [], 0
    while killed < kills:
        job = jobs.submit(RUNS, marks, 0.2, wait_s=0)
        time.sleep(drawn.uniform(0, 0.35))
        ids.append(job)
        owner = jobs.attempts(job)[0].owner
        with contextlib.suppress(ProcessLookupError):
            if is_alive(owner):
                os.kill(pid_of(owner), signal.SIGKILL)
                killed += 1
        assert jobs.ended(job).ended
    states = [jobs.get(job).state for job in ids]
    again = sum(len(jobs.attempts(job)) - 1 for job in ids)
    left = sum(len(jobs.left(job)) for job in ids)
    with capsys.disabled():
        print(
            f"\n{killed} kills of supervisors: {len(ids) - states.count('succeeded')} of {len(ids)} jobs lost, {again} "
            f"attempts made again, {at_once(marks)} twice at once, {left} orphans"
        )
    assert set(states) == {"succeeded"}
    assert all(list(marks.glob(f"ended-{job}-*")) for job in ids)
    assert (at_once(marks), left) == (0, 0)


def test_nothing_is_left_of_a_tree_that_does_not_listen_when_it_is_cancelled(
    jobs: Jobs, marks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cancels, drawn, slowest_s = times(5, full=20), random.Random(2), 0.0
    left = other = processes = 0
    for number in range(cancels):
        folder = marks / str(number)
        folder.mkdir()
        job = jobs.submit(TREE, folder, "bare", grace_s=0.2)
        time.sleep(drawn.uniform(0, 0.8))
        asked = time.monotonic()
        jobs.engine.cancel(job)
        other += jobs.ended(job).state != "cancelled"
        slowest_s = max(slowest_s, time.monotonic() - asked)
        pids = [int(path.name.rpartition("-")[2]) for path in folder.glob("pid-*")]
        processes += len(pids)
        left += len({*jobs.left(job), *filter(runs, pids)})
    with capsys.disabled():
        print(
            f"\n{cancels} cancels of trees that ignore SIGTERM, {processes} processes: {other} ended otherwise, {left} "
            f"orphans; the slowest took {slowest_s:.1f} s with a grace of 0.2 s"
        )
    assert (other, left) == (0, 0)
    assert slowest_s < 10


def test_jobs_go_on_when_the_process_that_serves_them_is_killed(
    jobs: Jobs, marks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills, drawn, before = times(4, full=50), random.Random(3), set()
    states, attempts = [], []
    for _ in range(kills):
        kill_while_it_submits(jobs, marks, "all", drawn.uniform(0, 0.5), count=3, seconds=0.4)
        ids = set(submitted(jobs)) - before
        before |= ids
        assert len(ids) == 3
        states += [jobs.ended(job, alone=True).state for job in ids]  # with nobody who looks
        attempts += [len(jobs.attempts(job)) for job in ids]
    left = sum(len(jobs.left(job)) for job in before)
    twice = sum(count != 1 for count in attempts) + sum(began(marks, job) != 1 for job in before)
    with capsys.disabled():
        print(
            f"\n{kills} kills of a process that serves three running jobs: "
            f"{len(states) - states.count('succeeded')} of {len(states)} jobs lost, {twice} run twice, {left} orphans"
        )
    assert set(states) == {"succeeded"}
    assert (twice, at_once(marks), left) == (0, 0, 0)
