"""How the processes of a training get on, judged by whoever looks: there is no daemon that would."""

from __future__ import annotations

import time

from mms_sdk.compute.monitoring.hanging import HangAlarm, ranks_of
from mms_sdk.schema.job import Job
from mms_sdk.schema.rank import Ranks
from mms_sdk.storage.heartbeat import beats
from mms_sdk.storage.workspace import Workspace

LOOK_EVERY_S = 10.0
"""How often streams look whether something hangs: many times within the least that an alarm waits for."""
_NEWEST = 50
_ALARM = HangAlarm()


def looked_at(workspace: Workspace, job: Job, *, alarm: HangAlarm = _ALARM) -> Ranks:
    """The processes of a job's training, of a script the newest one in it; what seems wrong becomes an event, once."""
    training = _training_of(workspace, job)
    if training is None:
        return Ranks()
    now = time.time()
    found = beats(workspace.job_folder(training.id))
    why = alarm.reason(found, now=now) if training.state == "running" else None
    if why is not None:
        about = training.parent if _is_of_engine(workspace, training.parent) else training.id
        workspace.catalog.events.alarm(about or training.id, why, mark=f"{training.id} {min(x.step for x in found)}")
    return Ranks(job=training.id, ranks=tuple(ranks_of(found, now=now)), alarm=why)


def look_at_all(workspace: Workspace) -> None:
    """Looks at what trains, of the newest trainings."""
    for job in workspace.catalog.jobs.list(limit=_NEWEST, kind="train"):
        if job.state == "running":
            looked_at(workspace, job)


def _training_of(workspace: Workspace, job: Job) -> Job | None:
    if job.kind == "train":
        return job
    return next(iter(workspace.catalog.jobs.list(limit=1, kind="train", parent=job.id)), None)


def _is_of_engine(workspace: Workspace, job: str | None) -> bool:
    return job is not None and workspace.catalog.jobs.get(job).engine is not None
