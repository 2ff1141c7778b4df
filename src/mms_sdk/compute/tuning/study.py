"""A study that runs: trials in processes of their own, watched from here; the catalog is told how each ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms_sdk import told
from mms_sdk.compute.engines.folder import ARTIFACTS
from mms_sdk.compute.engines.machine import cores_here, environment, gpus_here
from mms_sdk.compute.tuning import code as codes
from mms_sdk.compute.tuning.asking import Asker, Ended
from mms_sdk.compute.tuning.devices import share
from mms_sdk.compute.tuning.history import attempts_of, past_of
from mms_sdk.compute.tuning.processes import TrialProcess, end_orphan, stop
from mms_sdk.compute.tuning.reports import Reports
from mms_sdk.compute.tuning.trial import ERROR, GIVEN, LOG, MODEL, VARIABLE
from mms_sdk.errors import InvalidRequest, JobFailed, MmsError
from mms_sdk.schema.job import Job, Progress
from mms_sdk.schema.tuning import Params, TrialSpec, study_of
from mms_sdk.schema.tuning import StudySpec as Spec
from mms_sdk.settings import ARTIFACTS_VARIABLE
from mms_sdk.storage import files
from mms_sdk.storage.workspace import Workspace

_LOOK_S = 0.05
_TERMINATED = 143
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a trial that runs.

    Attributes:
        spec: What it was given.
        job: Its job.
        process: What runs.
        reports: What it tells.
    """

    spec: TrialSpec
    job: Job
    process: TrialProcess
    reports: Reports


def start(workspace: Workspace, name: str, spec: Spec, content: bytes) -> Job:
    """Records a study, with its code beside it, as a job of this process."""
    job = workspace.catalog.jobs.start("tune", name, spec.model_dump(mode="json"))
    with _end_recorded(workspace, job):
        codes.keep(workspace.job_folder(job.id), spec.code, content)
    return job


def run(workspace: Workspace, job: Job, say: Say) -> None:
    """Runs what is left of a study, and records its end.

    Args:
        workspace: Where it is recorded.
        job: The study, begun or reopened by this process.
        say: Told about each trial that ended.

    Raises:
        JobFailed: Too many trials failed, or none gave a value.
        Damaged: Its script is not what it began with.
    """
    with _end_recorded(workspace, job):
        result = Running(workspace, job, say).run()
    workspace.catalog.jobs.finish(job.id, "succeeded", result=result)


