"""What old jobs left is removed by whoever may, in the SDK and on the command line."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import mms_sdk as mms
from mms_sdk.cli import main
from mms_sdk.errors import InvalidRequest, NotFound
from mms_sdk.storage import tables
from mms_sdk.storage.workspace import Workspace

DAYS = 86400


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        yield ws


@pytest.fixture
def old(ws: mms.WorkspaceClient, tmp_path: Path) -> mms.Job:
    """A job that ended 40 days ago, and an environment that nobody has used since."""
    job = ws.jobs.submit("import mms_sdk\n(mms_sdk.artifacts() / 'kept.txt').write_text('x' * 5000)\n")
    job.wait(progress=False)
    ended = (datetime.now(UTC) - timedelta(days=40)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    workspace = Workspace(tmp_path / "workspace")
    with workspace.catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(ended_at=ended))
    workspace.close()
    made = tmp_path / "workspace" / "environments" / "0123" / "made.json"
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    for path in (made, *(tmp_path / "workspace" / "bundles").glob("*.zip")):
        os.utime(path, (time.time() - 40 * DAYS,) * 2)
    return job


def test_what_an_old_job_left_goes_and_the_job_is_told_of_still(old: mms.Job, ws: mms.WorkspaceClient) -> None:
    assert ws.jobs.clean(older_than="6w", progress=False).outcome == "nothing to remove"
    would = ws.jobs.clean(older_than="30d", dry_run=True, progress=False)
    assert old.artifacts()[0].bytes == 5000

    did = ws.jobs.clean(older_than="30d", progress=False)

    assert re.fullmatch(
        r"1 job folder \([0-9.]+ KiB\), 1 bundle \(\d+ bytes\), 1 environment \(2 bytes\) removed", did.outcome
    )
    assert would.outcome == did.outcome.replace("removed", "to be removed")
    assert would.result == {**did.result, "dry_run": True}
    assert did.result["job_bytes"] > 5000
    assert old.refresh().state == "succeeded"
    assert old.facts()["cleaned"] == old.record.cleaned_at
    assert old.attempts[0].ended is not None
    for ask in (old.logs, old.metrics, old.artifacts, old.ranks, old.retry):
        with pytest.raises(NotFound, match="was removed at"):
            ask()
    assert [job.id for job in ws.jobs.list()][-1] == old.id
    old.watch()


def test_the_command_says_what_it_freed(
    old: mms.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "workspace"))
    assert main(["jobs", "clean"]) == 2
    assert "--older-than 30d" in capsys.readouterr().err
    assert main(["jobs", "clean", "--older-than", "30d", "--keep", "2"]) == 0
    assert capsys.readouterr().out.startswith("1 environment (2 bytes) removed")
    assert main(["jobs", "clean", "--older-than", "30d", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["result"]["jobs"], told["result"]["dry_run"]) == (1, True)
    assert main(["jobs", "clean", "--older-than", "30d"]) == 0
    assert capsys.readouterr().out.startswith("1 job folder (")


@pytest.mark.parametrize("age", ["30", "30 days", "-1d", "nan", "", "1e9d", -1, float("inf"), None, [30], 10**12])
def test_an_age_is_one(ws: mms.WorkspaceClient, age: Any) -> None:
    with pytest.raises(InvalidRequest, match="older_than"):
        ws.jobs.clean(older_than=age)


def test_how_many_stay_is_a_number(ws: mms.WorkspaceClient) -> None:
    with pytest.raises(InvalidRequest, match="keep"):
        ws.jobs.clean(older_than="30d", keep=-1)
