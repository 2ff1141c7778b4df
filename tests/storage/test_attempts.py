from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mms_sdk.errors import Conflict
from mms_sdk.schema.job import Attempt, Ended, Job, JobRequest, JobSpec, JobState, Reason, Resources, Retry
from mms_sdk.storage import tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import now
from mms_sdk.storage.queue import Given

AT = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def catalog(catalog_at: Path | str) -> Iterator[Catalog]:
    opened = Catalog(catalog_at)
    yield opened
    opened.close()


def request(name: str = "train", *, key: str | None = None, **spec: Any) -> JobRequest:
    one_core = {"resources": Resources(cpus=1)}
    told = JobSpec(bundle="0" * 64, entrypoint="train.py", **{**one_core, **spec})
    return JobRequest(kind="script", name=name, key=key, spec=told)


def submit(catalog: Catalog, name: str = "train", *, key: str | None = None, **spec: Any) -> Job:
    return catalog.attempts.submit(request(name, key=key, **spec))


def cores(there: int) -> Callable[[JobSpec, Sequence[Given]], Given | None]:
    """Room on a machine of so many cores."""

    def fits(spec: JobSpec, taken: Sequence[Given]) -> Given | None:
        asked = spec.resources.cpus or there
        return {"cpus": asked} if asked + sum(each["cpus"] for each in taken) <= there else None

    return fits


def take(catalog: Catalog, there: int = 1000) -> tuple[Job, Attempt] | None:
    return catalog.attempts.take(engine="local", owner="1:2@3", fits=cores(there))


def taken(catalog: Catalog) -> tuple[Job, Attempt]:
    found = take(catalog)
    assert found is not None
    return found


def ended(reason: Reason, **told: Any) -> Ended:
    return Ended(reason=reason, at=AT, **told)


def make_due(catalog: Catalog) -> None:
    with catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(not_before=now()))


