"""What jobs ran in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from mms_sdk.compute.engines import folder as names
from mms_sdk.errors import NotFound
from mms_sdk.schema.environment import Environment
from mms_sdk.schema.job import Job, JobSpec
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage.diffs import diff_in

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job}/environment", **needs("viewer"))
def get_environment(
    service: Service, job: str, attempt: Annotated[int | None, Query(ge=1, le=1000)] = None
) -> Environment:
    """What an attempt ran in; the newest if none is named."""
    found = service.workspace.catalog.jobs.get(job)
    if found.engine is None:
        raise NotFound(f"what an engine runs has an environment of its own; job {job}, a {found.kind}, has none")
    attempts = service.workspace.catalog.attempts.of(job)
    numbers = [each.number for each in attempts]
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"job {job} has no attempt {attempt}; there are {numbers or 'none yet'}")
    folder = service.workspace.root / "jobs" / job
    spec = JobSpec.model_validate(found.spec)
    about = Environment(
        attempt=0,
        revision=spec.revision,
        requirements=spec.requirements,
        diff=diff_in(folder),
        seeds=_seeds(service.workspace.catalog.jobs.parts(job)),
    )
    if not attempts:
        return about
    of = attempts[-1] if attempt is None else attempts[attempt - 1]
    about = about.model_copy(update={"attempt": of.number, "given": of.given})
    with contextlib.suppress(ValueError):  # the machine went down before it was on the disk
        told = names.read(names.attempt_folder(folder, of.number) / names.ENVIRONMENT) or {}
        return Environment.model_validate({**about.model_dump(), **told})
    return about


def _seeds(parts: Sequence[Job]) -> dict[str, int]:
    seeds = {part.id: part.spec.get("trainer", {}).get("seed") for part in parts if part.kind == "train"}
    return {job: seed for job, seed in seeds.items() if seed is not None}
