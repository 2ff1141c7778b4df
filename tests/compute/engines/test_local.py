from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mms_sdk.compute.engines.folder import CANCEL, CLAIM, ENDED, GIVEN, WORKER, attempt_folder, cookie, create, read
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.errors import MmsError
from mms_sdk.schema.job import Attempt, Ended, JobSpec, Resources
from mms_sdk.storage.ids import now
from mms_sdk.storage.owners import is_alive, owner_of, pid_of
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import STAYS, TREE, EngineConformance, Jobs, runs, until

ELSEWHERE = "1:1@00000000-0000-0000-0000-000000000000"  # the first process, before this machine was started anew
ALL = {"cpus": 1_000, "gpus": [], "memory": 0}


class TestLocal(EngineConformance):
    """On this machine."""

    @pytest.fixture
    def engine(self, workspace: Workspace) -> LocalEngine:
        return LocalEngine(workspace)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def folder_of(jobs: Jobs, job: str, number: int = 1) -> Path:
    return attempt_folder(jobs.workspace.job_folder(job), number)


def supervisor_of(jobs: Jobs, job: str) -> int:
    """The process that looks after the newest attempt at a job, once it does."""
    claim = until(lambda: read(folder_of(jobs, job, len(jobs.attempts(job))) / CLAIM), "a supervisor")
    return pid_of(claim["owner"])


def fill(disk: Path) -> None:
    """Leaves no room on a disk."""
    with contextlib.suppress(OSError), open(disk / "fills", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def kill_supervisor_of(jobs: Jobs, job: str) -> None:
    pid = supervisor_of(jobs, job)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not runs(pid), "its death")


def reasons(attempts: list[Attempt]) -> list[str]:
    return [attempt.ended.reason if attempt.ended else "" for attempt in attempts]