def at_once(count: int, do: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return do(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


# The queue ---------------------------------------------------------------------------------------------------------


def test_the_highest_priority_is_next_and_among_equals_the_oldest(catalog: Catalog) -> None:
    asked = [0, 5, -3, 5, 0, 1000, -1000, -3]
    made = [(-priority, number, submit(catalog, priority=priority).id) for number, priority in enumerate(asked)]

    order = [taken(catalog)[0].id for _ in asked]

    assert order == [job for _, _, job in sorted(made)]
    assert take(catalog) is None


def test_what_waits_says_so_and_what_is_taken_has_an_attempt(catalog: Catalog) -> None:
    job = submit(catalog, resources=Resources(cpus=2))
    assert (job.state, job.engine, job.started_at) == ("queued", "local", None)
    assert catalog.jobs.get(job.id) == job
    assert catalog.attempts.of(job.id) == []

    began, attempt = taken(catalog)

    assert began == catalog.jobs.get(job.id)
    assert (began.state, began.owner, began.started_at) == ("starting", "1:2@3", attempt.started_at)
    assert (attempt.number, attempt.given, attempt.ended) == (1, {"cpus": 2}, None)
    assert catalog.attempts.of(job.id) == [attempt]
    assert catalog.attempts.at_work("local") == [(began, attempt)]
    assert catalog.attempts.at_work("ray") == []


def test_a_large_job_at_the_head_is_not_overtaken_however_small_the_others(catalog: Catalog) -> None:
    def named(found: tuple[Job, Attempt] | None) -> str | None:
        return found and found[0].name

    for name, cpus in (("first", 3), ("large", None), ("small", 1)):
        submit(catalog, name, resources=Resources(cpus=cpus))
    first = take(catalog, 4)
    assert named(first) == "first"
    assert first is not None
    assert take(catalog, 4) is None  # one core is free, and the small one waits behind the large one

    catalog.attempts.end(first[1], ended("succeeded"))

    large = take(catalog, 4)
    assert named(large) == "large"
    assert large is not None
    assert take(catalog, 4) is None
    catalog.attempts.end(large[1], ended("succeeded"))
    assert named(take(catalog, 4)) == "small"


def test_an_engine_takes_its_own_jobs_only_and_none_of_those_that_nobody_queued(catalog: Catalog) -> None:
    catalog.attempts.submit(request("far").model_copy(update={"engine": "ray"}))
    catalog.jobs.start("train", "here", {})

    assert take(catalog) is None
    found = catalog.attempts.take(engine="ray", owner="", fits=cores(1))
    assert found is not None
    assert found[0].name == "far"


def test_threads_that_take_at_once_get_each_job_once(catalog: Catalog) -> None:
    jobs = {submit(catalog, str(number)).id for number in range(12)}

    def all_of_them(number: int) -> list[tuple[Job, Attempt]]:
        found = []
        while (one := take(catalog)) is not None:
            found.append(one)
        return found

    got = [each for some in at_once(6, all_of_them) for each in some]

    assert sorted(job.id for job, _ in got) == sorted(jobs)
    assert {attempt.number for _, attempt in got} == {1}
    assert len(catalog.attempts.at_work("local")) == 12


def test_threads_that_take_at_once_never_give_more_than_there_is(catalog: Catalog) -> None:
    for number in range(8):
        submit(catalog, str(number), resources=Resources(cpus=2))

    got = [each for each in at_once(8, lambda _: take(catalog, 5)) if each is not None]

    assert len(got) == 2


TAKES = """
import sys
from mms_sdk.schema.job import Ended
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import now

def fits(spec, taken):
    return {"cpus": 1} if len(taken) < 3 else None

attempts = Catalog(sys.argv[1]).attempts
print("ready", flush=True)
sys.stdin.readline()
while attempts.next_due_s("local") is not None:
    attempts.to_make_room(engine="local", fits=fits)  # looks at the queue while others take from it
    if (taken := attempts.take(engine="local", owner="1:2@3", fits=fits)) is not None:
        job, attempt = taken
        print(job.id, attempt.number, flush=True)
        attempts.end(attempt, Ended(reason="succeeded", at=now()))
"""


@pytest.mark.slow
def test_processes_that_look_and_take_at_once_get_each_job_once_and_leave_none(
    catalog: Catalog, catalog_at: Path | str
) -> None:
    jobs = set()
    for number in range(60):
        asked = request(str(number), priority=number % 3, preemptible=number % 2 == 0)
        jobs.add(catalog.attempts.submit(asked.model_copy(update={"project": f"project-{number % 7}"})).id)

    said = _of_processes(TAKES, catalog_at, count=5)

    assert sorted(line for lines in said for line in lines) == sorted(f"{job} 1" for job in jobs)
    assert catalog.jobs.counts() == {"succeeded": 60}
    assert catalog.attempts.at_work("local") == []


def _of_processes(code: str, catalog_at: Path | str, *, count: int) -> list[list[str]]:
    """What processes print that begin at once, each with the catalog's URL as its argument."""
    url = f"sqlite:///{catalog_at}" if isinstance(catalog_at, Path) else catalog_at
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, url], **pipes) for _ in range(count)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * count
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=100) for process in processes]
        assert [told for _, told in said] == [""] * count
        return [lines.splitlines() for lines, _ in said]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# Keys --------------------------------------------------------------------------------------------------------------


def test_whoever_asks_again_with_a_key_gets_the_job_of_the_first_time_even_once_it_has_ended(catalog: Catalog) -> None:
    first = submit(catalog, key="nightly", args=("1",))
    assert submit(catalog, key="nightly", args=("1",)) == first
    catalog.attempts.end(taken(catalog)[1], ended("user"))

    again = submit(catalog, key="nightly", args=("1",))

    assert (again.id, again.state) == (first.id, "failed")
    assert take(catalog) is None
    assert submit(catalog, args=("1",)).id != first.id  # without a key each is its own


def test_where_it_was_asked_for_makes_it_no_other_job(catalog: Catalog) -> None:
    first = submit(catalog, key="k", python="/usr/bin/python3", inherited={"PATH": "/a"})

    assert submit(catalog, key="k", python="/opt/python", inherited={"PATH": "/b"}).id == first.id


