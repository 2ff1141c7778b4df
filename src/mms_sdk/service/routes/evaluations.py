"""Evaluation as a job, and the evaluations of a version."""

from __future__ import annotations

from fastapi import APIRouter

from mms_sdk.schema.evaluation import EvaluateJob
from mms_sdk.schema.job import Job
from mms_sdk.schema.lineage import MODEL, Reference
from mms_sdk.schema.names import Name
from mms_sdk.service.described import begun
from mms_sdk.service.routes import needs
from mms_sdk.service.routes.models import resolved
from mms_sdk.service.state import Service
from mms_sdk.storage.lineage import exact

router = APIRouter(prefix="/v1", tags=["evaluations"])


@router.post("/evaluations", status_code=202, **needs("editor"))
def evaluate(service: Service, asked: EvaluateJob) -> Job:
    """Starts evaluating a version on the rows of a dataset; the job's file is `evaluation.json`."""
    inputs = {"model": exact(service.workspace, Reference.of(f"{MODEL}{asked.model}"))}
    if asked.against is not None:
        inputs["against"] = exact(service.workspace, Reference.of(f"{MODEL}{asked.against}"))
    inputs["data"] = data = exact(service.workspace, Reference.of(asked.dataset))
    snapshot = service.workspace.dataset(data.name).snapshot(data.number)
    for name in asked.slices:
        snapshot.column(name)
    against = inputs["against"].plain if "against" in inputs else None
    named = {"model": inputs["model"].plain, "dataset": data.plain, "against": against}
    return begun(service, "evaluate", inputs["model"].name, asked.model_copy(update=named), on=asked.on, inputs=inputs)


@router.get("/models/{name}/versions/{version}/evaluations", **needs("viewer"))
def list_evaluations(service: Service, name: Name, version: str) -> list[Job]:
    """The jobs that evaluated a version, newest first."""
    row = resolved(service, name, version)
    jobs = service.workspace.catalog.jobs.of(name, kind="evaluate", state="succeeded")
    return [job for job in jobs if job.result.get("model") == f"{name}@{row['version']}"]
