"""Datasets made by ingesting folders, in a test's temporary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.schema.cleaning import CleaningReport
from mms_sdk.schema.dataset import Snapshot
from mms_sdk.schema.job import Progress
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

TOLD: list[Progress] = []


def ingested(root: Path, photos: Path, *, color: Any = "auto", **spec: Any) -> tuple[Dataset, Snapshot, CleaningReport]:
    """Ingests a folder into the dataset `flowers` below a folder, as a job would."""
    dataset = Dataset.open_or_create(LocalStore(root / "flowers"), "flowers")
    job = root / "job"
    job.mkdir(exist_ok=True)
    TOLD.clear()
    wanted = IngestSpec(source=ImageFolder(photos, color=color), **spec)
    snapshot, report = ingest(dataset, wanted, job=job.name, folder=job, tell=TOLD.append)
    return dataset, snapshot, report
