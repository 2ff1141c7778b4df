"""Ingests, evaluations and predictions that an engine does are those of this process, and outlive it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import mms_sdk as mms
from mms_sdk.errors import Conflict, DataError, InvalidRequest, ModelNotFound, NothingToIngest

SMALL = mms.Resources(cpus=1, gpus=0)


def test_an_ingest_gives_the_rows_and_the_report_of_one_here(
    ws: mms.WorkspaceClient, readable: Path, request: pytest.FixtureRequest
) -> None:
    way = request.node.callspec.id.replace("_", "-")
    asked: Any = {"clean": [mms.drop_unreadable(), mms.drop_duplicates()], "message": "told"}
    here = ws.datasets.ingest(f"here-{way}", readable / "photos", progress=False, **asked)

    job = ws.datasets.ingest(f"there-{way}", readable / "photos", on=SMALL, **asked).wait(progress=False)

    assert (job.record.kind, job.record.name, job.record.engine) == ("ingest", f"there-{way}", "local")
    assert job.outputs == (f"there-{way}@1",)
    there = ws.datasets.get(job.outputs[0])
    assert (there.rows, there.info.columns, there.splits) == (here.rows, here.info.columns, here.splits)
    assert there.cleaning == here.cleaning
    assert job.result["report"] == here.cleaning.model_dump(mode="json")
    assert (job.record.progress.done, job.record.progress.total) == (here.rows, here.rows)
    assert [each.ended.reason for each in job.attempts if each.ended] == ["succeeded"]
    again = job.retry().wait(progress=False)
    assert again.outputs == (f"there-{way}@2",)
    assert ws.datasets.get(again.outputs[0]).rows == here.rows  # nothing was new by now


def test_what_it_refuses_is_raised_as_from_this_process(ws: mms.WorkspaceClient, readable: Path) -> None:
    empty = readable / "empty"
    empty.mkdir(exist_ok=True)
    with pytest.raises(NothingToIngest) as here:
        ws.datasets.ingest("never", empty, progress=False)
    job = ws.datasets.ingest("never", empty, on=SMALL)
    with pytest.raises(NothingToIngest) as there:
        job.wait(progress=False)
    assert str(here.value) == str(there.value)
    assert (job.state, len(job.attempts)) == ("failed", 1)
    (readable / "bad").mkdir(exist_ok=True)
    (readable / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        ws.datasets.ingest("never", readable / "bad", on=SMALL).wait(progress=False)


def test_an_evaluation_is_kept_with_the_version(ws: mms.WorkspaceClient) -> None:
    here = ws.evaluate("tiny@1", data="pets/test", resamples=100, progress=False)
    job = ws.evaluate("tiny@1", data="pets/test", resamples=100, on=SMALL).wait(progress=False)
    there = ws.models.get("tiny@1").evaluations[0]
    assert there.id == job.id
    assert (there.metrics, there.data, there.model) == (here.metrics, "pets@1/test", "tiny@1")
    assert job.inputs == {"model": "model:tiny@1", "data": "pets@1/test"}
    assert job.id in {each.id for each in ws.jobs.list(input="pets@1/test")}


def test_predictions_are_those_of_this_process(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    here = ws.predict("tiny@2", data="pets", to=tmp_path / "here.parquet", progress=False)
    job = ws.predict("tiny", data="pets", on=mms.On(resources=SMALL, key=None), save_every=32).wait(progress=False)
    job.download("predictions.parquet", tmp_path / "there.parquet")
    assert pq.read_table(tmp_path / "here.parquet").equals(pq.read_table(tmp_path / "there.parquet"))
    assert (job.result["rows"], job.result["accuracy"]) == (here.rows, here.accuracy)
    assert (job.result["model"], job.result["data"]) == ("tiny@2", "pets@1")
    assert [each.name for each in job.artifacts()] == ["log.txt", "predictions.parquet"]


def test_what_cannot_be_is_refused_at_once(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    before = len(ws.jobs.list(500))
    with pytest.raises(ModelNotFound):
        ws.predict("nothing", data="pets", on="local")
    for on in ("spark", 7, {"engine": "local"}):
        with pytest.raises(InvalidRequest, match="on= is one of 'local', 'ray'"):
            ws.datasets.ingest("never", tmp_path, on=on)  # type: ignore[call-overload]
    with pytest.raises(InvalidRequest, match="done by one process"):
        ws.predict("tiny", data="pets", on=mms.Resources(cpus=1, processes=2))
    for both in ({}, {"to": tmp_path / "a.parquet", "on": "local"}):
        with pytest.raises(InvalidRequest, match="to a file here, to=, or by a job, on="):
            ws.predict("tiny", data="pets", **both)  # type: ignore[call-overload]
    assert len(ws.jobs.list(500)) == before


def test_a_key_stands_for_one_piece_of_work(ws: mms.WorkspaceClient, request: pytest.FixtureRequest) -> None:
    on = mms.On(resources=SMALL, key=request.node.name)
    first = ws.predict("tiny@1", data="pets", on=on)
    assert ws.predict("tiny@1", data="pets", on=on).id == first.id
    with pytest.raises(Conflict):
        ws.predict("tiny@2", data="pets", on=on)
    first.wait(progress=False)


def test_what_waits_is_cancelled_like_a_script(ws: mms.WorkspaceClient) -> None:
    holds = ws.jobs.submit("import time\ntime.sleep(60)\n")
    job = ws.predict("tiny@1", data="pets", on="local")
    assert job.cancel().state == "cancelled"
    holds.cancel()
    with pytest.raises(mms.errors.JobFailed):
        holds.wait(progress=False)


def test_arrays_are_ingested_by_an_engine_too(tmp_path: Path) -> None:
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        job = ws.datasets.ingest("numbers", {"x": np.arange(20.0)}, on=SMALL).wait(progress=False)
        assert ws.datasets.get(job.outputs[0]).rows == 20
