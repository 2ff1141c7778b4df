"""Evaluations: how well a version answers, as numbers, as a page and as a file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.client import evaluation_pages as pages
from mms_sdk.client.api import Api
from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.evaluation import ClassScore, Comparison, Estimate, Mistake, Slice
from mms_sdk.schema.evaluation import Evaluation as EvaluationRecord
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.storage import files


class Evaluation:
    """What was measured of a version. Made by `ws.evaluate()`, and kept: `version.evaluations`."""

    def __init__(self, api: Api, job: JobRecord) -> None:
        self._api = api
        self._job = job

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value:.4f}" for name, value in list(self._job.result["metrics"].items())[:3])
        return f"<evaluation {self.id} of {self.model} on {self.data}: {told}>"

    def __str__(self) -> str:
        return pages.text(self.record)

    def _repr_html_(self) -> str:
        return pages.page(self.record)

    @cached_property
    def record(self) -> EvaluationRecord:
        """All of it."""
        return EvaluationRecord.model_validate_json(self._api.read(f"/v1/jobs/{self.id}/artifacts/evaluation.json"))

    @property
    def id(self) -> str:
        """Of the job that measured it."""
        return self._job.id

    @property
    def model(self) -> str:
        """The version, e.g. `flowers@3`."""
        return str(self._job.result["model"])

    @property
    def data(self) -> str:
        """The rows, with the number of their snapshot."""
        return str(self._job.result["data"])

    @property
    def rows(self) -> int:
        """How many were measured."""
        return int(self._job.result["rows"])

    @property
    def metrics(self) -> dict[str, Estimate]:
        """By name: `value`, and the interval from `low` to `high`."""
        return self.record.metrics

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall, F1 and area of each class."""
        return self.record.classes

    @property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each class by the class that was said, in order of `classes`."""
        return self.record.confusion

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The answers that are furthest off, those first."""
        return self.record.mistakes

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Metrics of some of the rows."""
        return self.record.slices

    @property
    def comparison(self) -> Comparison | None:
        """With another version, if there was one."""
        return self.record.comparison

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the numbers are believed."""
        return self.record.notes

    def save(self, to: str | Path) -> Path:
        """Writes the report, in place of a file of that name.

        Args:
            to: `report.html`, one page that needs nothing beside it, or `report.json`.

        Raises:
            InvalidRequest: It has another ending, or its folder does not exist.
            NotWritable, StorageFull: It cannot be written.
        """
        path = report_path(to)
        if path.suffix == ".html":
            content = pages.document(self.record).encode("utf-8", "replace")
        else:
            content = orjson.dumps(self.record.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        files.replace(path, content)
        return path


def report_path(to: str | Path) -> Path:
    """Where a report is written.

    Raises:
        InvalidRequest: It can be no report, or its folder does not exist.
    """
    path = Path(to).expanduser()
    if path.suffix not in (".html", ".json") or path.is_dir():
        raise InvalidRequest(f"a report is written to report.html or report.json; got {path}; change its ending")
    if not path.parent.is_dir():
        raise InvalidRequest(f"a report is written into an existing folder; {path.parent} is none; make it first")
    return path


def listed(api: Api, jobs: Iterable[JobRecord], *, title: str) -> Table[Evaluation]:
    """Evaluations as a table, by the jobs that made them."""
    found = [Evaluation(api, job) for job in jobs]
    return Table(found, title=title, rows=map(_row, found))


def _row(each: Evaluation) -> dict[str, Any]:
    result = each._job.result
    told = {name: f"{value:.4f}" for name, value in list(result["metrics"].items())[:3]}
    return {
        "evaluation": each.id,
        "data": each.data,
        "rows": each.rows,
        "metrics": ", ".join(f"{name} {value}" for name, value in told.items()),
        "against": result["against"] or "",
        "created": each._job.created_at[:16].replace("T", " "),
    }
