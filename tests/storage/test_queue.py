"""Who is next: priorities, shares of projects, quotas, and who makes room."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mms_sdk.errors import Conflict, NotFound
from mms_sdk.schema.job import Attempt, Ended, Job, JobRequest, JobSpec, Resources
from mms_sdk.schema.quota import Quota
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import now
from mms_sdk.storage.queue import Given, Taken, is_within, taken_by
from mms_sdk.told import duration

CORES = 8


@pytest.fixture
def catalog(catalog_at: Any) -> Iterator[Catalog]:
    catalog = Catalog(catalog_at)
    yield catalog
    catalog.close()


def fits(spec: JobSpec, taken: Sequence[Given]) -> Given | None:
    cpus = spec.resources.cpus or CORES
    if taken and cpus + sum(given["cpus"] for given in taken) > CORES:
        return None
    return {"cpus": cpus, "gpus": [], "memory": spec.resources.memory or 0}


def submit(catalog: Catalog, name: str, *, project: str = "default", cpus: int = 1, **asked: Any) -> str:
    spec = JobSpec(bundle="0" * 64, entrypoint="a.py", resources=Resources(cpus=cpus), **asked)
    return catalog.attempts.submit(JobRequest(kind="script", name=name, spec=spec, project=project)).id


def take(catalog: Catalog) -> tuple[Job, Attempt] | None:
    return catalog.attempts.take(engine="local", owner="1:2@3", fits=fits)


def take_all(catalog: Catalog) -> list[str]:
    taken = iter(lambda: take(catalog), None)
    return [job.name for job, _ in taken]


def end(catalog: Catalog, job: str, reason: Any = "succeeded") -> None:
    catalog.attempts.end(catalog.attempts.of(job)[-1], Ended(reason=reason, at=now()))


def yielding(catalog: Catalog) -> list[str]:
    names = {job.id: job.name for job in catalog.jobs.list(limit=100)}
    return [names[attempt.job] for attempt in catalog.attempts.to_make_room(engine="local", fits=fits)]


def test_of_projects_of_equal_priority_the_one_that_has_least_is_next(catalog: Catalog) -> None:
    for number in range(6):
        submit(catalog, f"a{number}", project="a")
    for number in range(3):
        submit(catalog, f"b{number}", project="b", cpus=2)

    assert take_all(catalog) == ["a0", "b0", "a1", "a2", "b1", "a3"]  # of 2 cores each, the older job
    assert take(catalog) is None


def test_priority_comes_before_shares(catalog: Catalog) -> None:
    submit(catalog, "a0", project="a")
    submit(catalog, "b0", project="b")
    submit(catalog, "a1", project="a", priority=1)
    submit(catalog, "a2", project="a", priority=2)

    assert take_all(catalog) == ["a2", "a1", "b0", "a0"]


def test_a_project_takes_no_more_than_its_quota_and_keeps_nobody_waiting(catalog: Catalog) -> None:
    catalog.quotas.set(Quota(project="a", cpus=2))
    first = [submit(catalog, f"a{number}", project="a", priority=9) for number in range(4)]
    submit(catalog, "b0", project="b")

    assert take_all(catalog) == ["a0", "a1", "b0"]
    end(catalog, first[0])
    assert take_all(catalog) == ["a2"]
    catalog.quotas.remove("a")
    assert take_all(catalog) == ["a3"]


def test_a_quota_counts_what_is_given_where_all_is_asked_for(catalog: Catalog) -> None:
    catalog.quotas.set(Quota(project="a", cpus=CORES - 1))
    spec = JobSpec(bundle="0" * 64, entrypoint="a.py")
    catalog.attempts.submit(JobRequest(kind="script", name="all", spec=spec, project="a"))

    assert take(catalog) is None


def test_quotas_are_kept_changed_and_taken_away(catalog: Catalog) -> None:
    catalog.quotas.set(Quota(project="b", gpus=1))
    catalog.quotas.set(Quota(project="a", memory=10))
    catalog.quotas.set(Quota(project="b", cpus=3))

    assert catalog.quotas.list() == [Quota(project="a", memory=10), Quota(project="b", cpus=3)]
    assert catalog.quotas.of("b") == Quota(project="b", cpus=3)
    assert catalog.quotas.of("c") is None
    catalog.quotas.remove("a")
    with pytest.raises(NotFound, match="project a has no quota"):
        catalog.quotas.remove("a")


def test_the_fewest_of_the_lowest_priority_make_room(catalog: Catalog) -> None:
    submit(catalog, "low-large", cpus=4, priority=-5, preemptible=True)
    submit(catalog, "low-small", cpus=1, priority=-5, preemptible=True)
    submit(catalog, "stays", cpus=1, priority=-9)
    submit(catalog, "middle", cpus=2, preemptible=True)
    assert len(take_all(catalog)) == 4
    assert yielding(catalog) == []  # nobody waits

    high = submit(catalog, "high", cpus=4, priority=3)
    assert yielding(catalog) == ["low-large"]  # with it alone there is room
    catalog.attempts.cancel_waiting(high)
    high = submit(catalog, "high", cpus=1, priority=3)
    assert yielding(catalog) == ["low-small"]
    catalog.attempts.cancel_waiting(high)
    submit(catalog, "high", cpus=8, priority=3)
    assert yielding(catalog) == []  # not even all of them together would be enough


def test_nobody_makes_room_for_an_equal(catalog: Catalog) -> None:
    submit(catalog, "runs", cpus=8, preemptible=True)
    assert take_all(catalog) == ["runs"]
    submit(catalog, "same", cpus=8)

    assert yielding(catalog) == []


def test_what_made_room_waits_again_and_has_lost_no_attempt(catalog: Catalog) -> None:
    job = submit(catalog, "a", retry={"times": 1, "wait_s": 0})
    for reason in ("preempted", "infra", "preempted", "preempted"):
        assert take_all(catalog) == ["a"]
        end(catalog, job, reason)
        assert catalog.jobs.get(job).state == "queued"
    take_all(catalog)
    end(catalog, job, "infra")

    assert catalog.jobs.get(job).state == "failed"
    kinds = [event.kind for event in catalog.events.list(job=job)]
    assert kinds.count("retrying") == 4


def test_a_key_stands_for_a_job_of_one_project(catalog: Catalog) -> None:
    spec = JobSpec(bundle="0" * 64, entrypoint="a.py")
    asked = JobRequest(kind="script", name="a", key="k", spec=spec, project="a")
    first = catalog.attempts.submit(asked)

    assert catalog.attempts.submit(asked) == first
    with pytest.raises(Conflict, match="a key stands for one job"):
        catalog.attempts.submit(asked.model_copy(update={"project": "b"}))


def test_shares_are_even_in_the_long_run(catalog: Catalog) -> None:
    """Three projects with jobs without end, of which one submits ten times as many as the others."""
    draw, names = random.Random(0), itertools.count()
    for project, count in (("a", 200), ("b", 40), ("c", 40)):
        for _ in range(count):
            submit(catalog, f"{project}{next(names)}", project=project)
    done: Counter[str] = Counter()
    running: list[Job] = []
    for _ in range(60):
        while taken := take(catalog):
            running.append(taken[0])
        done.update(job.project for job in running)
        end(catalog, running.pop(draw.randrange(len(running))).id)

    assert max(done.values()) - min(done.values()) <= 0.15 * sum(done.values())


@pytest.mark.parametrize(
    ("quota", "within"),
    [
        (None, True),
        (Quota(project="a"), True),
        (Quota(project="a", cpus=5), True),
        (Quota(project="a", cpus=4), False),
        (Quota(project="a", gpus=2), False),
        (Quota(project="a", gpus=3, memory=30), True),
        (Quota(project="a", memory=29), False),
    ],
    ids=str,
)
def test_a_quota_bounds_the_sum(quota: Quota | None, within: bool) -> None:
    assert is_within(quota, [Taken(1, 2, 10), Taken(2, 3, 20)]) is within


def test_what_is_given_of_several_nodes_counts_for_each() -> None:
    assert taken_by({"cpus": 2, "gpus": ["a", "b"], "memory": 5}) == Taken(2, 2, 5)
    assert taken_by({"cpus": 2, "gpus": 3, "memory": 5, "nodes": 4}) == Taken(12, 8, 20)


def test_what_waits_is_told_in_the_order_of_the_queue(catalog: Catalog, tmp_path: Path) -> None:
    for name, priority in (("a", 0), ("b", 3), ("c", 0), ("d", -1)):
        submit(catalog, name, priority=priority)

    assert [job.name for job in catalog.attempts.waiting("local", limit=3)] == ["b", "a", "c"]
    assert catalog.attempts.waiting("ray", limit=3) == []


def test_time_is_told_in_the_units_that_suit_it() -> None:
    for seconds, said in ((-1, "0.0 s"), (0.44, "0.4 s"), (59.4, "59 s"), (200, "3 min 20 s"), (18_420, "5 h 7 min")):
        assert duration(seconds) == said
    assert duration(2 * 86_400 + 4 * 3600 + 59) == "2 d 4 h"
    assert duration(86_400) == "1 d 0 h"
