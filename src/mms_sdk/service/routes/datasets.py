"""Datasets and their snapshots."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import (
    Collect,
    Compact,
    DatasetInfo,
    DeleteRows,
    Expire,
    RenameColumns,
    SnapshotDiff,
    SnapshotInfo,
    TagSnapshot,
)
from mms_sdk.schema.job import Job
from mms_sdk.schema.names import Name, parse_dataset_ref, parse_snapshot
from mms_sdk.schema.specs import CleanSpec, ConcatSpec, IngestJob, JoinSpec
from mms_sdk.service.described import begun
from mms_sdk.service.jobs import Tell
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service, ServiceState
from mms_sdk.storage import edits, retention
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.layout import layout
from mms_sdk.storage.snapshots import OpenSnapshot

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.get("", **needs("viewer"))
def list_datasets(service: Service) -> list[DatasetInfo]:
    """All datasets, each at its newest snapshot."""
    return [_info(service, name, None) for name in service.workspace.dataset_names()]


@router.get("/{name}:diff", **needs("viewer"))  # before what would take all of it for a name
def diff_snapshots(service: Service, name: Name, older: str, newer: str | None = None) -> SnapshotDiff:
    """What became of a dataset from one snapshot to another, by number or tag; to the newest if left out."""
    dataset = service.workspace.dataset(name)
    return edits.diff(_open(dataset, older), _open(dataset, newer))


@router.get("/{name}", **needs("viewer"))
def get_dataset(service: Service, name: Name, snapshot: str | None = None) -> DatasetInfo:
    """One dataset at a snapshot, by number or tag; at its newest if left out."""
    return _info(service, name, snapshot)


@router.get("/{name}/snapshots", **needs("viewer"))
def list_snapshots(service: Service, name: Name) -> list[SnapshotInfo]:
    """A dataset's snapshots, newest first."""
    dataset = service.workspace.dataset(name)
    tags = retention.tags(dataset)
    records = [dataset.record(number) for number in reversed(dataset.snapshots())]
    return [
        SnapshotInfo(
            number=record.number,
            rows=record.rows,
            parts=len(record.parts),
            deleted=sum(part.rows - part.live for part in record.parts),
            created_at=record.created_at,
            message=record.message,
            tags=tuple(tag for tag, number in tags.items() if number == record.number),
        )
        for record in records
    ]


@router.post("/{name}:ingest", status_code=202, **needs("editor"))
def ingest_dataset(service: Service, name: Name, asked: IngestJob) -> Job:
    """Starts bringing a source into a dataset, which is made if it is not there."""
    read = asked.model_copy(update={"source": service.resolved(asked.source)})
    return begun(service, "ingest", name, read, on=asked.on, inputs={})


@router.post("/{name}:clean", status_code=202, **needs("editor"))
def clean_dataset(service: Service, name: Name, spec: CleanSpec) -> Job:
    """Starts cleaning what a dataset holds."""
    from mms_sdk.compute.data.clean_stored import clean

    dataset = service.workspace.dataset(name)

    def work(job: Job, tell: Tell) -> dict[str, object]:
        folder = service.workspace.job_folder(job.id)
        snapshot, report = clean(dataset, spec, job=job.id, folder=folder, tell=tell)
        return {"snapshot": snapshot.number, "rows": snapshot.rows, "report": report.model_dump(mode="json")}

    return service.jobs.submit("clean", name, spec.model_dump(mode="json"), work)


@router.post("/{name}:join", status_code=202, **needs("editor"))
def join_datasets(service: Service, name: Name, spec: JoinSpec) -> Job:
    """Starts joining two datasets to one of this name."""
    from mms_sdk.compute.data.join import join

    left, right = _of_ref(service, spec.left), _of_ref(service, spec.right)

    def work(job: Job, tell: Tell) -> dict[str, object]:
        dataset = service.workspace.open_or_create_dataset(name)
        snapshot, report = join(dataset, left, right, spec, job=job.id, tell=tell)
        return {"snapshot": snapshot.number, **report.model_dump()}

    return service.jobs.submit("join", name, spec.model_dump(mode="json"), work)


@router.post("/{name}:concat", status_code=202, **needs("editor"))
def concat_datasets(service: Service, name: Name, spec: ConcatSpec) -> Job:
    """Starts putting datasets end to end to one of this name."""
    from mms_sdk.compute.data.concat import concat

    those = [_of_ref(service, ref) for ref in spec.datasets]

    def work(job: Job, tell: Tell) -> dict[str, object]:
        dataset = service.workspace.open_or_create_dataset(name)
        snapshot = concat(dataset, those, spec, job=job.id, tell=tell)
        return {"snapshot": snapshot.number, "rows": snapshot.rows}

    return service.jobs.submit("concat", name, spec.model_dump(mode="json"), work)


