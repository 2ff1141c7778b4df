"""An attempt that was given up and comes back: what is left of it changes nothing that others see."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from mms_sdk.errors import Conflict
from mms_sdk.settings import FENCE_VARIABLE
from mms_sdk.storage import fence
from mms_sdk.storage.owners import pid_of
from mms_sdk.testing.engines import Jobs, until

SLEEPS_THROUGH = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
if not list(folder.iterdir()):
    # Without the variable by which what an attempt leaves behind is found, and in a session of its own.
    seen = {name: value for name, value in os.environ.items() if name != "MMS_ATTEMPT"}
    subprocess.Popen([sys.executable, sys.argv[2], str(folder)], env=seen, start_new_session=True)
    time.sleep(100)
print("the second attempt")
"""
ZOMBIE = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from mms_sdk.errors import Conflict
from mms_sdk.schema.dataset import Column
from mms_sdk.settings import default_workspace
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.checkpoints import CheckpointFolder
from mms_sdk.storage.workspace import Workspace
folder, workspace = Path(sys.argv[1]), Workspace(default_workspace())
columns = (Column(name="x", kind="embedding", dtype="float32", shape=(2,)),)
dataset = workspace.open_or_create_dataset("rows")
def commit(base):
    with dataset.writer(columns) as writer:
        writer.write({"x": np.ones((3, 2), np.float32)})
        part = writer.close()
    return dataset.commit(Addition(parts=(part,), columns=columns, splits={}, classes={}), base=base, rebase=True)
first = commit(None)
(folder / "zombie").write_text(str(os.getpid()))
while not (folder / "awake").exists():
    time.sleep(0.01)
told = {}
for name, do in {
    "commit": lambda: commit(first),
    "job": lambda: workspace.catalog.jobs.start("train", "rows", {}),
    "checkpoint": lambda: CheckpointFolder(folder / "checkpoints", keep=1).save(1, {}, {}, best=False),
}.items():
    try:
        do()
        told[name] = "done"
    except Conflict as error:
        told[name] = str(error)
(folder / "told.part").write_text(json.dumps(told))
(folder / "told.part").rename(folder / "told")
"""


def test_a_process_that_wakes_after_its_attempt_was_given_up_changes_nothing(jobs: Jobs, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "zombie.py").write_text(ZOMBIE)
    job = jobs.submit(SLEEPS_THROUGH, marks, tmp_path / "zombie.py", wait_s=0)
    until((marks / "zombie").exists, "the first commit")
    zombie = int((marks / "zombie").read_text())
    os.kill(zombie, signal.SIGSTOP)
    os.kill(pid_of(jobs.attempts(job)[0].owner), signal.SIGKILL)

    assert jobs.ended(job).state == "succeeded"
    os.kill(zombie, signal.SIGCONT)
    (marks / "awake").touch()
    until((marks / "told").exists, "what became of it")

    first, _ = jobs.attempts(job)
    assert first.ended is not None
    assert first.ended.reason == "lost"
    told = json.loads((marks / "told").read_text())
    assert set(told) == {"commit", "job", "checkpoint"}
    for each in told.values():
        assert f"process {zombie} is of one that was given up" in each
    assert jobs.workspace.dataset("rows").snapshots() == [1]
    assert [each.id for each in jobs.workspace.catalog.jobs.list()] == [job]
    assert not list(marks.glob("checkpoints/*"))


def test_nothing_else_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fence.check()
    monkeypatch.setenv(FENCE_VARIABLE, str(tmp_path / "over"))
    fence.check()
    (tmp_path / "over").touch()
    with pytest.raises(Conflict, match="is of one that was given up"):
        fence.check()
