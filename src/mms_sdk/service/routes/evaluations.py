"""Evaluation as a job, and the evaluations of a version."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter

from mms_sdk.schema.evaluation import EvaluateJob
from mms_sdk.schema.job import Job
from mms_sdk.schema.names import Name, parse_dataset_ref, parse_model_ref
from mms_sdk.service.jobs import Tell
from mms_sdk.service.routes import needs
from mms_sdk.service.routes.models import resolved
from mms_sdk.service.state import Service, ServiceState
from mms_sdk.storage import files, retention

router = APIRouter(prefix="/v1", tags=["evaluations"])


@router.post("/evaluations", status_code=202, **needs("editor"))
def evaluate(service: Service, asked: EvaluateJob) -> Job:
    """Starts evaluating a version on the rows of a dataset; the job's file is `evaluation.json`."""
    workspace = service.workspace
    row = workspace.catalog.models.resolve(parse_model_ref(asked.model))
    other = workspace.catalog.models.resolve(parse_model_ref(asked.against)) if asked.against is not None else None
    ref = parse_dataset_ref(asked.dataset)
    dataset = workspace.dataset(ref.name)
    snapshot = dataset.snapshot(retention.resolve(dataset, ref.snapshot))
    snapshot.split_rows(ref.split)
    for name in asked.slices:
        snapshot.column(name)

    def work(job: Job, tell: Tell) -> dict[str, Any]:
        from mms_sdk.compute.evaluation.evaluate import evaluate

        told = evaluate(
            _opened(service, row),
            snapshot,
            ref.split,
            asked=asked,
            against=None if other is None else _opened(service, other),
            job=job.id,
            tell=tell,
        )
        files.publish(workspace.job_folder(job.id) / "evaluation.json", orjson.dumps(told.model_dump(mode="json")))
        values = {name: each.value for name, each in told.metrics.items() if each.value is not None}
        against = told.comparison and told.comparison.model
        return {"model": told.model, "data": told.data, "rows": told.rows, "against": against, "metrics": values}

    return service.jobs.submit("evaluate", row["model"], asked.model_dump(mode="json"), work)


@router.get("/models/{name}/versions/{version}/evaluations", **needs("viewer"))
def list_evaluations(service: Service, name: Name, version: str) -> list[Job]:
    """The jobs that evaluated a version, newest first."""
    row = resolved(service, name, version)
    jobs = service.workspace.catalog.jobs.of(name, kind="evaluate", state="succeeded")
    return [job for job in jobs if job.result.get("model") == f"{name}@{row['version']}"]


def _opened(service: ServiceState, row: dict[str, Any]) -> Any:
    from mms_sdk.compute.evaluation.evaluate import Version
    from mms_sdk.compute.inference.export import read_card
    from mms_sdk.compute.inference.predictor import Predictor, bulk_buckets

    ref = f"{row['model']}@{row['version']}"
    folder = service.workspace.artifact(row["artifact"], digest=row["digest"], what=f"model {ref}")
    return Version(
        ref=ref,
        predictor=Predictor(folder, buckets=bulk_buckets(read_card(folder)), max_pixels=service.settings.max_pixels),
    )