def test_when_a_supervisor_is_killed_its_worker_dies_and_what_is_left_is_ended(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(TREE, marks, wait_s=0.2)
    until(lambda: len(list(marks.glob("pid-*"))) == 3, "the tree")
    pids = jobs.left(job)

    kill_supervisor_of(jobs, job)

    (worker,) = [int(path.name.rpartition("-")[2]) for path in marks.glob("pid-worker-*")]
    until(lambda: not runs(worker), "the worker's end", within_s=2)
    LocalEngine(jobs.workspace).reconcile()
    assert [pid for pid in pids if runs(pid)] == []
    assert reasons(jobs.attempts(job))[0] == "lost"
    until(lambda: len(jobs.attempts(job)) == 2, "another attempt")  # with nobody who looks at it
    jobs.engine.cancel(job)
    assert jobs.ended(job).state == "cancelled"


def test_when_a_supervisor_is_killed_what_was_given_other_variables_is_ended_too(jobs: Jobs, marks: Path) -> None:
    """A tool that the script runs, for one."""
    text = (
        "import subprocess, sys\nfrom pathlib import Path\n"
        "tool = subprocess.Popen(['sleep', '60'], env={}, stdout=subprocess.DEVNULL)\n"
        f"Path(sys.argv[2], f'pid-{{tool.pid}}').touch()\n{STAYS}"
    )
    job = jobs.submit(text, "a", marks, times=0)
    until((marks / "a").exists, "its beginning")
    (tool,) = [int(path.name.removeprefix("pid-")) for path in marks.glob("pid-*")]
    assert runs(tool)

    kill_supervisor_of(jobs, job)

    assert jobs.ended(job).state == "lost"
    assert not runs(tool)


def test_a_worker_that_stands_still_does_not_wake_up_beside_the_next_attempt(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    until((marks / "a").exists, "its beginning")
    (worker,) = jobs.left(job)
    os.kill(worker, signal.SIGSTOP)
    kill_supervisor_of(jobs, job)

    jobs.engine.reconcile()

    assert not runs(worker)
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"
    assert reasons(jobs.attempts(job)) == ["lost", "succeeded"]


@pytest.mark.parametrize("at", ["its work", "its end"])
def test_behind_one_that_is_lost_the_next_is_started(jobs: Jobs, marks: Path, at: str) -> None:
    """By whoever finds out, and without anybody who is there for longer."""
    job = jobs.submit(STAYS, "a", marks, times=0)
    behind = jobs.submit("print('well')")
    until((marks / "a").exists, "its beginning")
    if at == "its end":  # killed once it has written that down
        told = Ended(reason="succeeded", at=now())
        create(folder_of(jobs, job) / ENDED, told.model_dump(mode="json"))
    kill_supervisor_of(jobs, job)
    assert jobs.get(behind).state == "queued"

    jobs.engine.reconcile()

    assert jobs.get(job).state == ("lost" if at == "its work" else "succeeded")
    assert jobs.ended(behind, alone=True).state == "succeeded"


def test_one_that_is_lost_too_often_ends_as_lost(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks, times=0)
    kill_supervisor_of(jobs, job)

    record = jobs.ended(job)

    assert (record.state, record.error and record.error["title"]) == ("lost", "lost")
    assert len(jobs.attempts(job)) == 1


def test_a_supervisor_that_comes_too_late_runs_nothing(jobs: Jobs, marks: Path, tmp_path: Path) -> None:
    """The first time, this Python hands on to a process that begins only when it is told to."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nif mkdir {marks}/once 2>/dev/null; then\n"
        f'  (until [ -e {marks}/late ]; do sleep 0.02; done; {sys.executable} "$@"; touch {marks}/over) &\n'
        f'  exit\nfi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    job = jobs.submit(STAYS, "a", marks, python=str(python), wait_s=0)
    until(lambda: not is_alive(jobs.attempts(job)[0].owner), "the end of who hands on")
    jobs.engine.reconcile()
    until((marks / "a").exists, "the second attempt")

    (marks / "late").touch()
    until((marks / "over").exists, "the late one")

    assert reasons(jobs.attempts(job)) == ["lost", ""]
    assert not (folder_of(jobs, job) / ENDED).exists()
    assert len(jobs.left(job)) == 1
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"


@pytest.mark.parametrize("where", ["LocalEngine._start", "attempt.lay_out", "LocalEngine._supervised"])
def test_a_job_whose_starter_is_killed_is_started_by_the_next_who_comes(jobs: Jobs, where: str) -> None:
    job = jobs.put("print('once')", wait_s=0)
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mms_sdk.compute.engines import attempt\n"
        "from mms_sdk.compute.engines.local import LocalEngine\nfrom mms_sdk.storage.workspace import Workspace\n"
        f"{where} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "LocalEngine(Workspace(Path(sys.argv[1]))).start_waiting()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(jobs.workspace.root)], capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert jobs.get(job).state == "starting"

    jobs.engine.reconcile()

    assert jobs.ended(job, alone=True).state == "succeeded"
    assert reasons(jobs.attempts(job)) == ["lost", "succeeded"]
    assert jobs.log(job, 2) == b"once\n"


def test_a_job_whose_starter_is_killed_once_it_is_started_runs_once(jobs: Jobs, marks: Path) -> None:
    job = jobs.put(STAYS, "a", marks)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom mms_sdk.storage.attempts import Attempts\n"
        "from mms_sdk.compute.engines.local import LocalEngine\nfrom mms_sdk.storage.workspace import Workspace\n"
        "Attempts.runs = lambda *given: os.kill(os.getpid(), 9)\n"
        "LocalEngine(Workspace(Path(sys.argv[1]))).start_waiting()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(jobs.workspace.root)], check=False)
    until((marks / "a").exists, "its beginning")
    assert jobs.get(job).state == "starting"

    jobs.engine.reconcile()

    assert jobs.get(job).state == "running"
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"
    assert len(jobs.attempts(job)) == 1


def test_what_ran_when_the_machine_was_started_anew_is_lost_and_tried_again(jobs: Jobs) -> None:
    """Though a process of that number runs now."""
    job = jobs.put("print('well')", wait_s=0)
    taken = jobs.workspace.catalog.attempts.take(engine="local", owner=ELSEWHERE, fits=lambda *_: ALL)
    assert taken is not None
    folder = folder_of(jobs, job)
    folder.mkdir(parents=True)
    create(folder / CLAIM, {"owner": ELSEWHERE})
    jobs.workspace.catalog.attempts.runs(taken[1], ELSEWHERE)

    jobs.engine.reconcile()

    assert jobs.ended(job, alone=True).state == "succeeded"
    assert reasons(jobs.attempts(job)) == ["lost", "succeeded"]


def test_what_was_not_on_the_disk_when_the_machine_went_down_keeps_nobody_waiting(jobs: Jobs) -> None:
    """Files have their names then, and nothing in them."""
    job = jobs.put("print('well')", wait_s=0)
    jobs.workspace.catalog.attempts.take(engine="local", owner=ELSEWHERE, fits=lambda *_: ALL)
    folder_of(jobs, job).mkdir(parents=True)
    for name in (GIVEN, CLAIM, WORKER):
        (folder_of(jobs, job) / name).touch()

    jobs.engine.reconcile()

    assert jobs.ended(job, alone=True).state == "succeeded"
    assert reasons(jobs.attempts(job)) == ["lost", "succeeded"]


def test_a_job_is_cancelled_while_somebody_is_about_to_start_it(jobs: Jobs) -> None:
    job = jobs.put("print('never')")
    owner = owner_of(os.getpid())
    taken = jobs.workspace.catalog.attempts.take(engine="local", owner=owner, fits=lambda *_: ALL)
    assert taken is not None

    assert jobs.engine.cancel(job).state == "starting"

    LocalEngine(jobs.workspace)._start(*taken)
    record = jobs.ended(job)
    assert (record.state, len(jobs.attempts(job))) == ("cancelled", 1)


def test_what_is_cancelled_as_it_is_killed_is_not_tried_again(jobs: Jobs, marks: Path) -> None:
    """The supervisor has not seen it, and whoever writes the end down has."""
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    until((marks / "a").exists, "its beginning")
    supervisor = supervisor_of(jobs, job)
    os.kill(supervisor, signal.SIGSTOP)
    create(folder_of(jobs, job) / CANCEL, {})
    os.kill(supervisor, signal.SIGKILL)

    assert jobs.ended(job).state == "cancelled"
    assert len(jobs.attempts(job)) == 1


def test_what_is_cancelled_while_it_is_put_back_is_not_tried_again(
    jobs: Jobs, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=30)
    kill_supervisor_of(jobs, job)
    attempts, other = jobs.workspace.catalog.attempts, LocalEngine(jobs.workspace)
    end = type(attempts).end

    def cancelled_in_between(*given: Any, **more: Any) -> object:
        monkeypatch.undo()
        create(folder_of(jobs, job) / CANCEL, {})  # as who cancels does, and sees that it runs
        return end(*given, **more)

    monkeypatch.setattr(type(attempts), "end", cancelled_in_between)
    other.reconcile()

    assert jobs.get(job).state == "cancelled"


def test_two_processes_that_look_at_once_end_each_attempt_once(jobs: Jobs, marks: Path) -> None:
    cpus = {"cpus": 1}
    ids = [
        jobs.submit(STAYS, name, marks, wait_s=30, **cpus) for name in "ab"[: LocalEngine(jobs.workspace).room().cpus]
    ]
    for job in ids:
        kill_supervisor_of(jobs, job)
    command = [sys.executable, "-m", "mms_sdk.compute.engines.settle"]
    env = {**os.environ, **jobs.workspace.variables()}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]

    told = [process.communicate(timeout=30) for process in both]

    assert [process.returncode for process in both] == [0, 0], told
    for job in ids:
        assert reasons(jobs.attempts(job)) == ["lost"]
        assert jobs.get(job).state == "queued"
    assert all(0 < float(out) <= 30 for out, _ in told)


def test_a_process_that_started_jobs_keeps_none_of_the_dead(jobs: Jobs) -> None:
    owners = []
    for _ in range(3):
        job = jobs.submit("pass")
        owners.append(pid_of(jobs.attempts(job)[0].owner))
        jobs.ended(job)
    until(lambda: not any(map(runs, owners)), "the end of supervisors")

    jobs.engine.reconcile()

    assert {child.pid for child in psutil.Process().children()}.isdisjoint(owners)


def test_a_worker_hears_signals_though_the_thread_that_submitted_it_does_not(jobs: Jobs, marks: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        job = jobs.submit("import signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, []))")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert jobs.ended(job).state == "succeeded"
    assert jobs.log(job) == b"set()\n"


def test_a_supervisor_that_is_asked_to_end_ends_its_job_and_says_so(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    until((marks / "a").exists, "its beginning")

    os.kill(supervisor_of(jobs, job), signal.SIGTERM)

    until(lambda: len(jobs.attempts(job)) == 2, "another attempt")
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"
    assert reasons(jobs.attempts(job)) == ["infra", "succeeded"]


def test_what_ends_on_a_full_disk_is_recorded_once_there_is_room_and_not_run_again(
    small_disk: Path, marks: Path
) -> None:
    workspace = Workspace(small_disk / "workspace")
    jobs = Jobs(workspace, LocalEngine(workspace))
    text = (
        "import sys\nfrom pathlib import Path\n(Path(sys.argv[1]) / 'began').touch()\n"
        "with open('../fills', 'wb', buffering=0) as file:\n"
        "    try:\n        while file.write(bytes(4096)): pass\n    except OSError: pass\n"
    )
    job = jobs.submit(text, marks)
    fills = folder_of(jobs, job) / "fills"
    until(lambda: (marks / "began").exists() and not jobs.left(job), "the end of the worker")
    time.sleep(0.2)
    assert not (folder_of(jobs, job) / ENDED).exists()

    fills.unlink()

    record = jobs.ended(job)
    assert (record.state, len(jobs.attempts(job))) == ("succeeded", 1)
    until(lambda: not runs(pid_of(jobs.attempts(job)[0].owner)), "the supervisor's end")
    workspace.close()


def test_on_a_full_disk_nothing_is_half_submitted(small_disk: Path) -> None:
    workspace = Workspace(small_disk / "workspace")
    jobs = Jobs(workspace, LocalEngine(workspace))
    assert jobs.ended(jobs.submit("print('well')")).state == "succeeded"
    fill(small_disk)

    with pytest.raises(MmsError, match=r"no space|full"):
        jobs.submit(f"print('more')\n# {os.urandom(20_000).hex()}")
    assert workspace.catalog.jobs.counts() == {"succeeded": 1}

    (small_disk / "fills").unlink()
    assert jobs.ended(jobs.submit("print('more')")).state == "succeeded"
    workspace.close()


def test_what_waits_while_the_disk_is_full_runs_once_there_is_room(small_disk: Path) -> None:
    workspace = Workspace(small_disk / "workspace")
    jobs = Jobs(workspace, LocalEngine(workspace))
    job = jobs.put("print('well')", wait_s=0.1)
    fill(small_disk)
    for _ in range(3):
        with contextlib.suppress(MmsError):  # the catalog cannot say that it starts
            jobs.engine.start_waiting()
        with contextlib.suppress(MmsError):
            jobs.engine.reconcile()
    (small_disk / "fills").unlink()

    assert jobs.ended(job).state == "succeeded"
    assert jobs.log(job, len(jobs.attempts(job))) == b"well\n"
    workspace.close()


def test_processes_that_become_more_and_more_are_ended_when_it_is_cancelled(jobs: Jobs, marks: Path) -> None:
    """Of a bomb with a bound, for the sake of who runs this test: 64 processes that start others all the time."""
    text = (
        "import os, sys, time\nfrom pathlib import Path\nfor _ in range(6):\n    os.fork()\n"
        "(Path(sys.argv[1]) / str(os.getpid())).touch()\nuntil = time.monotonic() + 60\n"
        "while time.monotonic() < until:\n"
        "    if os.fork() == 0:\n        time.sleep(0.05)\n        os._exit(0)\n    os.wait()\n"
    )
    job = jobs.submit(text, marks, grace_s=0.2)
    until(lambda: len(list(marks.iterdir())) == 64, "64 processes")

    began = time.monotonic()
    jobs.engine.cancel(job)

    assert jobs.ended(job).state == "cancelled"
    assert time.monotonic() - began < 10
    assert jobs.left(job) == []
    assert jobs.ended(jobs.submit("print('well')")).state == "succeeded"


def test_an_end_that_cannot_be_read_keeps_nobody_waiting(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks, times=0)
    until((marks / "a").exists, "its beginning")
    (folder_of(jobs, job) / ENDED).write_text('{"reason": "no such')

    record = jobs.ended(job)

    assert (record.state, "cannot be read" in str(record.error)) == ("lost", True)
    (marks / "a-go").touch()


def test_a_supervisor_ends_when_its_workspace_is_gone(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks)
    until((marks / "a").exists, "its beginning")
    supervisor = supervisor_of(jobs, job)
    root = jobs.workspace.root

    root.rename(root.with_name("gone"))
    (marks / "a-go").touch()

    until(lambda: not runs(supervisor), "the supervisor's end")
    root.with_name("gone").rename(root)


def test_a_job_sees_cores_and_variables_that_are_its_own(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    text = (
        "import os\nprint(*(os.environ.get(name) for name in "
        "('MY_SECRET', 'CUDA_VISIBLE_DEVICES', 'NPROC', 'MMS_JOB', 'MMS_ATTEMPT')))"
    )
    assert jobs.engine.room().gpus == ("3", "5")
    job = jobs.submit(text, cpus=1, gpus=1)
    assert jobs.ended(job).state == "succeeded"
    nproc = "1" if jobs.engine.room().cpus > 1 else "None"
    assert jobs.log(job).decode() == f"None 3 {nproc} {job} {cookie(job, 1)}\n"


def test_gpus_are_given_to_one_job_at_a_time(jobs: Jobs, marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    if jobs.engine.room().cpus < 2:
        pytest.skip("needs two cores, to run two jobs at once")
    ids = [jobs.submit(STAYS, name, marks, cpus=1, gpus=1) for name in "abc"[:2]]
    waits = jobs.submit(STAYS, "c", marks, cpus=1, gpus=2)
    assert sorted(jobs.attempts(job)[0].given["gpus"][0] for job in ids) == ["3", "5"]
    assert jobs.get(waits).state == "queued"
    for name in "abc":
        (marks / f"{name}-go").touch()
    assert jobs.ended(waits).state == "succeeded"
    assert jobs.attempts(waits)[0].given["gpus"] == ["3", "5"]


def test_what_this_machine_has_less_of_than_it_had_runs_alone(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalEngine, "check", lambda *_: None)
    job = jobs.submit("pass", cpus=10_000)
    assert jobs.ended(job).state == "succeeded"


def test_a_spec_may_ask_for_all_there_is(jobs: Jobs) -> None:
    room = jobs.engine.room()
    spec = JobSpec(bundle="0" * 64, entrypoint="a", resources=Resources(cpus=room.cpus, memory=room.memory))
    jobs.engine.check(spec)
