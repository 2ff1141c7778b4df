"""Bulk prediction as a job."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job
from mms_sdk.schema.names import parse_dataset_ref, parse_model_ref
from mms_sdk.schema.prediction import PredictJob
from mms_sdk.service.jobs import Tell
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage import retention

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])


@router.post("", status_code=202, **needs("editor"))
def predict_in_bulk(service: Service, asked: PredictJob) -> Job:
    """Starts predicting every row of a dataset or folder; the job's file is `predictions.parquet`."""
    from mms_sdk.compute.inference import bulk
    from mms_sdk.compute.inference.predictor import BULK_BUCKETS, Predictor

    if (asked.dataset is None) == (asked.source is None):
        raise InvalidRequest("bulk prediction reads a dataset or a source; name exactly one of the two")
    workspace = service.workspace
    row = workspace.catalog.models.resolve(parse_model_ref(asked.model))
    what = f"model {row['model']}@{row['version']}"
    ref = parse_dataset_ref(asked.dataset) if asked.dataset is not None else None
    snapshot = None
    if ref:
        dataset = workspace.dataset(ref.name)
        snapshot = dataset.snapshot(retention.resolve(dataset, ref.snapshot))
        snapshot.split_rows(ref.split)
    source = service.resolved(asked.source) if asked.source is not None else None

    def work(job: Job, tell: Tell) -> dict[str, object]:
        folder = workspace.artifact(row["artifact"], digest=row["digest"], what=what)
        predictor = Predictor(folder, buckets=BULK_BUCKETS, max_pixels=service.settings.max_pixels)
        to = workspace.job_folder(job.id) / "predictions.parquet"
        if ref is not None and snapshot is not None:
            told = bulk.predict_snapshot(predictor, snapshot, ref.split, to=to, top=asked.top, tell=tell)
            data = str(replace(ref, snapshot=snapshot.record.number))  # which rows, whatever is committed later
        else:
            assert source is not None
            told = bulk.predict_folder(predictor, source, to=to, top=asked.top, tell=tell)
            assert asked.source is not None
            data = asked.source.path
        return {**told, "model": f"{row['model']}@{row['version']}", "data": data}

    return service.jobs.submit("predict", row["model"], asked.model_dump(mode="json"), work)
