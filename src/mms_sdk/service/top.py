"""What runs on an engine and what it takes, and what waits, and for what."""

from __future__ import annotations

from mms_sdk.compute.engines.base import Engine
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Attempt, Job, JobSpec
from mms_sdk.schema.quota import Quota, TopJob
from mms_sdk.storage.ids import now
from mms_sdk.storage.queue import Taken, by_project, is_within, taken_by
from mms_sdk.storage.workspace import Workspace

_MOST = 500


def top(workspace: Workspace, engine: Engine) -> list[TopJob]:
    """Jobs that run, the most important first, and behind them those that wait, in the order of the queue.

    Args:
        workspace: Whose.
        engine: On which.
    """
    at_work = workspace.catalog.attempts.at_work(engine.name)
    runs = [_told(job, attempt, engine) for job, attempt in at_work]
    runs.sort(key=lambda each: (-each.priority, each.since))
    has = by_project(at_work)
    quotas = {each.project: each for each in workspace.catalog.quotas.list()}
    waits = workspace.catalog.attempts.waiting(engine.name, limit=_MOST)
    return runs + [_waits(job, place, quotas.get(job.project), has) for place, job in enumerate(waits)]


def check_quota(workspace: Workspace, engine: Engine, project: str, spec: JobSpec) -> None:
    """Refuses a job that its project's quota would keep waiting for ever.

    Raises:
        InvalidRequest: It asks for more than the project may take.
    """
    quota = workspace.catalog.quotas.of(project)
    if quota is None:
        return
    asked, room = spec.resources, engine.room()
    cpus = room.cpus if asked.cpus is None else asked.cpus
    gpus = len(room.gpus) if asked.gpus is None else asked.gpus
    wanted = Taken(gpus * asked.nodes, cpus * asked.nodes, (asked.memory or 0) * asked.nodes)
    if not is_within(quota, [wanted]):
        raise InvalidRequest(
            f"a job takes no more than its project may; it asks for {wanted._asdict()}, and the quota of {project!r} "
            f"is {quota.model_dump(exclude={'project'}, exclude_none=True)}; ask for less: what is left out is all "
            f"there is"
        )


def _told(job: Job, attempt: Attempt, engine: Engine) -> TopJob:
    return _row(job, attempt.started_at).model_copy(
        update={"given": taken_by(attempt.given)._asdict(), "footprint": engine.footprint(attempt)}
    )


def _waits(job: Job, place: int, quota: Quota | None, has: dict[str, Taken]) -> TopJob:
    asked = JobSpec.model_validate(job.spec).resources
    least = Taken((asked.gpus or 0) * asked.nodes, (asked.cpus or 1) * asked.nodes, (asked.memory or 0) * asked.nodes)
    if job.not_before is not None and job.not_before > now():
        reason = "its next attempt"
    elif not is_within(quota, [has.get(job.project, Taken()), least]):
        reason = "its project's quota"
    else:
        reason = "room" if place == 0 else "its turn"
    return _row(job, job.created_at).model_copy(update={"waits_for": reason})


def _row(job: Job, since: str) -> TopJob:
    return TopJob(
        id=job.id,
        name=job.name,
        project=job.project,
        priority=job.priority,
        state=job.state,
        since=since,
        given={},
    )
