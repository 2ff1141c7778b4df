"""Waiting for a job, and saving what it made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from over_http import serving

import mms_sdk as mms
from mms_sdk.errors import JobFailed, MmsError, NothingToIngest, StorageFull, TrainingFailed, Unavailable
from mms_sdk.service.problems import as_problem
from mms_sdk.storage.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """The same folder that `ws` serves, to play the worker in."""
    workspace = Workspace(tmp_path / "ws")
    yield workspace
    workspace.close()


@pytest.fixture
def ws(workspace: Workspace) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=workspace.root) as ws:
        yield ws


@pytest.mark.parametrize("kind", [NothingToIngest, StorageFull, TrainingFailed])
def test_a_failed_job_raises_the_error_it_ended_with(
    ws: mms.WorkspaceClient, workspace: Workspace, kind: type[MmsError]
) -> None:
    job = workspace.catalog.jobs.start("train", "pets", {}).id
    workspace.catalog.jobs.finish(job, "failed", error=as_problem(kind("the rule; the value; the next step")))
    with pytest.raises(kind) as raised:
        ws.jobs.get(job).wait()
    assert (type(raised.value), str(raised.value)) == (kind, "the rule; the value; the next step")


def test_a_cancelled_job_raises_and_says_how_it_ended(ws: mms.WorkspaceClient, workspace: Workspace) -> None:
    job = workspace.catalog.jobs.start("train", "pets", {}).id
    workspace.catalog.jobs.finish(job, "cancelled")
    with pytest.raises(JobFailed, match=f"job {job} ended as cancelled: no reason recorded"):
        ws.jobs.get(job).wait()


def test_waiting_too_long_is_a_timeout_and_the_job_goes_on(ws: mms.WorkspaceClient, workspace: Workspace) -> None:
    job = workspace.catalog.jobs.start("train", "pets", {}).id
    handle = ws.jobs.get(job)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"job {job} has not ended within 0\.2 s; it goes on"):
        handle.wait(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert ws.jobs.get(job).state == "running"
    threading.Timer(0.1, workspace.catalog.jobs.finish, (job, "succeeded"), {"result": {"rows": 7}}).start()
    assert handle.wait(timeout_s=20).result == {"rows": 7}


async def _breaks_off(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"1000000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * 600_000, "more_body": True})
    raise ConnectionResetError("the cable")


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_download_that_breaks_off_leaves_what_was_there(tmp_path: Path, before: bytes | None) -> None:
    target = tmp_path / "out.parquet"
    if before is not None:
        target.write_bytes(before)
    with (
        serving(_breaks_off, lifespan="off") as url,
        mms.connect(url, token="t") as ws,
        pytest.raises(Unavailable, match=url),
    ):
        ws._api.download("/v1/jobs/x/artifacts/predictions.parquet", target)
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["out.parquet"])
    assert before is None or target.read_bytes() == before
