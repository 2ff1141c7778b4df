"""Work that is described and not coded: ingests, evaluations, bulk predictions.

The service does it in its own process, or an engine's worker does it on a machine of its choice, by the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Schema
from mms_sdk.schema.evaluation import EvaluateJob
from mms_sdk.schema.job import JobKind, Progress
from mms_sdk.schema.names import parse_dataset_ref, parse_model_ref
from mms_sdk.schema.prediction import PredictJob
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.settings import ServerSettings, default_catalog, default_datasets
from mms_sdk.storage import files
from mms_sdk.storage.workspace import Workspace

Tell = Callable[[Progress], None]
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where work is done.

    Attributes:
        workspace: Whose.
        job: The job's id.
        name: What it works on.
        tell: Called with the progress.
        max_pixels: Largest picture decoded; bounds the memory that one takes.
    """

    workspace: Workspace
    job: str
    name: str
    tell: Tell
    max_pixels: int = ServerSettings().max_pixels

    @property
    def folder(self) -> Path:
        """What the job leaves; every attempt at it finds there what those before it had done."""
        return self.workspace.job_folder(self.job)


def ingest(desk: Desk, asked: IngestSpec) -> Result:
    """Brings a source into a dataset, which is made if it is not there."""
    from mms_sdk.compute.data.ingest import ingest as bring

    dataset = desk.workspace.open_or_create_dataset(desk.name)
    snapshot, report = bring(dataset, asked, job=desk.job, folder=desk.folder, tell=desk.tell)
    return {"snapshot": snapshot.number, "rows": snapshot.rows, "report": report.model_dump(mode="json")}


def evaluate(desk: Desk, asked: EvaluateJob) -> Result:
    """Evaluates a version on rows whose answer is known; the job's file is `evaluation.json`."""
    from mms_sdk.compute.evaluation.evaluate import evaluate as measure

    ref = parse_dataset_ref(asked.dataset)
    told = measure(
        _version(desk, asked.model),
        desk.workspace.dataset(ref.name).snapshot(_number(ref.snapshot)),
        ref.split,
        asked=asked,
        against=None if asked.against is None else _version(desk, asked.against),
        job=desk.job,
        tell=desk.tell,
    )
    files.replace(desk.folder / "evaluation.json", orjson.dumps(told.model_dump(mode="json")))
    values = {name: each.value for name, each in told.metrics.items() if each.value is not None}
    against = told.comparison and told.comparison.model
    return {"model": told.model, "data": told.data, "rows": told.rows, "against": against, "metrics": values}


def predict(desk: Desk, asked: PredictJob) -> Result:
    """Predicts every row of a dataset or folder; the job's file is `predictions.parquet`."""
    from mms_sdk.compute.inference import bulk
    from mms_sdk.compute.inference.predictor import BULK_BUCKETS, Predictor

    predictor = Predictor(_artifact(desk, asked.model), buckets=BULK_BUCKETS, max_pixels=desk.max_pixels)
    to = bulk.Output(path=desk.folder / "predictions.parquet", top=asked.top, save_every=asked.save_every)
    if asked.dataset is not None:
        ref = parse_dataset_ref(asked.dataset)
        snapshot = desk.workspace.dataset(ref.name).snapshot(_number(ref.snapshot))
        told = bulk.predict_snapshot(predictor, snapshot, ref.split, to=to, tell=desk.tell)
        return {**told, "model": asked.model, "data": asked.dataset}
    assert asked.source is not None
    told = bulk.predict_folder(predictor, asked.source, to=to, tell=desk.tell)
    return {**told, "model": asked.model, "data": asked.source.path}


_WORK: Mapping[JobKind, tuple[type[Schema], Callable[[Desk, Any], Result]]] = {
    "ingest": (IngestSpec, ingest),
    "evaluate": (EvaluateJob, evaluate),
    "predict": (PredictJob, predict),
}


def do(kind: JobKind, request: Mapping[str, Any], desk: Desk) -> Result:
    """Does work that is described, with references to snapshots and versions that are exact.

    Args:
        kind: Which.
        request: The description, as JSON.
        desk: Where.

    Returns:
        The job's result, as JSON.

    Raises:
        MmsError: It cannot be done.
    """
    schema, work = _WORK[kind]
    return work(desk, schema.model_validate(request))


def do_job(root: Path, job: str) -> Result:
    """Does the work of a job of an engine, in its worker.

    Args:
        root: The workspace.
        job: The job's id.
    """
    workspace = Workspace(root, catalog=default_catalog(), datasets=default_datasets(), make=False)
    try:
        jobs = workspace.catalog.jobs
        record = jobs.get(job)
        if record.kind not in _WORK:
            raise InvalidRequest(f"described work is one of {', '.join(_WORK)}; job {job} is a {record.kind}")
        desk = Desk(workspace=workspace, job=job, name=record.name, tell=lambda progress: jobs.progress(job, progress))
        return do(record.kind, record.spec["request"], desk)
    finally:
        workspace.close()


def _artifact(desk: Desk, model: str) -> Path:
    row = desk.workspace.catalog.models.resolve(parse_model_ref(model))
    return desk.workspace.artifact(row["artifact"], digest=row["digest"], what=f"model {model}")


def _version(desk: Desk, model: str) -> Any:
    from mms_sdk.compute.evaluation.evaluate import Version
    from mms_sdk.compute.inference.export import read_card
    from mms_sdk.compute.inference.predictor import Predictor, bulk_buckets

    folder = _artifact(desk, model)
    buckets = bulk_buckets(read_card(folder))
    return Version(ref=model, predictor=Predictor(folder, buckets=buckets, max_pixels=desk.max_pixels))


def _number(snapshot: int | str | None) -> int:
    assert isinstance(snapshot, int)  # whoever asked for the work made it exact
    return snapshot
