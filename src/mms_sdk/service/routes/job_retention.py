"""How long what jobs left is kept."""

from __future__ import annotations

import time
from dataclasses import asdict

from fastapi import APIRouter

from mms_sdk.compute.engines import environments
from mms_sdk.schema.job import Job, Progress
from mms_sdk.schema.job_retention import CleanJobs
from mms_sdk.service.jobs import Tell
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage import job_retention

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_TELL_EVERY_S = 1.0


@router.post(":clean", status_code=202, **needs("admin"))
def clean_jobs(service: Service, asked: CleanJobs) -> Job:
    """Starts removing what old jobs left, code that no job needs any more, and environments that nobody used so long.

    What is recorded of the jobs stays.
    """
    workspace = service.workspace

    def work(_: Job, tell: Tell) -> dict[str, object]:
        told_at = time.monotonic()

        def done(jobs: int, total: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at > _TELL_EVERY_S:
                told_at = time.monotonic()
                tell(Progress(done=jobs, total=total, what="jobs cleaned"))

        cleaned = job_retention.clean(
            workspace, older_than_s=asked.older_than, keep=asked.keep, dry_run=asked.dry_run, tell=done
        )
        before = time.time() - asked.older_than
        unused = environments.remove_unused(workspace.root, before=before, dry_run=asked.dry_run)
        return {
            **asdict(cleaned),
            "environments": len(unused),
            "environment_bytes": sum(unused),
            "dry_run": asked.dry_run,
        }

    return service.jobs.submit("clean-jobs", "jobs", asked.model_dump(), work)
