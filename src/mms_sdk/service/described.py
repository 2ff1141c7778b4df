"""Begins work that is described: here, or as a job of an engine."""

from __future__ import annotations

from collections.abc import Mapping

from mms_sdk.compute import described
from mms_sdk.compute.described import Desk
from mms_sdk.schema.base import Schema
from mms_sdk.schema.job import DescribedKind, Job, JobRequest, JobSpec, On
from mms_sdk.schema.lineage import Reference
from mms_sdk.service.jobs import Tell
from mms_sdk.service.state import ServiceState
from mms_sdk.service.submitting import submitted


def begun(
    service: ServiceState,
    kind: DescribedKind,
    name: str,
    asked: Schema,
    *,
    on: On | None,
    inputs: Mapping[str, Reference],
) -> Job:
    """Begins it; the job that does it.

    Args:
        service: The app's state.
        kind: Which work.
        name: What it works on.
        asked: The description, in which references are exact.
        on: The engine that does it; None for this process.
        inputs: What it reads, by label.

    Raises:
        InvalidRequest: It asks for more than there is.
        Conflict: Its key stands for another job.
    """
    request = asked.model_dump(mode="json", exclude={"on"})
    if on is None:
        most = service.settings.max_pixels

        def work(job: Job, tell: Tell) -> described.Result:
            desk = Desk(workspace=service.workspace, job=job.id, name=name, tell=tell, max_pixels=most)
            return described.do(kind, request, desk)

        return service.jobs.submit(kind, name, request, work, inputs=inputs)
    spec = JobSpec(
        request=request,
        inputs={label: str(each) for label, each in inputs.items()},
        **on.model_dump(exclude={"engine", "project", "key"}),
    )
    return submitted(
        service, JobRequest(kind=kind, name=name, spec=spec, engine=on.engine, project=on.project, key=on.key)
    )
