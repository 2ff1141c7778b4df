"""Jobs that run in this process: one thread each, one recorded end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

from mms_sdk.errors import MmsError, Unavailable
from mms_sdk.schema.job import Job, JobKind, Progress
from mms_sdk.schema.lineage import Reference
from mms_sdk.service.problems import as_problem
from mms_sdk.storage import noting
from mms_sdk.storage.workspace import Workspace

Tell = Callable[[Progress], None]
Work = Callable[[Job, Tell], Mapping[str, Any]]
_log = logging.getLogger("mms.jobs")
_runners: WeakSet[JobRunner] = WeakSet()


class _Interrupted(BaseException):
    """A job's work is to end where it stands; nothing that handles errors is to take it for one."""


def interrupt_jobs() -> None:
    """Ends the jobs that run in this process, where they next tell their progress, and waits until they did."""
    for runner in list(_runners):
        runner.interrupt()


class JobRunner:
    """Runs jobs of the control plane and records what becomes of them.

    Args:
        workspace: Whose catalog they are recorded in.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="mms-job")
        self._closed = False
        self._interrupted = False
        _runners.add(self)

    def submit(
        self,
        kind: JobKind,
        name: str,
        spec: Mapping[str, Any],
        work: Work,
        *,
        inputs: Mapping[str, Reference] = MappingProxyType({}),
    ) -> Job:
        """Records a job and starts it.

        Args:
            kind: What sort of work.
            name: What it works on.
            spec: What was asked for.
            work: Does it; gets the job and a function to tell its progress to, returns the result as JSON.
            inputs: What it reads, by label.

        Raises:
            Unavailable: The server is shutting down.
        """
        if self._closed:
            raise Unavailable("the server is shutting down and takes no new jobs; try again once it is back")
        job = self._workspace.catalog.jobs.start(kind, name, spec, inputs=inputs)
        self._threads.submit(self._run, job, work)
        return job

    def interrupt(self) -> None:
        """Ends the running jobs; they are recorded as cancelled."""
        self._interrupted = True
        self.close()

    def close(self) -> None:
        """Waits for the running jobs."""
        self._closed = True
        self._threads.shutdown()

    def _run(self, job: Job, work: Work) -> None:
        jobs = self._workspace.catalog.jobs
        try:
            with noting.collected() as made:
                result = work(job, partial(self._tell, job))
            jobs.finish(job.id, "succeeded", result=result, made=made)
        except _Interrupted:
            jobs.finish(job.id, "cancelled", error={"title": "cancelled", "detail": "stopped by the person"})
        except BaseException as error:  # noqa: BLE001 (whatever ended it, the job gets its recorded end)
            if not isinstance(error, MmsError):
                _log.error("job %s failed", job.id, exc_info=error)
            # The person whose job it is sees what went wrong, expected or not.
            problem = as_problem(error)
            if not isinstance(error, MmsError):
                problem["detail"] = f"{type(error).__name__}: {error}"
            jobs.finish(job.id, "failed", error=problem)

    def _tell(self, job: Job, progress: Progress) -> None:
        if self._interrupted:
            raise _Interrupted
        self._workspace.catalog.jobs.progress(job.id, progress)
