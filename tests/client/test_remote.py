"""Functions as jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest, JobFailed, NotFound

SCALE = 3


@mms.remote(cpus=1, time="1min")
def scaled(numbers: Any, *, by: float = 2.0, told: Any = None) -> dict[str, Any]:
    import os

    print("within", os.environ.get("MMS_JOB", "no job"))
    return {"numbers": np.asarray(numbers) * by, "told": told, "pi": math.pi}


@mms.remote(cpus=1)
def needs_a_global(number: int) -> int:
    return number * SCALE


@mms.remote(cpus=1)
def returns_a_module() -> Any:
    return math


@mms.remote(cpus=1)
def fails() -> None:
    raise LookupError("nothing of that kind")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mms.WorkspaceClient]:
    ws = mms.connect(workspace=tmp_path_factory.mktemp("remote") / "workspace")
    yield ws
    ws.close()


def test_a_function_returns_as_a_job_what_it_returns_here(workspace: mms.WorkspaceClient) -> None:
    numbers, told = np.arange(4.0), ("a tuple", math.inf, None)

    job = scaled.submit_to(workspace, numbers, by=0.5, told=told)

    value, here = job.value(), scaled(numbers, by=0.5, told=told)
    np.testing.assert_array_equal(value.pop("numbers"), here.pop("numbers"))
    assert value == here
    assert job.logs() == f"within {job.id}\n"
    assert (job.record.kind, job.record.name) == ("function", "scaled")


def test_the_workspace_that_is_meant_is_the_one_that_connect_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "workspace"))

    job = scaled.submit([1, 2])

    assert job.wait(progress=False).state == "succeeded"
    assert [each.id for each in mms.connect().jobs] == [job.id]


@pytest.mark.parametrize(
    ("function", "args", "said"),
    [
        (needs_a_global, (1,), "needs_a_global uses SCALE from there"),
        (scaled, (), "missing a required argument: 'numbers'"),
        (scaled, (math,), "in the arguments of scaled there is a module"),
    ],
)
def test_what_could_not_run_is_refused_before_there_is_a_job(
    workspace: mms.WorkspaceClient, function: Any, args: tuple[Any, ...], said: str
) -> None:
    before = sum(workspace.jobs.counts().values())
    with pytest.raises(InvalidRequest, match=said):
        function.submit_to(workspace, *args)
    assert sum(workspace.jobs.counts().values()) == before


def test_what_a_function_raises_or_cannot_return_is_the_reason_of_its_job(workspace: mms.WorkspaceClient) -> None:
    for function, said in (
        (fails, "LookupError: nothing of that kind"),
        (returns_a_module, "returned there is a module"),
    ):
        job = function.submit_to(workspace)
        with pytest.raises(JobFailed, match=said):
            job.value()
        (attempt,) = job.attempts  # what the code does itself is not tried again
        assert attempt.ended is not None
        assert attempt.ended.reason == "user"


def test_a_job_that_runs_no_function_has_no_value(workspace: mms.WorkspaceClient) -> None:
    with pytest.raises(NotFound, match=r"has no file returned\.npz"):
        workspace.jobs.submit("a = 1\nb = 2\n").value()


def test_resources_that_do_not_fit_are_refused_where_they_are_written() -> None:
    with pytest.raises(InvalidRequest, match="memory is bytes, or a number with"):
        mms.remote(memory="8 gigs")
