"""Datasets and their snapshots."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from mms_sdk.schema.dataset import DatasetInfo, IngestSpec
from mms_sdk.schema.job import Job
from mms_sdk.schema.names import Name
from mms_sdk.service.jobs import Tell
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service, ServiceState

Number = Annotated[int, Query(ge=1, le=99_999_999)]

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.get("", **needs("viewer"))
def list_datasets(service: Service) -> list[DatasetInfo]:
    """All datasets, each at its newest snapshot."""
    return [_info(service, name, None) for name in service.workspace.dataset_names()]


@router.get("/{name}", **needs("viewer"))
def get_dataset(service: Service, name: Name, snapshot: Number | None = None) -> DatasetInfo:
    """One dataset at a snapshot."""
    return _info(service, name, snapshot)


@router.post("/{name}:ingest", status_code=202, **needs("editor"))
def ingest_dataset(service: Service, name: Name, spec: IngestSpec) -> Job:
    """Starts bringing a source into a dataset, which is made if it is not there."""
    from mms_sdk.compute.data.ingest import ingest

    service.check_source(spec.source.path)

    def work(job: Job, tell: Tell) -> dict[str, object]:
        dataset = service.workspace.open_or_create_dataset(name)
        folder = service.workspace.job_folder(job.id)
        snapshot, report = ingest(dataset, spec, job=job.id, folder=folder, tell=tell)
        return {"snapshot": snapshot.number, "rows": snapshot.rows, "report": report.model_dump(mode="json")}

    return service.jobs.submit("ingest", name, spec.model_dump(mode="json"), work)


@router.post("/{name}:verify", status_code=202, **needs("editor"))
def verify_dataset(service: Service, name: Name) -> Job:
    """Starts reading every byte of a dataset and comparing digests; damage ends the job as failed, naming the file."""
    dataset = service.workspace.dataset(name)

    def work(_: Job, __: Tell) -> dict[str, object]:
        parts, size = dataset.verify()
        return {"snapshots": len(dataset.snapshots()), "parts": parts, "bytes": size}

    return service.jobs.submit("verify", name, {}, work)


def _info(service: ServiceState, name: str, number: int | None) -> DatasetInfo:
    dataset = service.workspace.dataset(name)
    opened = dataset.snapshot(number)
    record = opened.record
    return DatasetInfo(
        name=name,
        snapshot=record.number,
        snapshots=len(dataset.snapshots()),
        rows=record.rows,
        bytes=opened.bytes,
        columns=record.columns,
        splits=record.splits,
        statistics=record.statistics,
        provenance=record.provenance,
        created_at=record.created_at,
        message=record.message,
        location=str(dataset.folder),
    )
