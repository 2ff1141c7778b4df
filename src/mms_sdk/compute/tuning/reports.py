"""The metric of a running trial as it comes: what its script reports, and the epochs that it trains.

Nobody waits for anybody: the trial appends to logs, the study reads them from where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mms_sdk.compute.tuning.trial import REPORTS
from mms_sdk.errors import Unavailable
from mms_sdk.schema.job import Job
from mms_sdk.storage import metric_log
from mms_sdk.storage.workspace import Workspace

_ASK_S = 0.5  # a train job is there for at least an epoch; the catalog is not asked more often


class Reports:
    """What one attempt has told so far.

    Args:
        workspace: Whose catalog and logs.
        trial: The attempt's job.
        owner: Its process, by which its train jobs are found.
        metric: What is read of it all.
    """

    def __init__(self, workspace: Workspace, trial: Job, *, owner: str, metric: str) -> None:
        self._workspace = workspace
        self._trial = trial
        self._owner = owner
        self._metric = metric
        self._train: list[Job] = []
        self._offsets: dict[str, int] = {}
        self._asked = 0.0
        self._reported: float | None = None
        self.seen: set[str] = set()

    def new(self, *, last: bool = False) -> Iterator[tuple[int, float]]:
        """Steps and values that came since; `last` if nothing can come afterwards."""
        for row in self._lines(self._trial.id):
            self._reported = float(row[self._metric])
            yield row["step"], self._reported
        if last or time.monotonic() - self._asked > _ASK_S:
            self._asked = time.monotonic()
            # One that is away for the moment is asked again; at the end it has to answer.
            with contextlib.nullcontext() if last else contextlib.suppress(Unavailable):
                jobs = self._workspace.catalog.jobs
                self._train = list(jobs.begun_by(self._owner, kind="train", since=self._trial.id))
        for job in self._train:
            for row in (line for line in self._lines(job.id) if "epoch" in line):
                self.seen |= row.keys() - {"step", "time", "epoch"}
                if self._metric in row:
                    yield row["epoch"], float(row[self._metric])

    @property
    def train_jobs(self) -> list[Job]:
        """All train jobs of the attempt that were found."""
        return self._train

    @property
    def trained(self) -> Job | None:
        """The last train job of the attempt that succeeded, once `new(last=True)` was read."""
        done = [job for job in self._train if job.state == "succeeded"]
        return done[-1] if done else None

    def value(self) -> float | None:
        """What the trial is worth: the last reported value, or else the metric of the best checkpoint; None for none.

        Of the best checkpoint, since that is what is registered.
        """
        if self._reported is not None:
            return self._reported
        found = (self.trained.result["metrics"] if self.trained else {}).get(self._metric)
        return None if found is None else float(found)

    def _lines(self, job: str) -> list[dict[str, Any]]:
        rows, self._offsets[job] = metric_log.read(self._log(job), self._offsets.get(job, 0))
        return rows

    def _log(self, job: str) -> Path:
        return self._workspace.root / "jobs" / job / REPORTS


def all_of(workspace: Workspace, trial: Job, metric: str) -> dict[int, float]:
    """What an ended attempt reported, by step; the first value of a step counts."""
    found: dict[int, float] = {}
    names = [trial.id, *trial.result.get("train_jobs", ())]
    for name in names:
        rows, _ = metric_log.read(workspace.root / "jobs" / name / REPORTS)
        for row in rows:
            if metric in row and (name == trial.id or "epoch" in row):
                found.setdefault(row["step" if name == trial.id else "epoch"], float(row[metric]))
    return found
