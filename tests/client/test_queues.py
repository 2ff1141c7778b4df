"""What the queue of jobs is told: quotas, projects, meshes; and what runs and waits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mms_sdk as mms
from mms_sdk.cli import main
from mms_sdk.client.workspace import WorkspaceClient
from mms_sdk.errors import InvalidRequest, NotFound
from mms_sdk.schema.quota import Quota

STAYS = "import sys, time\nfrom pathlib import Path\nwhile not Path(sys.argv[1]).exists():\n    time.sleep(0.01)\n"
ONE = mms.Resources(cpus=1, gpus=0)


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[WorkspaceClient]:
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        yield ws
        for job in ws.jobs:
            if not job.refresh().record.ended:
                job.cancel()
                with pytest.raises(mms.errors.JobFailed):
                    job.wait(timeout_s=60)


def test_a_project_has_a_quota_or_none(ws: WorkspaceClient) -> None:
    ws.quotas.set("vision", cpus=2, memory="1GB")
    ws.quotas.set("speech", gpus=0)

    assert list(ws.quotas.list()) == [Quota(project="speech", gpus=0), Quota(project="vision", cpus=2, memory=10**9)]
    assert "vision" in repr(ws.quotas.list())
    ws.quotas.remove("speech")
    with pytest.raises(NotFound, match="project speech has no quota"):
        ws.quotas.remove("speech")
    for project, asked in (("Vision", {"cpus": 1}), ("vision", {"cpus": -1}), ("vision", {"memory": "much"})):
        with pytest.raises(InvalidRequest):
            ws.quotas.set(project, **asked)  # type: ignore[arg-type]


def test_what_a_project_may_never_have_is_refused(ws: WorkspaceClient) -> None:
    ws.quotas.set("vision", cpus=0)

    with pytest.raises(InvalidRequest, match=r"the quota of 'vision' is \{'cpus': 0\}; ask for less"):
        ws.jobs.submit(STAYS, args=["x"], project="vision", resources=ONE)
    with pytest.raises(InvalidRequest, match="project"):
        ws.jobs.submit(STAYS, args=["x"], project="no such name!", resources=ONE)


def test_what_runs_and_what_waits_is_told(
    ws: WorkspaceClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = str(tmp_path / "stop")
    ws.quotas.set("vision", cpus=1)
    first = ws.jobs.submit(STAYS, args=[stop], name="first", project="vision", resources=ONE)
    second = ws.jobs.submit(STAYS, args=[stop], name="second", project="vision", resources=ONE)
    large = ws.jobs.submit(STAYS, args=[stop], name="large")
    small = ws.jobs.submit(STAYS, args=[stop], name="small", priority=-1, resources=ONE)

    told = {job.name: job for job in ws.jobs.top()}

    assert list(told) == ["first", "second", "large", "small"]
    assert [told[name].waits_for for name in told] == ["", "its project's quota", "its turn", "its turn"]
    assert told["first"].given == {"cpus": 1, "gpus": 0, "memory": 0}
    takes = told["first"].footprint
    assert takes is not None
    assert takes.processes >= 1
    assert takes.memory > 10**6
    assert told["second"].footprint is None
    assert main(["jobs", "top", "--workspace", str(ws.folder)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{second.id} +second +vision +0 +waits for its project's quota", shown)
    assert main(["jobs", "top", "--json", "--workspace", str(ws.folder)]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [first.id, second.id, large.id, small.id]
    ws.quotas.remove("vision")
    Path(stop).touch()
    for job in (first, second, large, small):
        assert job.wait(timeout_s=60, progress=False).state == "succeeded"
    assert list(ws.jobs.top()) == []


def test_the_command_line_sets_shows_and_removes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tmp_path / "workspace")]

    assert main(["quotas", "set", "vision", "--gpus", "4", "--memory", "64GB", *where]) == 0
    assert main(["quotas", "--json", *where]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == [{"project": "vision", "cpus": None, "gpus": 4, "memory": 64 * 10**9}]
    assert main(["quotas", "remove", "vision", *where]) == 0
    assert main(["quotas", "remove", *where]) == 2
    assert "mms quotas set PROJECT" in capsys.readouterr().err


def test_trainers_of_a_job_take_its_mesh_if_they_name_none(ws: WorkspaceClient) -> None:
    text = (
        "import mms_sdk as mms\n"
        "mlp = mms.models.MLP(num_classes=3)\n"
        "print(mms.Trainer(model=mlp).mesh, mms.Trainer(model=mlp, mesh={'data': 1}).mesh)\n"
    )
    job = ws.jobs.submit(text, mesh={"fsdp": 2, "data": -1}, resources=ONE)

    assert job.wait(timeout_s=60, progress=False).logs() == "{'fsdp': 2, 'data': -1} {'data': 1}\n"
    for mesh in ({"rows": 2}, {"data": 1.5}):
        with pytest.raises(InvalidRequest, match="mesh"):
            ws.jobs.submit(text, mesh=mesh)  # type: ignore[arg-type]
