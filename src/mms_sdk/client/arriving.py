"""What arrives over time: streams and watched folders, each with the jobs that record what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mms_sdk.compute.data.follow import Following, follow
from mms_sdk.compute.data.ingest import ingest_opened
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.compute.data.streams import Stream
from mms_sdk.compute.data.watch import Pace, watch
from mms_sdk.errors import MmsError
from mms_sdk.schema.job import Job, JobKind
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.service.problems import as_problem
from mms_sdk.storage import noting
from mms_sdk.storage.workspace import Workspace


@contextlib.contextmanager
def recorded(
    workspace: Workspace, kind: JobKind, name: str, spec: Mapping[str, Any]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """A job that this process does here and now: it gets its recorded end, and the result that is filled in."""
    jobs = workspace.catalog.jobs
    job, result = jobs.start(kind, name, spec), dict[str, Any]()
    try:
        with noting.collected() as made:
            yield job, result
    except (KeyboardInterrupt, asyncio.CancelledError):
        jobs.finish(job.id, "cancelled", result=result, error={"title": "cancelled", "detail": "stopped by the person"})
        raise
    except BaseException as error:
        problem = as_problem(error)
        if not isinstance(error, MmsError):
            problem["detail"] = f"{type(error).__name__}: {error}"
        jobs.finish(job.id, "failed", error=problem)
        raise
    jobs.finish(job.id, "succeeded", result=result, made=made)


async def follow_stream(
    workspace: Workspace, name: str, stream: Stream, asked: Following, *, stop: threading.Event
) -> str:
    """Follows a stream as a job; returns the job's id. See `follow`."""
    dataset = workspace.open_or_create_dataset(name)
    spec = {
        "stream": stream.name,
        "type": type(stream).__name__,
        "batch": asdict(asked.batches),
        "clean": [step.model_dump(mode="json") for step in asked.clean],
        "split": asked.split.model_dump(mode="json"),
        "message": asked.message,
    }
    with recorded(workspace, "follow", name, spec) as (job, result):
        followed = await follow(
            dataset,
            stream,
            asked,
            job=job.id,
            folder=workspace.job_folder(job.id),
            tell=lambda progress: workspace.catalog.jobs.progress(job.id, progress),
            stop=stop,
        )
        result |= asdict(followed)
    return job.id


def watch_folder(
    workspace: Workspace, name: str, spec: IngestSpec, *, pace: Pace, say: Callable[[str], None], stop: threading.Event
) -> None:
    """Watches a folder; each round that finds something is an ingest job. See `watch`."""

    def bring(opened: Callable[[Path], Collection | Table]) -> str:
        dataset = workspace.open_or_create_dataset(name)
        with recorded(workspace, "ingest", name, spec.model_dump(mode="json")) as (job, result):
            folder = workspace.job_folder(job.id)
            snapshot, report = ingest_opened(
                dataset,
                spec,
                opened(folder),
                job=job.id,
                folder=folder,
                tell=lambda progress: workspace.catalog.jobs.progress(job.id, progress),
                if_nothing=False,
            )
            result |= {"snapshot": snapshot.number, "rows": snapshot.rows, "report": report.model_dump(mode="json")}
        left_out = report.found - report.already_present - report.kept
        told = f"{name}@{snapshot.number}: {report.kept:,} new"
        return f"{told}, {left_out:,} left out; job {job.id} lists them" if left_out else told

    watch(spec.source, bring, pace=pace, say=say, stop=stop)
