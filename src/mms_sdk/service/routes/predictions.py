"""Bulk prediction as a job."""

from __future__ import annotations

from fastapi import APIRouter

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job
from mms_sdk.schema.lineage import MODEL, Reference
from mms_sdk.schema.prediction import PredictJob
from mms_sdk.service.described import begun
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service
from mms_sdk.storage.lineage import exact

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])


@router.post("", status_code=202, **needs("editor"))
def predict_in_bulk(service: Service, asked: PredictJob) -> Job:
    """Starts predicting every row of a dataset or folder; the job's file is `predictions.parquet`."""
    if (asked.dataset is None) == (asked.source is None):
        raise InvalidRequest("bulk prediction reads a dataset or a source; name exactly one of the two")
    inputs = {"model": exact(service.workspace, Reference.of(f"{MODEL}{asked.model}"))}
    if asked.dataset is not None:
        inputs["data"] = exact(service.workspace, Reference.of(asked.dataset))
    # Which version and rows, whatever is committed later.
    named = {"model": inputs["model"].plain, "dataset": inputs["data"].plain if "data" in inputs else None}
    read = {"source": service.resolved(asked.source)} if asked.source is not None else {}
    return begun(
        service, "predict", inputs["model"].name, asked.model_copy(update=named | read), on=asked.on, inputs=inputs
    )
