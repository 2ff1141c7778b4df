"""Jobs: how long submitting takes, how soon the code runs, and what looking after a job costs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil

import mms_sdk as mms
from benchmarks.table import Row, in_turns
from mms_sdk.compute.engines.folder import CLAIM, attempt_folder, read
from mms_sdk.storage.owners import pid_of

SUBMIT_LIMIT_S = 0.025
STARTED_WITHIN_S = 0.5  # beyond what the same script takes by itself
SUPERVISOR_LIMIT_MB = 25
PAUSE_S = 1.0  # in which the end of the job before is written down, which takes a process of its own
_STAMP = "import sys, time; open(sys.argv[1], 'w').write(str(time.time()))\n"


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    script = folder / "stamp.py"
    script.write_text(_STAMP)
    workspace = mms.connect(workspace=folder / "workspace")
    try:
        return [
            *_first_line(workspace, script, folder, rounds=5 if quick else 25),
            _waiting(workspace, script, folder, count=50 if quick else 1000),
            _supervisor(workspace, folder),
        ]
    finally:
        workspace.close()


def _first_line(ws: mms.WorkspaceClient, script: Path, folder: Path, *, rounds: int) -> Iterator[Row]:
    stamp = folder / "stamp"
    submitted: list[float] = []

    def job() -> float:
        time.sleep(PAUSE_S)
        began = time.time()
        found = ws.jobs.submit(script, args=[str(stamp)])
        submitted.append(time.time() - began)
        found.wait(progress=False)
        return float(stamp.read_text()) - began

    def plain() -> float:
        began = time.time()
        subprocess.run([sys.executable, str(script), str(stamp)], check=True)
        return float(stamp.read_text()) - began

    seen = in_turns({"job": job, "plain": plain}, rounds)
    taken = {name: median(seconds) for name, seconds in seen.items()}
    yield Row(
        what="submitting a script, until the job is there and started",
        mms=f"{median(submitted) * 1e3:.1f} ms",
        beside=f"{SUBMIT_LIMIT_S * 1e3:.0f} ms",
        ratio=median(submitted) / SUBMIT_LIMIT_S,
        target="<= 1.0",
    )
    yield Row(
        what="from submitting a script to its first line, beyond what `python script.py` takes to it",
        mms=f"{taken['job']:.3f} s",
        beside=f"python script.py {taken['plain']:.3f} s, and {STARTED_WITHIN_S} s",
        ratio=(taken["job"] - taken["plain"]) / STARTED_WITHIN_S,
        target="<= 1.0",
    )


def _waiting(ws: mms.WorkspaceClient, script: Path, folder: Path, *, count: int) -> Row:
    # One holds the machine; the others wait behind it.
    with _held(ws, folder):
        began = time.perf_counter()
        jobs = [ws.jobs.submit(script, args=[str(folder / "stamp")]) for _ in range(count)]
        each = (time.perf_counter() - began) / count
        for waiting in jobs:
            waiting.cancel()
    return Row(
        what=f"submitting {count:,} scripts that wait in the queue, each",
        mms=f"{each * 1e3:.1f} ms",
        beside=f"{SUBMIT_LIMIT_S * 1e3:.0f} ms",
        ratio=each / SUBMIT_LIMIT_S,
        target="<= 1.0",
    )


def _supervisor(ws: mms.WorkspaceClient, folder: Path) -> Row:
    with _held(ws, folder) as job:
        claim = read(attempt_folder(folder / "workspace" / "jobs" / job.id, 1) / CLAIM) or {}
        held = psutil.Process(pid_of(claim["owner"])).memory_info().rss / 1e6
    return Row(
        what="memory of what looks after a running job",
        mms=f"{held:.1f} MB",
        beside=f"{SUPERVISOR_LIMIT_MB} MB",
        ratio=held / SUPERVISOR_LIMIT_MB,
        target="<= 1.0",
    )


@contextlib.contextmanager
def _held(ws: mms.WorkspaceClient, folder: Path) -> Iterator[mms.Job]:
    # A job that runs until it is left.
    there = folder / "held"
    there.unlink(missing_ok=True)
    job = ws.jobs.submit(f"import time\nopen({str(there)!r}, 'w').close()\ntime.sleep(3600)\n")
    while not there.exists():
        time.sleep(0.01)
    try:
        yield job
    finally:
        job.cancel()
        with contextlib.suppress(mms.errors.JobFailed):
            job.wait(progress=False)