class Running:
    """A study between its beginning and its end.

    Args:
        workspace: Where it is recorded.
        job: The study.
        say: Told about each trial that ended.
    """

    def __init__(self, workspace: Workspace, job: Job, say: Say) -> None:
        self._workspace = workspace
        self._jobs = workspace.catalog.jobs
        self._job = job
        self._say = say
        self._spec = study_of(job.spec)
        self._folder = workspace.job_folder(job.id)
        self._script = codes.kept(self._folder, self._spec.code)
        if not Path(self._spec.working_folder).is_dir():
            raise InvalidRequest(
                f"trials run where their study was begun; {self._spec.working_folder} is no folder any more; make it"
            )
        self._gpus = gpus_here(os.environ)
        self._live: dict[int, Attempt] = {}
        self._failures = 0
        self._take_up()

    def run(self) -> dict[str, Any]:
        """Runs trials until there are as many as were asked for; returns the study's result."""
        try:
            while True:
                for slot in range(self._spec.parallel):
                    if slot not in self._live and self._more():
                        self._begin(slot, *self._asker.ask())
                if not self._live:
                    return self._result()
                for slot, attempt in list(self._live.items()):
                    self._look(slot, attempt)
                time.sleep(_LOOK_S)
        finally:
            self._stop_all()

    def _take_up(self) -> None:
        rows = self._jobs.parts(self._job.id)
        for row in (each for each in rows if not each.ended or each.state == "lost"):
            end_orphan(self._workspace.job_folder(row.id))
            self._jobs.finish(row.id, "lost", error={"title": "lost", "detail": "its study was stopped"})
        groups = attempts_of(self._jobs.parts(self._job.id))
        self._attempts = {number: len(group) for number, group in groups.items()}
        self._killed = {number: sum(_was_killed(each) for each in group) for number, group in groups.items()}
        past = [past_of(self._workspace, self._spec, groups[number]) for number in sorted(groups)]
        self._asker = Asker(self._spec, past)
        self._ended: dict[int, Ended] = {at: each.ended for at, each in enumerate(past) if each.ended}
        self._jobs_of = {number: group[-1].id for number, group in groups.items()}

    def _more(self) -> bool:
        return self._asker.waiting or self._asker.count < self._spec.trials

    def _begin(self, slot: int, number: int, params: Params) -> None:
        attempt = self._attempts[number] = self._attempts.get(number, 0) + 1
        spec = TrialSpec(number=number, attempt=attempt, params=params, metric=self._spec.metric)
        name = f"{self._job.name[:50]}-{number}"
        job = self._jobs.start("trial", name, spec.model_dump(mode="json"), parent=self._job.id)
        self._jobs_of[number] = job.id
        folder = self._workspace.job_folder(job.id)
        code = {**self._spec.code.model_dump(mode="json"), "path": str(self._script)}
        files.write_durable(folder / GIVEN, orjson.dumps({**spec.model_dump(mode="json"), "code": code}))
        variables = self._variables(slot, folder)
        process = TrialProcess(folder, environment=variables, working_folder=self._spec.working_folder)
        reports = Reports(self._workspace, job, owner=process.owner, metric=self._spec.metric)
        self._live[slot] = Attempt(spec=spec, job=job, process=process, reports=reports)

    def _variables(self, slot: int, folder: Path) -> dict[str, str]:
        stores = not self._workspace.datasets.local
        seen = environment(os.environ, more=self._spec.environment, stores=stores)
        own = share(os.environ, slot, self._spec.parallel, gpus=self._gpus, cores=cores_here())
        # Unbuffered: what it printed is in its log when it is killed.
        told = {VARIABLE: str(folder), ARTIFACTS_VARIABLE: str(folder / ARTIFACTS), "PYTHONUNBUFFERED": "1"}
        return {**seen, **own, **self._workspace.variables(), **told}

    def _look(self, slot: int, attempt: Attempt) -> None:
        code = attempt.process.ended()
        number = attempt.spec.number
        for step, value in attempt.reports.new(last=code is not None):
            prunes = self._asker.prunes(number, step, value)
            if prunes and code is None:  # one that ended by itself is complete, whatever would have become of it
                stop([attempt.process])
                self._prune(slot, attempt, step, value)
                return
        if code is not None:
            self._conclude(slot, attempt, code)

    def _prune(self, slot: int, attempt: Attempt, step: int, value: float) -> None:
        why = f"{self._spec.metric} {told.number(value)} at step {step} was not among the best"
        self._end(slot, attempt, "pruned", error={"title": "pruned", "detail": why}, value=value)

    def _conclude(self, slot: int, attempt: Attempt, code: int) -> None:
        value = attempt.reports.value()
        if code < 0 or code == _TERMINATED:
            self._run_again(slot, attempt, code)
        elif code:
            self._end(slot, attempt, "failed", error=_error(attempt.process.folder, code))
        elif value is None:
            self._end(slot, attempt, "failed", error=self._never_came(attempt.reports.seen))
        elif value - value != 0:  # infinite, or no number
            error = {"title": "no-number", "detail": f"{self._spec.metric} was {value}, which compares with nothing"}
            self._end(slot, attempt, "failed", error=error)
        else:
            self._end(slot, attempt, "complete", value=value)

    def _run_again(self, slot: int, attempt: Attempt, code: int) -> None:
        number = attempt.spec.number
        error = {"title": "killed", "detail": f"its process was ended by signal {-code if code < 0 else 15}"}
        self._killed[number] = self._killed.get(number, 0) + 1
        if self._killed[number] > 1:  # by the system, most likely, since it takes too much memory
            error["detail"] += ", as before; it may have taken more memory than there is"
            self._end(slot, attempt, "failed", error=error)
            return
        self._jobs.finish(attempt.job.id, "failed", error=error)
        self._say(f"trial {number}: {error['detail']}; it is run once more")
        del self._live[slot]
        self._begin(slot, number, attempt.spec.params)

    def _end(
        self,
        slot: int,
        attempt: Attempt,
        ended: Ended,
        *,
        value: float | None = None,
        error: Mapping[str, str] | None = None,
    ) -> None:
        number = attempt.spec.number
        result = self._found(attempt, value)
        state = {"complete": "succeeded", "pruned": "cancelled", "failed": "failed"}
        self._jobs.finish(attempt.job.id, state[ended], result=result, error=error)  # type: ignore[arg-type]
        del self._live[slot]
        self._ended[number] = ended
        self._asker.tell(number, ended, value if ended == "complete" else None)
        self._keep_the_best_model(number)
        progress = Progress(done=len(self._ended), total=self._spec.trials, what="trials")
        self._jobs.progress(self._job.id, progress)
        self._say(self._line(attempt, value, error))
        self._count_failures(ended, attempt, error)

    def _found(self, attempt: Attempt, value: float | None) -> dict[str, Any]:
        found: dict[str, Any] = {"train_jobs": [job.id for job in attempt.reports.train_jobs]}
        if value is not None:
            found["value"] = value
        if trained := attempt.reports.trained:
            found["metrics"] = trained.result["metrics"]
        return {**found, "rungs": self._asker.rungs(attempt.spec.number)}

    def _count_failures(self, ended: Ended, attempt: Attempt, error: Mapping[str, str] | None) -> None:
        self._failures = self._failures + 1 if ended == "failed" else 0
        if error and self._failures >= self._spec.max_failures:
            raise JobFailed(
                f"{told.counted(self._failures, 'trial')} in a row failed, the last, trial {attempt.spec.number}, "
                f"with: {error['detail']}; its log is {attempt.process.folder / LOG}; correct the script and "
                f"begin a new study"
            )

    def _never_came(self, seen: set[str]) -> dict[str, str]:
        came = (
            f"what came was {', '.join(sorted(seen))}" if seen else "nothing was trained or reported in its workspace"
        )
        return {
            "title": "no-metric",
            "detail": f"the script ended without {self._spec.metric}; {came}; see metric=, or mms.trial.report",
        }

    def _keep_the_best_model(self, number: int) -> None:
        best = self._asker.best()
        for each in {number, *(at for at, ended in self._ended.items() if ended == "complete")} - {best}:
            model = self._workspace.job_folder(self._jobs_of[each]) / MODEL
            if model.exists():
                files.remove_tree(model)

    def _line(self, attempt: Attempt, value: float | None, error: Mapping[str, str] | None) -> str:
        given = ", ".join(f"{name}={told.cell(each)}" for name, each in attempt.spec.params.items())
        worth = f"{error['title']}, {error['detail']}" if error else f"{self._spec.metric} {told.cell(value)}"
        return f"trial {attempt.spec.number} of {self._spec.trials}: {worth}; {given}"

    def _result(self) -> dict[str, Any]:
        ends = list(self._ended.values())
        counts = {name: ends.count(name) for name in ("complete", "pruned", "failed")}
        best = self._asker.best()
        if best is None:
            raise JobFailed(
                f"no trial of {len(ends)} gave a value: {counts['pruned']} ended early, {counts['failed']} failed; see "
                f"their logs"
            )
        value = self._jobs.get(self._jobs_of[best]).result["value"]
        return {"trials": len(ends), **counts, "best": best, "value": value}

    def _stop_all(self) -> None:
        live = list(self._live.values())
        stop([attempt.process for attempt in live])
        for attempt in live:
            error = {"title": "cancelled", "detail": "its study was stopped; resumed, it runs again"}
            self._jobs.finish(attempt.job.id, "cancelled", error=error)
        self._jobs.reconcile()  # train jobs that did not come to write down their end


def _was_killed(job: Job) -> bool:
    return bool(job.error and job.error.get("title") == "killed")


def _error(folder: Path, code: int) -> dict[str, str]:
    try:
        read = orjson.loads((folder / ERROR).read_bytes())
        return {"title": str(read["type"]), "detail": f"{read['type']}: {read['message']}"}
    except (OSError, ValueError, KeyError):  # it ended without Python, e.g. by os._exit
        return {"title": "exited", "detail": f"its process ended with code {code}"}


@contextlib.contextmanager
def _end_recorded(workspace: Workspace, job: Job) -> Iterator[None]:
    jobs = workspace.catalog.jobs
    try:
        yield
    except MmsError as error:
        jobs.finish(job.id, "failed", error={"title": error.code(), "detail": error.message})
        raise
    except KeyboardInterrupt as stopped:
        jobs.finish(job.id, "cancelled", error={"title": "cancelled", "detail": "stopped by the person"})
        stopped.add_note(f"the study is {job.id}; ws.studies.get({job.id!r}).resume() goes on with it")
        raise
    except BaseException as error:
        jobs.finish(job.id, "failed", error={"title": type(error).__name__, "detail": str(error)})
        raise