@pytest.mark.parametrize(
    "other",
    [
        {"args": ("2",)},
        {"environment": {"A": "1"}},
        {"resources": Resources(cpus=2)},
        {"retry": Retry(0)},
        {"priority": 1},
        {"name": "other"},
    ],
)
def test_a_key_that_stands_for_something_else_is_a_conflict_and_nothing_is_queued(
    catalog: Catalog, other: dict[str, Any]
) -> None:
    first = submit(catalog, key="nightly")

    with pytest.raises(Conflict, match=f"'nightly' is that of job {first.id}, which runs something else"):
        submit(catalog, **{"key": "nightly", **other})

    assert [job.id for job in catalog.jobs.list()] == [first.id]


def test_of_threads_that_ask_with_one_key_at_once_all_get_one_job(catalog: Catalog) -> None:
    for number in range(3):
        got = at_once(8, lambda _, key=f"key {number}": submit(catalog, key=key).id)

        assert len(set(got)) == 1
    assert len(catalog.jobs.list()) == 3


@pytest.mark.slow
def test_of_processes_that_ask_with_one_key_at_once_all_get_one_job(catalog: Catalog, catalog_at: Path | str) -> None:
    code = "import sys; from mms_sdk.storage.catalog import Catalog; from mms_sdk.schema.job import JobRequest\n"
    code += "catalog = Catalog(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
    code += "for n in range(20):\n"
    code += (
        "    asked = {'kind': 'cell', 'name': 'x', 'key': str(n), 'spec': {'bundle': '0' * 64, 'entrypoint': 'c'}}\n"
    )
    code += "    print(catalog.attempts.submit(JobRequest.model_validate(asked)).id)"
    url = f"sqlite:///{catalog_at}" if isinstance(catalog_at, Path) else catalog_at
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, url], **pipes) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=100)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()

    assert [len(set(each)) for each in told] == [20] * 3
    assert told[0] == told[1] == told[2]
    assert sorted(job.id for job in catalog.jobs.list(limit=100)) == sorted(told[0])


# Its end -----------------------------------------------------------------------------------------------------------

STATES: list[tuple[Reason, JobState]] = [
    ("succeeded", "succeeded"),
    ("user", "failed"),
    ("oom", "failed"),
    ("timeout", "failed"),
    ("cancelled", "cancelled"),
]


@pytest.mark.parametrize(("reason", "state"), STATES)
def test_what_would_come_again_is_not_tried_again(catalog: Catalog, reason: Reason, state: JobState) -> None:
    job = submit(catalog, retry=Retry(5))
    attempt = taken(catalog)[1]
    told = ended(reason, detail="why", exit_code=3, lines=("last", "words"), error={"type": "E", "message": "m"})

    assert catalog.attempts.end(attempt, told) == state

    now_ = catalog.jobs.get(job.id)
    assert (now_.state, now_.ended_at) == (state, AT)
    assert now_.error == (None if reason == "succeeded" else {"title": reason, "detail": "why"})
    assert catalog.attempts.of(job.id) == [attempt.model_copy(update={"ended": told})]
    assert take(catalog) is None
    assert catalog.attempts.at_work("local") == []


@pytest.mark.parametrize(("reason", "state"), [("infra", "failed"), ("lost", "lost")])
def test_what_was_not_its_doing_is_tried_again_so_often_and_then_ends(
    catalog: Catalog, reason: Reason, state: JobState
) -> None:
    job = submit(catalog, retry=Retry(2, wait_s=0))
    states = [catalog.attempts.end(taken(catalog)[1], ended(reason, detail=str(number))) for number in range(3)]

    assert states == ["queued", "queued", state]
    assert take(catalog) is None
    tries = catalog.attempts.of(job.id)
    assert [(each.number, each.ended and each.ended.detail) for each in tries] == [(1, "0"), (2, "1"), (3, "2")]
    last = catalog.jobs.get(job.id)
    assert (last.state, last.error, last.not_before) == (state, {"title": reason, "detail": "2"}, None)
    assert last.started_at == tries[0].started_at


def test_the_wait_doubles_before_each_further_attempt_and_has_a_bound(catalog: Catalog) -> None:
    job = submit(catalog, retry=Retry(100, wait_s=700))
    waits = []
    for _ in range(5):
        before = datetime.now(UTC)
        catalog.attempts.end(taken(catalog)[1], ended("lost"))
        due = catalog.jobs.get(job.id).not_before
        assert due is not None
        waits.append((datetime.fromisoformat(due) - before).total_seconds())
        assert take(catalog) is None  # not yet
        left = catalog.attempts.next_due_s("local")
        assert left == pytest.approx(waits[-1], abs=10)
        make_due(catalog)

    assert waits == pytest.approx([700, 1400, 2800, 3600, 3600], abs=10)


