"""Jobs: one piece of work with one recorded end."""

from __future__ import annotations

from typing import Any, Literal

from mms_sdk.schema.base import Schema

JobKind = Literal[
    "ingest",
    "clean",
    "join",
    "concat",
    "verify",
    "compact",
    "collect",
    "follow",
    "train",
    "tune",
    "trial",
    "evaluate",
    "predict",
]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "lost"]
ENDED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled", "lost"})


class Progress(Schema):
    """How far a job is, in units of its own.

    Attributes:
        done: Units finished.
        total: Units in all; 0 while unknown.
        what: The unit and stage, e.g. `pictures checked`.
    """

    done: int = 0
    total: int = 0
    what: str = ""


class Job(Schema):
    """A job as the catalog keeps it.

    Attributes:
        id: Sorts by time of creation.
        name: What the job works on, e.g. the dataset or model.
        spec: What was asked for.
        result: What came out, once it succeeded.
        error: A problem+json object, once it failed.
        owner: Process that does the work, `pid:start time`; how a lost job is recognised.
        parent: The job it is a part of: of a trial, its study.
    """

    id: str
    kind: JobKind
    name: str
    state: JobState
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    progress: Progress = Progress()
    spec: dict[str, Any] = {}
    result: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    owner: str = ""
    parent: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end, good or bad."""
        return self.state in ENDED


class JobPage(Schema):
    """Some jobs, newest first, and where the next page begins."""

    jobs: tuple[Job, ...]
    next: str | None = None
