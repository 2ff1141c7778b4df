"""A workspace that several machines share: none takes the jobs of another, nor takes them for lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from mms_sdk.compute.engines import folder as names
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.schema.job import Ended
from mms_sdk.storage import owners
from mms_sdk.storage.ids import now
from mms_sdk.testing.engines import STAYS, Jobs, until


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """While its context lasts, this process is on another machine."""
    with monkeypatch.context() as patch:
        yield patch


def move(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(owners, "_machine", lambda: "another")
    patch.setattr(owners, "_life", lambda: "another")


def test_what_runs_on_one_machine_is_left_alone_by_another(
    jobs: Jobs, tmp_path: Path, elsewhere: pytest.MonkeyPatch
) -> None:
    job = jobs.submit(STAYS, "a", tmp_path)
    until((tmp_path / "a").exists, "its beginning")
    waits = jobs.submit("print('waited')")
    move(elsewhere)

    other = LocalEngine(jobs.workspace)
    other.reconcile()
    other.start_waiting()
    mine = jobs.submit("print('here')", cpus=1)

    assert jobs.get(job).state == "running"
    assert jobs.get(waits).state == "queued"
    assert jobs.ended(mine).state == "succeeded"  # what the other machine has been given is not taken from this one
    elsewhere.undo()
    (tmp_path / "a-go").touch()
    for each in (job, waits):
        assert jobs.ended(each, alone=True).state == "succeeded"
        assert len(jobs.attempts(each)) == 1


def test_another_machine_cancels_it_by_its_folder(jobs: Jobs, tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    job = jobs.submit(STAYS, "a", tmp_path)
    until((tmp_path / "a").exists, "its beginning")
    move(elsewhere)

    assert LocalEngine(jobs.workspace).cancel(job).state == "running"

    elsewhere.undo()
    assert jobs.ended(job).state == "cancelled"


def test_a_machine_that_never_answers_keeps_no_job_running_for_ever(
    jobs: Jobs, tmp_path: Path, elsewhere: pytest.MonkeyPatch
) -> None:
    move(elsewhere)
    job = jobs.put("print('never')")
    taken = jobs.workspace.catalog.attempts.take(engine="local", owner=f"1:1{owners.here()}", fits=lambda *_: ALL)
    assert taken is not None
    elsewhere.undo()
    folder = names.attempt_folder(jobs.workspace.job_folder(job), 1)
    engine = LocalEngine(jobs.workspace)

    assert engine.cancel(job).state == "starting"
    assert engine.cancel(job).state == "starting"
    long_ago = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
    (folder / names.CANCEL).write_bytes(orjson.dumps({"at": long_ago}))
    assert engine.cancel(job).state == "cancelled"

    error = jobs.get(job).error
    assert error is not None
    assert "did not answer" in error["detail"]


def test_work_without_an_engine_is_known_on_its_machine_alone(jobs: Jobs, elsewhere: pytest.MonkeyPatch) -> None:
    catalog = jobs.workspace.catalog
    parent = jobs.put("print('never')")
    move(elsewhere)
    alone = catalog.jobs.start("train", "pets", {}).id
    part = catalog.jobs.start("train", "pets", {}, parent=parent).id
    elsewhere.undo()

    assert catalog.jobs.reconcile() == []
    catalog.attempts.cancel_waiting(parent)
    assert catalog.jobs.reconcile() == [part]  # what it was a part of is over
    assert catalog.jobs.get(alone).state == "running"
    move(elsewhere)
    elsewhere.setattr(owners, "_life", lambda: "the next")  # that machine was started anew
    assert catalog.jobs.reconcile() == [alone]


def test_what_is_tried_again_waits_where_it_ran(jobs: Jobs, elsewhere: pytest.MonkeyPatch) -> None:
    move(elsewhere)
    attempts = jobs.workspace.catalog.attempts
    job = jobs.put("print('never')", wait_s=0)
    taken = attempts.take(engine="local", owner=f"1:1{owners.here()}", fits=lambda *_: ALL)
    assert taken is not None
    attempts.end(taken[1], Ended(reason="infra", at=now()))
    elsewhere.undo()

    assert jobs.get(job).state == "queued"
    assert attempts.take(engine="local", owner="1:1@x", fits=lambda *_: ALL) is None
    assert attempts.next_due_s("local") is None
    attempts.cancel_waiting(job)


ALL = {"cpus": 1, "gpus": [], "memory": 0}
