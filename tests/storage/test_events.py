"""What happens to a job is told in the order in which it happens, once, and with the change that it tells of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mms_sdk.errors import Conflict
from mms_sdk.schema.job import Attempt, Ended, Job, JobRequest, JobSpec, Progress, Reason, Resources
from mms_sdk.storage import events, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import new_id, now


@pytest.fixture
def catalog(catalog_at: Path | str) -> Iterator[Catalog]:
    opened = Catalog(catalog_at)
    yield opened
    opened.close()


def submit(catalog: Catalog) -> Job:
    spec = JobSpec(bundle="0" * 64, entrypoint="train.py", resources=Resources(cpus=1))
    return catalog.attempts.submit(JobRequest(kind="script", name="train", spec=spec))


def take(catalog: Catalog) -> Attempt:
    found = catalog.attempts.take(engine="local", owner="1:2@3", fits=lambda *_: {"cpus": 1, "gpus": []})
    assert found is not None
    return found[1]


def end(catalog: Catalog, attempt: Attempt, reason: Reason) -> None:
    catalog.attempts.end(attempt, Ended(reason=reason, detail=f"it was {reason}", at=now()))


def make_due(catalog: Catalog) -> None:
    with catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(not_before=None))


def told(catalog: Catalog, job: str | None = None) -> list[tuple[str, int | None]]:
    return [(each.kind, each.attempt) for each in catalog.events.list(job=job)]


def test_a_job_that_is_tried_twice_tells_each_step_of_its_life(catalog: Catalog) -> None:
    job = submit(catalog)
    first = take(catalog)
    assert catalog.attempts.runs(first, "4:5@6")
    assert catalog.attempts.runs(first, "4:5@6")  # who finds it again tells nothing new
    end(catalog, first, "lost")
    make_due(catalog)
    second = take(catalog)
    catalog.attempts.runs(second, "4:5@6")
    end(catalog, second, "user")
    end(catalog, second, "lost")  # too late: it has ended

    found = catalog.events.list(job=job.id)

    assert told(catalog) == [
        ("queued", None),
        ("starting", 1),
        ("running", 1),
        ("retrying", 1),
        ("starting", 2),
        ("running", 2),
        ("ended", 2),
    ]
    assert [each.number for each in found] == list(range(1, 8))
    assert found[1].detail == {"given": {"cpus": 1, "gpus": []}}
    assert found[3].detail == {"state": "queued", "reason": "lost", "detail": "it was lost"}
    assert found[6].detail == {"state": "failed", "reason": "user", "detail": "it was user"}
    assert [each.at for each in found] == sorted(each.at for each in found)


def test_work_of_this_process_tells_its_beginning_and_its_one_end(catalog: Catalog) -> None:
    job = catalog.jobs.start("ingest", "pets", {})
    catalog.jobs.progress(job.id, Progress(done=1, total=2, what="rows"))  # is no event: there may be thousands
    catalog.jobs.finish(job.id, "failed", error={"title": "damaged", "detail": "x" * 10_000})
    catalog.jobs.finish(job.id, "succeeded")
    catalog.jobs.reopen(job.id)
    with pytest.raises(Conflict):
        catalog.jobs.reopen(job.id)

    assert told(catalog) == [("running", None), ("ended", None), ("running", None)]
    assert catalog.events.list()[1].detail == {"state": "failed", "reason": "damaged", "detail": "x" * 500}


def test_stopping_is_told_once_for_each_attempt_and_never_of_what_is_not_at_work(catalog: Catalog) -> None:
    waits, runs = submit(catalog), submit(catalog)
    assert catalog.attempts.cancel_waiting(waits.id)
    assert not catalog.attempts.cancel_waiting(waits.id)
    catalog.events.cancelling(waits.id)
    attempt = take(catalog)
    for _ in range(3):
        catalog.events.cancelling(runs.id)
    end(catalog, attempt, "cancelled")
    catalog.events.cancelling(runs.id)

    assert told(catalog, waits.id) == [("queued", None), ("ended", None)]
    assert told(catalog, runs.id) == [("queued", None), ("starting", 1), ("cancelling", 1), ("ended", 1)]


def test_a_copy_that_gives_up_tells_so(catalog: Catalog) -> None:
    submit(catalog)
    take(catalog)
    submit(catalog)
    catalog.attempts.give_up(lambda _: Ended(reason="lost", detail="gone", at=now()))

    ends = {each.attempt: each.detail["state"] for each in catalog.events.list() if each.kind == "ended"}

    assert ends == {1: "lost", None: "lost"}


def test_a_reader_goes_on_behind_what_it_saw_and_pages_are_whole(catalog: Catalog) -> None:
    jobs = [catalog.jobs.start("ingest", "pets", {}) for _ in range(7)]
    seen: list[Any] = []
    while page := catalog.events.list(since=seen[-1].number if seen else 0, limit=3):
        assert len(page) <= 3
        seen += page

    assert [each.job for each in seen] == [job.id for job in jobs]
    assert catalog.events.list(since=7) == catalog.events.list(job="nothing") == []


def test_of_many_writers_each_number_is_given_once_and_in_order_of_their_commits(catalog: Catalog) -> None:
    stop, seen = threading.Event(), []

    def read() -> None:
        while True:
            last = stop.is_set()
            seen.extend(catalog.events.list(since=seen[-1].number if seen else 0))
            if last:
                return

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        writers = [pool.submit(lambda: [catalog.jobs.start("ingest", "pets", {}) for _ in range(10)]) for _ in range(4)]
        for writer in writers:
            writer.result()
        stop.set()
        reader.result()

    assert [each.number for each in seen] == list(range(1, 41))


def test_only_the_newest_are_kept_and_numbers_go_on(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 5)
    monkeypatch.setattr(events, "_TRIM_EVERY", 4)
    for _ in range(17):
        catalog.jobs.start("ingest", "pets", {})

    assert [each.number for each in catalog.events.list()] == list(range(12, 18))


def test_a_jobs_events_go_with_it(catalog: Catalog) -> None:
    jobs = [catalog.jobs.start("ingest", "pets", {}) for _ in range(2)]
    with catalog.writing() as connection:
        connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == jobs[0].id))

    assert [each.job for each in catalog.events.list()] == [jobs[1].id]


def test_what_cannot_be_told_does_not_happen(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(catalog)
    monkeypatch.setattr(events, "now", lambda: None)
    with pytest.raises(ValueError, match="at"):
        take(catalog)
    monkeypatch.undo()

    assert catalog.jobs.get(job.id).state == "queued"
    assert catalog.attempts.of(job.id) == []


def test_one_that_is_asked_for_by_job_and_number_is_found_by_an_index(catalog: Catalog) -> None:
    if catalog.name.startswith("postgresql"):
        pytest.skip("PostgreSQL reads small tables whole; the index is the same")
    query = tables.events.select().where(tables.events.c.job == new_id(), tables.events.c.number > 5)
    with catalog.reading() as connection:
        text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = " ".join(str(row) for row in connection.exec_driver_sql(f"explain query plan {text}"))

    assert "events_by_job" in plan
