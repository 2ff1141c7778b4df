"""Training within a job that an engine runs: a further attempt at it goes on where the one before was cut off."""

from __future__ import annotations

import itertools
import logging
import os
from typing import NamedTuple

from mms_sdk.settings import JOB_VARIABLE, WORKER_VARIABLE
from mms_sdk.storage import processes
from mms_sdk.storage.checkpoints import STEP
from mms_sdk.storage.workspace import Workspace

_log = logging.getLogger("mms.training")
_runs = itertools.count(1)


class Within(NamedTuple):
    """Of which job a run is a part, and which of its parts.

    Attributes:
        job: The job's id; None for a run of its own.
        place: The how manyth run of its process it is: in each attempt the same code takes the same steps. 0 in a
            process that the job's own one started, since nobody knows which of several it is.
        resume: The run at the same place of an attempt before, if it got to a checkpoint.
    """

    job: str | None
    place: int
    resume: str | None


def within(workspace: Workspace) -> Within:
    """Where a run that begins now stands."""
    job = os.environ.get(JOB_VARIABLE)
    if job is None:
        return Within(None, 0, None)
    if os.environ.get(WORKER_VARIABLE) != str(os.getpid()):
        return Within(job, 0, None)
    place = next(_runs)
    earlier = processes.agreed_text(_earlier(workspace, job, place) if processes.is_first() else "")
    if earlier:
        _log.warning("run %d of job %s goes on from train job %s, which an attempt before began", place, job, earlier)
    return Within(job, place, earlier or None)


def _earlier(workspace: Workspace, job: str, place: int) -> str:
    for part in reversed(workspace.catalog.jobs.parts(job)):
        if part.kind == "train" and part.spec.get("place") == place:
            folder = workspace.job_folder(part.id) / "checkpoints"
            if folder.is_dir() and any(STEP.fullmatch(path.name) for path in folder.iterdir()):
                return part.id
    return ""
