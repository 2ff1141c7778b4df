"""Datasets: bringing data in, and looking at what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mms_sdk.client import html
from mms_sdk.client.api import Api
from mms_sdk.client.jobs import Job
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import CleaningReport, CleanStep, DatasetInfo, ImageFolder, IngestSpec, Split
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.names import check_name, parse_dataset_ref
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace


class Dataset:
    """A dataset at one snapshot. It stays the same whatever is ingested later."""

    def __init__(self, info: DatasetInfo, workspace: Workspace | None) -> None:
        self.info = info
        self._workspace = workspace

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        return f"<dataset {self.ref}: {self.rows:,} rows, {self.num_classes} classes; {splits}>"

    def _repr_html_(self) -> str:
        told = {
            "rows": f"{self.rows:,}",
            "splits": ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items()),
            "classes": ", ".join(f"{name} {rows:,}" for name, rows in self.classes.items()),
            "columns": ", ".join(f"{column.name} ({column.kind})" for column in self.info.columns),
            "size": f"{self.info.bytes / 2**20:.1f} MiB",
            "location": self.info.location,
        }
        return html.facts(f"dataset {self.ref}", told)

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def ref(self) -> str:
        """The reference that names exactly these rows, e.g. `flowers@7`."""
        return f"{self.info.name}@{self.info.snapshot}"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.info.rows

    @property
    def splits(self) -> dict[str, int]:
        """Rows in each split."""
        return {name: self.info.splits[name] for name in ("train", "val", "test") if self.info.splits.get(name)}

    @property
    def classes(self) -> dict[str, int]:
        """Rows in each class, in order of the labels' codes."""
        counts = self.info.statistics.get("classes", {})
        return {label: counts.get(label, 0) for label in self.labels}

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of their codes."""
        return next((column.labels or () for column in self.info.columns if column.name == "label"), ())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def cleaning(self) -> CleaningReport | None:
        """What cleaning found when this snapshot was ingested."""
        told = self.info.provenance.get("cleaning")
        return None if told is None else CleaningReport.model_validate(told)

    @property
    def workspace(self) -> Workspace:
        """The workspace folder it lies in.

        Raises:
            InvalidRequest: It lies on a server.
        """
        if self._workspace is None:
            raise InvalidRequest(
                f"training in this process needs the data in this machine's workspace; {self.ref} lies on a server; use "
                f"mms.connect() without a URL there"
            )
        return self._workspace

    def open(self) -> OpenSnapshot:
        """The rows themselves: NumPy arrays by column, gathered by row number."""
        return self.workspace.dataset(self.name).snapshot(self.info.snapshot)


class Datasets:
    """All datasets of a workspace."""

    def __init__(self, api: Api, workspace: Workspace | None) -> None:
        self._api = api
        self._workspace = workspace

    def list(self) -> list[Dataset]:
        """Every dataset at its newest snapshot."""
        return [Dataset(info, self._workspace) for info in self._api.get("/v1/datasets", list[DatasetInfo])]

    def get(self, ref: str) -> Dataset:
        """A dataset by reference, e.g. `flowers` or `flowers@7`.

        Raises:
            DatasetNotFound, SnapshotNotFound: There is none.
        """
        asked = parse_dataset_ref(ref)
        if asked.split is not None:
            raise InvalidRequest(f"a dataset is NAME or NAME@SNAPSHOT here, without a split; got {ref!r}")
        info = self._api.get(f"/v1/datasets/{asked.name}", DatasetInfo, snapshot=asked.snapshot)
        return Dataset(info, self._workspace)

    def ingest(
        self,
        name: str,
        source: ImageFolder | str | Path,
        *,
        clean: Sequence[CleanStep] = (),
        split: Split | None = None,
        message: str = "",
        progress: bool = True,
    ) -> Dataset:
        """Brings what is new in a source into a dataset, as one new snapshot.

        Args:
            name: The dataset; made if it is not there.
            source: A source, or a folder with one sub-folder of pictures for each class.
            clean: Steps in order, e.g. `[mms.drop_unreadable(), mms.drop_duplicates()]`.
            split: Fractions of train, val and test; 0.8, 0.1 and 0.1 if left out.
            message: Kept with the snapshot.
            progress: Show a bar on a terminal.

        Raises:
            NothingToIngest: There is no usable row.
            DataError: A file is unreadable and no step drops such files, or a class is too small to split.
            StorageFull, NotWritable: It cannot be written; there is no new snapshot.
        """
        check_name(name, what="dataset")
        folder = source if isinstance(source, ImageFolder) else ImageFolder(source)
        folder = folder.model_copy(update={"path": str(Path(folder.path).expanduser().absolute())})
        spec = IngestSpec(source=folder, clean=tuple(clean), split=split or Split(), message=message)
        record = self._api.send("POST", f"/v1/datasets/{name}:ingest", JobRecord, spec.model_dump(mode="json"))
        job = Job(self._api, record).wait(progress=progress)
        return self.get(f"{name}@{job.result['snapshot']}")


def describe_cleaning(report: CleaningReport) -> list[tuple[str, int, str]]:
    """A cleaning report as rows of (step, dropped, first example)."""
    return [
        (step.step, step.dropped, f"{step.examples[0].source}: {step.examples[0].reason}" if step.examples else "")
        for step in report.steps
    ]


def as_rows(datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """Datasets as rows of a table."""
    return [
        {
            "dataset": dataset.ref,
            "rows": dataset.rows,
            "classes": dataset.num_classes,
            "splits": " ".join(f"{name}={rows}" for name, rows in dataset.splits.items()),
            "size": f"{dataset.info.bytes / 2**20:.1f} MiB",
            "created": dataset.info.created_at[:19],
        }
        for dataset in datasets
    ]
