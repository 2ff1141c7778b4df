"""Submits jobs, to be killed while it does: workspace, folder for what they say, how many, how long each takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import mms_sdk as mms
from mms_sdk.compute.engines import local

# Holds a lock for as long as anything of the job runs, and leaves a process behind; the lock is that one's, too.
RUNS = """
import fcntl, os, sys, time
from pathlib import Path
folder, seconds, job = Path(sys.argv[1]), float(sys.argv[2]), os.environ["MMS_JOB"]
lock = open(folder / f"lock-{job}", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    (folder / f"twice-{job}").touch()
(folder / f"began-{job}-{os.getpid()}").touch()
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
    os._exit(0)
time.sleep(seconds)
(folder / f"ended-{job}-{os.getpid()}").touch()
"""


def main(workspace: str, marks: str, count: str, seconds: str) -> None:
    """Says `ready` before it submits, the id of each job once it is submitted, and `all` at last."""
    local.cores_here = lambda: 3  # as many jobs at once, whatever machine this is
    ws = mms.connect(workspace=Path(workspace))
    print("ready", flush=True)
    for _ in range(int(count)):
        job = ws.jobs.submit(RUNS, args=[marks, seconds], resources=mms.Resources(cpus=1), retry=mms.Retry(wait_s=0.1))
        print(job.id, flush=True)
    print("all", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
