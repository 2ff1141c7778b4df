"""Studies: many trials of one script, each with other values, and what they found."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from mms_sdk import html, told
from mms_sdk.client.api import Api
from mms_sdk.client.jobs import Job, records, rows
from mms_sdk.client.study_views import Drawing, Importance, Outcome, history, parallel
from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidRequest, JobNotFound, NotFound
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.job import JobPage
from mms_sdk.schema.names import check_name, suggest_name
from mms_sdk.schema.tuning import (
    ASHA,
    Direction,
    Hyperband,
    Params,
    Sampler,
    StudySpec,
    better_way,
    space_of,
    study_of,
)
from mms_sdk.storage.workspace import Workspace

Shown = Literal["auto", "none"]
Script = str | Path | Callable[..., Any]
_TRIALS = 20


class Trial:
    """One trial of a study, as it was when last asked.

    Attributes:
        record: The job of its last attempt.
        attempts: How many there were; a trial whose process or study was killed is run again.
    """

    def __init__(self, api: Api, workspace: Workspace | None, attempts: Sequence[JobRecord], study: StudySpec) -> None:
        self._api = api
        self._workspace = workspace
        self._study = study
        self.record = attempts[-1]
        self.attempts = len(attempts)
        self.state = _state(attempts)

    def __repr__(self) -> str:
        return f"<trial {self.number}: {self._told_value()}; {_told_params(self.params)}>"

    def _repr_html_(self) -> str:
        return html.facts(f"trial {self.number}", self.facts())

    @property
    def number(self) -> int:
        """From 0, in order of beginning."""
        return int(self.record.spec["number"])

    @property
    def params(self) -> Params:
        """What it was given, by name."""
        return dict(self.record.spec["params"])

    @property
    def value(self) -> float | None:
        """The study's metric: of a complete trial its end, of a pruned one where it was ended; None for others."""
        value: float | None = self.record.result.get("value")
        return value

    @property
    def job(self) -> Job:
        """The job of its last attempt."""
        return Job(self._api, self.record)

    @property
    def result(self) -> Job:
        """The job that trained it, with its metrics and checkpoints.

        Raises:
            NotFound: It trained nothing that was recorded in this workspace.
        """
        jobs = self.record.result.get("train_jobs") or ()
        if not jobs:
            raise NotFound(f"trial {self.number} trained nothing; what it reported is in trial.reports")
        return Job(self._api, self._api.get(f"/v1/jobs/{jobs[-1]}", JobRecord))

    @cached_property
    def reports(self) -> dict[int, float]:
        """The metric by step: as the script reported it, or by epoch as it was trained."""
        found: dict[int, float] = {}
        metric = self._study.metric
        for job in (self.record.id, *self.record.result.get("train_jobs", ())):
            own = job == self.record.id
            for row in rows(self._api, job):
                if metric in row and (own or "epoch" in row):
                    found.setdefault(row["step" if own else "epoch"], float(row[metric]))
        return found

    def logs(self) -> str:
        """What the script printed, and the traceback if it failed."""
        return self._api.read(f"/v1/jobs/{self.record.id}/artifacts/log.txt").decode(errors="replace")

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Writes its model artefact, so that the best trial can be registered: `ws.models.register(name, study.best)`.

        Raises:
            NotFound: No model is kept of it.
            InvalidRequest: The workspace is a server's.
        """
        from mms_sdk.compute.inference.export import copy_model
        from mms_sdk.compute.tuning.trial import MODEL

        if self._workspace is None:
            raise InvalidRequest("a trial is exported where its workspace lies; this one is a server's; do it there")
        model = self._workspace.job_folder(self.record.id) / MODEL
        if not model.is_dir():
            raise NotFound(
                f"no model is kept of trial {self.number}: it is that of the best trial that a Trainer fitted; see "
                f"study.best, and trial.logs() for what went wrong"
            )
        copy_model(model, folder, metrics=metrics or {})

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        about: dict[str, Any] = {"trial": self.number, "state": self.state, self._study.metric: self.value}
        about |= self.params
        if self.attempts > 1:
            about["attempts"] = self.attempts
        if self.record.error:
            about["reason"] = self.record.error.get("detail", "")
        return {**about, "job": self.record.id}

    def _told_value(self) -> str:
        if self.state == "complete":
            return f"{self._study.metric} {told.cell(self.value)}"
        return f"{self.state}, {(self.record.error or {}).get('detail', '')}".removesuffix(", ")


class Study:
    """A study: a script, a search space, and trials. Made by `ws.tune()`; kept in the workspace.

    Attributes:
        record: Its job, as it was when last asked.
        spec: What was asked for.
    """

    def __init__(self, api: Api, workspace: Workspace | None, record: JobRecord) -> None:
        self._api = api
        self._workspace = workspace
        self.record = record
        self.spec = study_of(record.spec)

    def __repr__(self) -> str:
        trials = self.trials
        done = ", ".join(f"{count} {state}" for state, count in _counts(trials).items()) or "no trials yet"
        best = _best(trials, self.spec)
        return f"<study {self.id} of {self.record.name}, {self.state}: {done}" + (f"; best {best!r}>" if best else ">")

    def _repr_html_(self) -> str:
        trials = self.trials
        parts = [html.facts(f"study of {self.record.name}", self.facts())]
        if any(trial.state == "complete" for trial in trials):
            parts += [html.titled("by trial", history(self.spec, _outcomes(trials)).svg, level=4)]
            parts += [html.titled("all values", parallel(self.spec, _outcomes(trials)).svg, level=4)]
        return "".join([*parts, trials._repr_html_()])

    @property
    def id(self) -> str:
        """That of its job."""
        return self.record.id

    @property
    def state(self) -> str:
        """`running`, `succeeded`, `failed`, `cancelled` or `lost`."""
        return self.record.state

    @property
    def trials(self) -> Table[Trial]:
        """All trials that began, in order, as they are now."""
        groups: dict[int, list[JobRecord]] = {}
        for row in reversed(list(records(self._api, limit=500, parent=self.id))):
            groups.setdefault(row.spec["number"], []).append(row)
        found = [Trial(self._api, self._workspace, groups[number], self.spec) for number in sorted(groups)]
        return Table(found, title="trials", rows=map(_row, found))

    def trial(self, number: int) -> Trial:
        """One trial, by its number from 0.

        Raises:
            NotFound: It has not begun.
        """
        trials = self.trials
        for trial in trials:
            if trial.number == number:
                return trial
        begun = f"trials 0 to {len(trials) - 1}" if trials else "no trials yet"
        raise NotFound(f"study {self.id} has {begun}; got {number}")

    @property
    def best(self) -> Trial:
        """The complete trial with the best value.

        Raises:
            NotFound: No trial is complete.
        """
        found = _best(self.trials, self.spec)
        if found is None:
            raise NotFound(f"no trial of study {self.id} is complete; it is {self.state}; see study.trials")
        return found

    def refresh(self) -> Study:
        """Asks how it is now."""
        self.record = self._api.get(f"/v1/jobs/{self.id}", JobRecord)
        return self

    def resume(self, *, progress: Shown = "auto") -> Study:
        """Goes on with a study that was stopped, failed, or whose process was killed.

        Trials that ended stay as they are; those that ran are run again, with the values they had.

        Args:
            progress: `auto` says how each trial ended; `none` nothing.

        Raises:
            Conflict: It runs, or is done.
            InvalidRequest: The workspace is a server's.
            JobFailed: Too many trials failed.
        """
        workspace = _own(self._workspace)
        workspace.catalog.jobs.reconcile()
        return self._run(workspace, workspace.catalog.jobs.reopen(self.id), progress)

    def importance(self) -> Importance:
        """How much each name has to do with what makes a trial good: shares that add up to 1, by PED-ANOVA.

        Raises:
            InvalidRequest: Fewer than two trials of different values are complete.
            MissingExtra: Optuna is not installed.
        """
        from mms_sdk.compute.tuning.asking import Asker, Past

        done = [trial for trial in self.trials if trial.state == "complete"]
        past = [Past(params=trial.params, ended="complete", value=trial.value) for trial in done]
        return Importance(Asker(self.spec, past).importance())

    def parallel_coordinates(self) -> Drawing:
        """All complete trials across one axis for each name, and one for the metric; as text, the best ones in rows."""
        return parallel(self.spec, _outcomes(self.trials))

    def history(self) -> Drawing:
        """The value of each complete trial in order, and the best so far."""
        return history(self.spec, _outcomes(self.trials))

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        trials, spec = self.trials, self.spec
        best = _best(trials, spec)
        about: dict[str, Any] = {
            "id": self.id,
            "script": spec.code.origin,
            "state": self.state,
            "trials": f"{len(trials)} of {spec.trials}: "
            + (", ".join(f"{count} {state}" for state, count in _counts(trials).items()) or "none yet"),
            "metric": f"{spec.metric}, {'higher' if spec.direction == 'maximize' else 'lower'} is better",
            "searched": ", ".join(f"{name}={each!r}" for name, each in spec.space.items()),
            "by": f"{spec.sampler}, seed {spec.seed}" + (f", {spec.pruner!r}" if spec.pruner else ""),
        }
        if best:
            about["best"] = f"trial {best.number}, {told.cell(best.value)}: {_told_params(best.params)}"
        if self.record.error:
            about["reason"] = self.record.error.get("detail", "")
        return about

    def _run(self, workspace: Workspace, job: JobRecord, progress: Shown) -> Study:
        from mms_sdk.compute.tuning.study import run

        run(workspace, job, _say if progress == "auto" else _nothing)
        return self.refresh()


class Studies:
    """All studies of a workspace."""

    def __init__(self, api: Api, workspace: Workspace | None) -> None:
        self._api = api
        self._workspace = workspace

    def list(self, limit: int = 20) -> Table[Study]:
        """The newest studies."""
        page = self._api.get("/v1/jobs", JobPage, kind="tune", limit=limit)
        found = [Study(self._api, self._workspace, record) for record in page.jobs]
        return Table(found, title="studies", rows=map(_study_row, found))

    def get(self, study: str) -> Study:
        """One study.

        Raises:
            JobNotFound: There is none of that id.
        """
        record = self._api.get(f"/v1/jobs/{study}", JobRecord)
        if record.kind != "tune":
            raise JobNotFound(f"job {study} is no study but a {record.kind} job; list studies with: mms studies")
        return Study(self._api, self._workspace, record)

    def begin(self, script: Script, asked: Mapping[str, Any], *, name: str | None, progress: Shown) -> Study:
        """Records a study and runs it; see `WorkspaceClient.tune`, which says what may be asked."""
        from mms_sdk.compute.tuning import asking, code
        from mms_sdk.compute.tuning.study import start

        workspace = _own(self._workspace)
        _check_choices(asked, progress)
        space = space_of(asked["space"])
        points = len(asking.grid_points(space)) if asked["sampler"] == "grid" else None
        decided = {
            "space": space,
            "trials": asked["trials"] if asked["trials"] is not None else points or _TRIALS,
            "direction": asked["direction"] or better_way(asked["metric"]),
        }
        _check_numbers({**asked, **decided}, points)
        asking.loaded()
        found, content = code.code_of(script, space)
        spec = StudySpec(**{**asked, **decided}, code=found, working_folder=str(Path.cwd()))
        named = check_name(name, what="study") if name else suggest_name(Path(found.name).stem)
        job = start(workspace, named, spec, content)
        return Study(self._api, workspace, job)._run(workspace, job, progress)


def _own(workspace: Workspace | None) -> Workspace:
    if workspace is None:
        raise InvalidRequest(
            "a study runs its trials on this machine, in this machine's workspace; this one is a server's; use "
            "mms.connect() without a URL"
        )
    return workspace


def _check_choices(asked: Mapping[str, Any], progress: str) -> None:
    metric, pruner, environment = asked["metric"], asked["pruner"], asked["environment"]
    if not isinstance(metric, str) or not metric.strip() or metric in ("step", "time", "epoch"):
        raise InvalidRequest(
            f"a metric is named as training or mms.trial.report tells it, e.g. val/loss; got {metric!r}"
        )
    for what, value, choices in (
        ("sampler", asked["sampler"], get_args(Sampler)),
        ("direction", asked["direction"], (None, *get_args(Direction))),
        ("progress", progress, get_args(Shown)),
    ):
        if value not in choices:
            raise InvalidRequest(f"{what} is one of {', '.join(map(str, choices))}; got {value!r}")
    if pruner is not None and not isinstance(pruner, ASHA | Hyperband):
        raise InvalidRequest(f"pruner is mms.ASHA(), mms.Hyperband(max_epochs=…) or None; got {pruner!r}")
    if isinstance(environment, str) or not all(isinstance(name, str) for name in environment):
        raise InvalidRequest(f"environment lists names of variables, e.g. ['MY_DATA']; got {environment!r}")


def _check_numbers(asked: Mapping[str, Any], points: int | None) -> None:
    for name, least in (("trials", 1), ("parallel", 1), ("max_failures", 1), ("seed", 0)):
        value = asked[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidRequest(f"{name} is a whole number from {least}; got {name}={value!r}")
    if points is not None and asked["trials"] > points:
        raise InvalidRequest(
            f"a grid of {points} points has no {asked['trials']} trials; leave trials out for all of them"
        )


def _state(attempts: Sequence[JobRecord]) -> str:
    from mms_sdk.compute.tuning.history import how_ended

    if not attempts[-1].ended:
        return "running"
    return how_ended(attempts) or "stopped"


def _best(trials: Sequence[Trial], spec: StudySpec) -> Trial | None:
    sign = 1 if spec.direction == "minimize" else -1
    done = [(sign * trial.value, trial) for trial in trials if trial.state == "complete" and trial.value is not None]
    return min(done, key=lambda each: (each[0], each[1].number))[1] if done else None


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    states = [trial.state for trial in trials]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    return [(trial.params, trial.value if trial.state == "complete" else None) for trial in trials]


def _told_params(params: Params) -> str:
    return ", ".join(f"{name}={told.cell(value)}" for name, value in params.items())


def _row(trial: Trial) -> dict[str, Any]:
    reason = (trial.record.error or {}).get("detail", "")
    return {
        "trial": trial.number,
        "state": trial.state,
        "value": trial.value,
        **{name: value if isinstance(value, int | float) else told.cell(value) for name, value in trial.params.items()},
        "reason": reason[:100],
    }


def _study_row(study: Study) -> dict[str, Any]:
    result, progress = study.record.result, study.record.progress
    return {
        "study": study.id,
        "name": study.record.name,
        "state": study.state,
        "trials": f"{result.get('trials', progress.done)} of {study.spec.trials}",
        "metric": study.spec.metric,
        "best": result.get("value"),
        "created": study.record.created_at[:16].replace("T", " "),
    }


def _say(line: str) -> None:
    # A notebook shows what comes on stderr as if something had failed.
    to = sys.stdout if html.in_notebook() else sys.stderr
    with contextlib.suppress(OSError):  # nobody reads it any more, which is no reason to stop
        print(f"  {line}", file=to, flush=True)


def _nothing(_: str) -> None: ...
