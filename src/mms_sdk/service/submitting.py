"""Puts jobs into the queue of an engine, once it is clear that they can run."""

from __future__ import annotations

import os

from mms_sdk.compute.engines.environments import check, interpreter
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job, JobRequest
from mms_sdk.schema.lineage import Reference
from mms_sdk.service.state import ServiceState
from mms_sdk.service.top import check_quota
from mms_sdk.storage.diffs import keep_diff
from mms_sdk.storage.lineage import exact


def submitted(service: ServiceState, asked: JobRequest) -> Job:
    """Puts a job into the queue of its engine, and starts it if there is room.

    Raises:
        NotFound: There is no such secret, or nothing that it is to read.
        InvalidRequest: It asks for more than there is.
        Conflict: Its key stands for another job.
    """
    read = {label: str(exact(service.workspace, Reference.of(text))) for label, text in asked.spec.inputs.items()}
    own = {"python": interpreter(), "inherited": environment(os.environ), "inputs": read}
    filled = asked.spec.model_copy(update=own)
    if asked.parent is not None:
        service.workspace.catalog.jobs.get(asked.parent)
    engine = service.engine(asked.engine)
    service.workspace.secrets.check(filled.secrets)
    check(filled.requirements)
    engine.check(filled)
    check_quota(service.workspace, engine, asked.project, filled)
    if filled.bundle is not None and filled.entrypoint not in (files := service.workspace.bundles.names(filled.bundle)):
        raise InvalidRequest(f"an entrypoint is a file of the bundle; got {filled.entrypoint!r}; it has {files[:20]}")
    request = asked.model_copy(update={"spec": filled})
    job = service.workspace.catalog.attempts.submit(request)
    keep_diff(service.workspace.root / "jobs" / job.id, asked.diff)
    engine.start_waiting()
    return service.workspace.catalog.jobs.get(job.id)