@router.post("/{name}:verify", status_code=202, **needs("editor"))
def verify_dataset(service: Service, name: Name) -> Job:
    """Starts reading every byte of a dataset and comparing digests; damage ends the job as failed, naming the file."""
    dataset = service.workspace.dataset(name)

    def work(_: Job, __: Tell) -> dict[str, object]:
        parts, size = dataset.verify()
        return {"snapshots": len(dataset.snapshots()), "parts": parts, "bytes": size}

    return service.jobs.submit("verify", name, {}, work)


@router.post("/{name}:delete-rows", **needs("editor"))
def delete_rows(service: Service, name: Name, asked: DeleteRows) -> DatasetInfo:
    """Commits a snapshot without some rows."""
    dataset = service.workspace.dataset(name)
    done = edits.delete_rows(dataset, asked.rows, of=dataset.snapshot(asked.snapshot), message=asked.message)
    return _info(service, name, str(done.number))


@router.post("/{name}:rename-columns", **needs("editor"))
def rename_columns(service: Service, name: Name, asked: RenameColumns) -> DatasetInfo:
    """Commits a snapshot in which columns have other names, or are gone."""
    dataset = service.workspace.dataset(name)
    done = edits.rename_columns(dataset, asked.names, of=dataset.snapshot(asked.snapshot), message=asked.message)
    return _info(service, name, str(done.number))


@router.post("/{name}:compact", status_code=202, **needs("editor"))
def compact_dataset(service: Service, name: Name, asked: Compact) -> Job:
    """Starts putting small parts together."""
    dataset = service.workspace.dataset(name)

    def work(_: Job, __: Tell) -> dict[str, object]:
        before = dataset.snapshot()
        edits.compact(dataset, of=before, max_part_rows=asked.max_part_rows)
        after = dataset.record()
        return {
            "snapshot_before": before.record.number,
            "snapshot": after.number,
            "parts_before": len(before.record.parts),
            "parts": len(after.parts),
        }

    return service.jobs.submit("compact", name, asked.model_dump(), work)


@router.post("/{name}:expire", **needs("admin"))
def expire_snapshots(service: Service, name: Name, asked: Expire) -> list[int]:
    """Lets old snapshots go; answers with their numbers."""
    return retention.expire(service.workspace.dataset(name), keep=asked.keep)


@router.post("/{name}:collect", status_code=202, **needs("admin"))
def collect_garbage(service: Service, name: Name, asked: Collect) -> Job:
    """Starts removing folders that nothing refers to."""
    dataset = service.workspace.dataset(name)

    def work(_: Job, __: Tell) -> dict[str, object]:
        return asdict(retention.collect_garbage(dataset, grace_s=asked.grace_s))

    return service.jobs.submit("collect", name, asked.model_dump(), work)


@router.put("/{name}/tags/{tag}", **needs("editor"))
def put_tag(service: Service, name: Name, tag: str, asked: TagSnapshot) -> DatasetInfo:
    """Gives a snapshot a name that stays with it."""
    number = retention.tag(service.workspace.dataset(name), tag, asked.snapshot)
    return _info(service, name, str(number))


@router.delete("/{name}/tags/{tag}", status_code=204, **needs("editor"))
def delete_tag(service: Service, name: Name, tag: str) -> None:
    """Takes a name away."""
    retention.untag(service.workspace.dataset(name), tag)


def _open(dataset: Dataset, snapshot: str | None) -> OpenSnapshot:
    return dataset.snapshot(retention.resolve(dataset, None if snapshot is None else parse_snapshot(snapshot)))


def _of_ref(service: ServiceState, ref: str) -> OpenSnapshot:
    asked = parse_dataset_ref(ref)
    if asked.split is not None:
        raise InvalidRequest(f"a dataset is NAME or NAME@SNAPSHOT here, without a split; got {ref!r}")
    dataset = service.workspace.dataset(asked.name)
    return dataset.snapshot(retention.resolve(dataset, asked.snapshot))


def _info(service: ServiceState, name: str, snapshot: str | None) -> DatasetInfo:
    dataset = service.workspace.dataset(name)
    opened = _open(dataset, snapshot)
    record, lies, numbers = opened.record, layout(dataset, opened), dataset.snapshots()
    return DatasetInfo(
        name=name,
        snapshot=record.number,
        snapshots=len(numbers),
        newest=max(numbers, default=record.number),
        rows=record.rows,
        bytes=lies.bytes,
        columns=record.columns,
        splits=record.splits,
        statistics=record.statistics,
        provenance=record.provenance,
        created_at=record.created_at,
        message=record.message,
        location=dataset.store.url,
        layout=lies,
    )