def test_even_the_hundredth_attempt_with_the_longest_wait_is_put_off_by_an_hour(catalog: Catalog) -> None:
    job = submit(catalog, retry=Retry(100, wait_s=3600))
    taken(catalog)
    last = Attempt(job=job.id, number=100, owner="", started_at=AT)
    with catalog.writing() as connection:
        connection.execute(sa.insert(tables.attempts).values(last.model_dump(mode="json")))

    assert catalog.attempts.end(last, ended("lost")) == "queued"

    due = datetime.fromisoformat(catalog.jobs.get(job.id).not_before or "")
    assert due - datetime.now(UTC) <= timedelta(hours=1)


def test_one_that_waits_to_be_tried_again_does_not_keep_others_waiting(catalog: Catalog) -> None:
    first = submit(catalog, "first", priority=5, retry=Retry(1, wait_s=0.3))
    submit(catalog, "second")
    catalog.attempts.end(taken(catalog)[1], ended("lost"))

    assert taken(catalog)[0].name == "second"
    assert take(catalog) is None
    time.sleep(0.35)
    job, attempt = taken(catalog)
    assert (job.id, attempt.number) == (first.id, 2)


@pytest.mark.parametrize("hours", [0.01, 5, 24 * 365])
def test_a_clock_that_is_set_back_keeps_nobody_waiting(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Nor does it bring anybody forward who waits as long as was meant."""
    for name in ("a", "b"):
        submit(catalog, name, retry=Retry(5, wait_s=10))
    _, attempt = taken(catalog)
    catalog.attempts.end(attempt, ended("infra"))
    later = (datetime.now(UTC) + timedelta(hours=hours, seconds=10)).isoformat(timespec="milliseconds")
    with catalog.writing() as connection:
        put_back = sa.update(tables.jobs).where(tables.jobs.c.id == attempt.job)
        connection.execute(put_back.values(not_before=later.replace("+00:00", "Z")))

    assert [taken(catalog)[0].name for _ in range(2)] == ["a", "b"]

    for job, attempt in catalog.attempts.at_work("local"):
        catalog.attempts.end(attempt, ended("infra"))
        assert 0 < (catalog.attempts.next_due_s("local") or 0) <= 20, job
    assert take(catalog) is None


def test_when_something_is_due_next(catalog: Catalog) -> None:
    due_s = catalog.attempts.next_due_s
    assert due_s("local") is None
    submit(catalog, "patient", retry=Retry(1, wait_s=100))
    submit(catalog, "quick", retry=Retry(1, wait_s=10))
    assert due_s("local") == 0
    first, second = taken(catalog), taken(catalog)
    assert due_s("local") is None
    catalog.attempts.end(first[1], ended("lost"))
    assert due_s("local") == pytest.approx(100, abs=5)
    catalog.attempts.end(second[1], ended("lost"))
    assert due_s("local") == pytest.approx(10, abs=5)
    assert due_s("ray") is None
    make_due(catalog)
    assert due_s("local") == 0


def test_an_attempt_ends_once_and_the_first_end_stays(catalog: Catalog) -> None:
    job = submit(catalog)
    attempt = taken(catalog)[1]

    assert catalog.attempts.end(attempt, ended("succeeded")) == "succeeded"
    assert catalog.attempts.end(attempt, ended("lost")) is None

    assert catalog.jobs.get(job.id).state == "succeeded"
    (told,) = catalog.attempts.of(job.id)
    assert told.ended == ended("succeeded")


def test_the_end_of_an_attempt_before_is_not_that_of_the_one_that_runs(catalog: Catalog) -> None:
    job = submit(catalog, retry=Retry(1, wait_s=0))
    first = taken(catalog)[1]
    catalog.attempts.end(first, ended("lost"))
    second = taken(catalog)[1]

    assert catalog.attempts.end(first, ended("succeeded")) is None
    assert not catalog.attempts.runs(first, "9:9@9")

    assert catalog.jobs.get(job.id).state == "starting"
    assert catalog.attempts.end(second, ended("succeeded")) == "succeeded"


def test_of_threads_that_end_one_attempt_at_once_one_does(catalog: Catalog) -> None:
    reasons: list[Reason] = ["succeeded", "user", "lost", "cancelled"]
    for _ in range(3):
        job = submit(catalog, retry=Retry(0))
        attempt = taken(catalog)[1]

        told = at_once(8, lambda number, attempt=attempt: catalog.attempts.end(attempt, ended(reasons[number % 4])))

        (state,) = [each for each in told if each is not None]
        assert catalog.jobs.get(job.id).state == state
        (only,) = catalog.attempts.of(job.id)
        assert only.ended is not None
        assert only.ended.reason == reasons[told.index(state) % 4]


def test_an_attempt_is_looked_after_by_whoever_was_last_said_to(catalog: Catalog) -> None:
    job = submit(catalog)
    attempt = taken(catalog)[1]

    assert catalog.attempts.runs(attempt, "7:8@9")
    assert (catalog.jobs.get(job.id).state, catalog.jobs.get(job.id).owner) == ("running", "7:8@9")
    assert catalog.attempts.of(job.id)[0].owner == "7:8@9"

    catalog.attempts.end(attempt, ended("succeeded"))
    assert not catalog.attempts.runs(attempt, "1:1@1")
    assert catalog.jobs.get(job.id).owner == "7:8@9"


# Cancelling --------------------------------------------------------------------------------------------------------


def test_what_waits_is_cancelled_for_good(catalog: Catalog) -> None:
    job = submit(catalog)

    assert catalog.attempts.cancel_waiting(job.id)

    told = catalog.jobs.get(job.id)
    assert (told.state, told.error) == (
        "cancelled",
        {"title": "cancelled", "detail": "it was cancelled while it waited"},
    )
    assert told.ended_at is not None
    assert take(catalog) is None
    assert not catalog.attempts.cancel_waiting(job.id)


def test_one_that_waits_to_be_tried_again_is_cancelled_too(catalog: Catalog) -> None:
    job = submit(catalog)
    catalog.attempts.end(taken(catalog)[1], ended("lost"))

    assert catalog.attempts.cancel_waiting(job.id)
    assert catalog.attempts.next_due_s("local") is None
    make_due(catalog)
    assert take(catalog) is None


def test_what_runs_has_ended_is_not_there_or_has_no_engine_is_not_cancelled_in_the_queue(catalog: Catalog) -> None:
    runs = submit(catalog)
    taken(catalog)
    has_ended = submit(catalog)
    catalog.attempts.end(taken(catalog)[1], ended("succeeded"))
    here = catalog.jobs.start("train", "flowers", {})

    for job in (runs.id, has_ended.id, here.id, "nothing"):
        assert not catalog.attempts.cancel_waiting(job)
    states = {job.id: job.state for job in catalog.jobs.list()}
    assert states == {runs.id: "starting", has_ended.id: "succeeded", here.id: "running"}


def test_of_taking_and_cancelling_at_once_one_happens(catalog: Catalog) -> None:
    for _ in range(10):
        job = submit(catalog)

        def either(number: int, job: str = job.id) -> bool:
            return catalog.attempts.cancel_waiting(job) if number else take(catalog) is not None

        took, cancelled = at_once(2, either)

        assert took != cancelled
        assert catalog.jobs.get(job.id).state == ("starting" if took else "cancelled")
        assert len(catalog.attempts.of(job.id)) == took
        if took:
            catalog.attempts.end(catalog.attempts.of(job.id)[0], ended("succeeded"))


def test_jobs_of_an_engine_are_left_to_it_when_the_catalog_looks_for_lost_ones(catalog: Catalog) -> None:
    waits, runs = submit(catalog, priority=-1), submit(catalog)
    assert catalog.attempts.runs(taken(catalog)[1], f"{os.getpid()}:1.00@never")

    assert catalog.jobs.reconcile() == []

    assert (catalog.jobs.get(waits.id).state, catalog.jobs.get(runs.id).state) == ("queued", "running")
