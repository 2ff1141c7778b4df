"""What a job reads is exact when it is submitted and seen by its code; what it made is found by it, and it by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mms_sdk as mms
from mms_sdk.errors import DatasetNotFound, InvalidRequest, ModelNotFound, SnapshotNotFound, SplitNotFound
from mms_sdk.settings import FENCE_VARIABLE
from mms_sdk.storage import noting
from mms_sdk.storage.workspace import Workspace

SMALL = mms.Resources(cpus=1, gpus=0)
MAKES = """
import numpy as np
import mms_sdk as mms
print(sorted(mms.inputs().items()), mms.outputs())
with mms.connect() as ws:
    data = ws.datasets.get(mms.inputs()["data"].partition("/")[0])
    part = mms.Column(name="x", kind="number", dtype="float32")
    for _ in range(2):
        writing = ws.datasets.write(mms.outputs()["made"], columns=[part])
        with writing.writer("a") as writer:
            writer.write({"x": np.ones(2, np.float32)})
        writing.commit()
"""


@pytest.fixture
def local(tmp_path: Path) -> mms.WorkspaceClient:
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        ws.datasets.ingest("numbers", {"x": np.arange(20.0)}, progress=False)
        yield ws


def test_a_job_reads_what_was_newest_when_it_was_submitted(local: mms.WorkspaceClient) -> None:
    local.datasets.get("numbers").tag("paper")
    job = local.jobs.submit(
        MAKES,
        inputs={"data": "numbers/train", "same": local.datasets.get("numbers"), "tagged": "numbers@paper"},
        outputs={"made": "copies"},
        resources=SMALL,
    )
    local.datasets.ingest("numbers", {"x": np.arange(30.0)}, progress=False)

    job.wait(progress=False)

    assert job.inputs == {"data": "numbers@1/train", "same": "numbers@1", "tagged": "numbers@1"}
    assert job.logs().strip() == f"{sorted(job.inputs.items())} {{'made': 'copies'}}"
    assert job.outputs == ("copies@1", "copies@2")
    assert [each.id for each in local.jobs.list(input="numbers")] == [job.id]
    assert [each.id for each in local.jobs.list(input="numbers@paper")] == [job.id]
    assert [each.id for each in local.jobs.list(output="copies@2")] == [job.id]
    assert [each.id for each in local.jobs.list(input="numbers/val")] == []
    assert [each.id for each in local.jobs.list(input="model:numbers")] == []
    assert [each.record.kind for each in local.jobs.list(output="numbers@2")] == ["ingest"]


def test_what_is_not_there_is_refused_before_anything_runs(ws: mms.WorkspaceClient) -> None:
    before = len(ws.jobs.list(500))
    for text, error in {
        "nothing": DatasetNotFound,
        "pets@99": SnapshotNotFound,
        "pets@paper": SnapshotNotFound,
        "pets/other": SplitNotFound,
        "model:nothing": ModelNotFound,
        "model:tiny@99": ModelNotFound,
        "model:tiny/train": InvalidRequest,
        "no name": InvalidRequest,
        "": InvalidRequest,
    }.items():
        with pytest.raises(error):
            ws.jobs.submit("print(1)\n", inputs={"data": text})
    for outputs in ({"made": "pets@1"}, {"made": "pets/train"}, {"no label": "pets"}, {"made": "model:tiny@2"}):
        with pytest.raises(InvalidRequest):
            ws.jobs.submit("print(1)\n", outputs=outputs)
    assert len(ws.jobs.list(500)) == before


def test_a_model_is_named_by_its_alias_and_read_by_its_version(ws: mms.WorkspaceClient) -> None:
    version = ws.models.get("tiny@1")
    text = "import mms_sdk as mms\nprint(mms.inputs())\n"
    job = ws.jobs.submit(text, inputs={"start": version, "newest": "model:tiny"}, resources=SMALL).wait(progress=False)
    assert job.inputs == {"start": "model:tiny@1", "newest": "model:tiny@2"}
    assert job.logs().strip() == "{'start': 'tiny@1', 'newest': 'tiny@2'}"
    assert job.outputs == ()
    assert job.id in {each.id for each in ws.jobs.list(input=version)}
    assert job.retry().inputs == job.inputs


def test_outside_of_a_job_there_is_nothing() -> None:
    assert (mms.inputs(), mms.outputs()) == ({}, {})


def test_word_of_another_workspace_and_garbage_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "workspace")
    monkeypatch.setenv(FENCE_VARIABLE, str(tmp_path / "over"))
    from mms_sdk.schema.lineage import Reference

    own, other = str(workspace.root / "datasets" / "a"), str(tmp_path / "elsewhere" / "datasets" / "a")
    for where in (own, other):
        noting.note(Reference(what="dataset", name="a", at=1), where=where)
    with (tmp_path / noting.MADE).open("ab") as file:
        file.write(b'\xff\n[]\n{"made": 7}\n{"made": "a/train", "where": 1}\n{"made": "a@1/b", "where": "x"}\nnull\n{')

    assert noting.noted(workspace, tmp_path) == [Reference(what="dataset", name="a", at=1)]
