"""Jobs: what runs, what ran, and how it ended."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Protocol, Self
from urllib.parse import quote

from mms_sdk import html, told
from mms_sdk.client.api import Api
from mms_sdk.client.code import Code, code_of
from mms_sdk.client.events import events_of
from mms_sdk.client.revision import revision_of
from mms_sdk.client.tables import Table
from mms_sdk.compute.training.callbacks import Begun, Callback, Ending
from mms_sdk.errors import InvalidRequest, JobFailed, from_problem
from mms_sdk.schema.artifact import Artifact, check_artifact
from mms_sdk.schema.environment import Environment
from mms_sdk.schema.event import Event
from mms_sdk.schema.job import Attempt, EngineName, JobPage, LogPiece, Resources, Retry
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.job_retention import CleanJobs
from mms_sdk.schema.lineage import JobLineage
from mms_sdk.schema.quota import DEFAULT_PROJECT, TopJob
from mms_sdk.schema.rank import Rank, Ranks
from mms_sdk.schema.secret_names import check_secret_name
from mms_sdk.schema.usage import Usage
from mms_sdk.storage.series import CONTENT_TYPE, Series, joined, unpack

_POLL_S = 0.02, 0.25  # first and longest pause: quick jobs are noticed at once, long ones are not pestered


class Referable(Protocol):
    """A dataset or a version of a model."""

    @property
    def reference(self) -> str:
        """By which a job names it, e.g. `flowers@7` or `model:flowers@3`."""


Readable = str | Referable
"""What a job may read: a reference, a dataset or a version."""


def reference_to(what: Readable) -> str:
    """The reference to what a job reads."""
    return what if isinstance(what, str) else what.reference


class Job:
    """A job as it was when last asked; `refresh()` asks again."""

    def __init__(self, api: Api, record: JobRecord) -> None:
        self._api = api
        self.record = record

    def __repr__(self) -> str:
        return f"<job {self.id}: {self.record.kind} {self.record.name}, {self.state}>"

    def _repr_html_(self) -> str:
        return html.facts(f"{self.record.kind} {self.record.name}", self.facts())

    @property
    def id(self) -> str:
        """Sorts by time of creation."""
        return self.record.id

    @property
    def state(self) -> str:
        """`queued`, `starting`, `running`, `succeeded`, `failed`, `cancelled` or `lost`."""
        return self.record.state

    @property
    def result(self) -> dict[str, Any]:
        """What came out, once it succeeded."""
        return self.record.result

    def refresh(self) -> Job:
        """Asks how it is now."""
        self.record = self._api.get(f"/v1/jobs/{self.id}", JobRecord)
        return self

    def wait(self, *, timeout_s: float | None = None, progress: bool = True) -> Job:
        """Waits for the job's end.

        Args:
            timeout_s: How long; None for as long as it takes.
            progress: Show a bar on a terminal.

        Raises:
            MmsError: The job failed; the error is the one it ended with.
            TimeoutError: It has not ended in time; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause, longest = _POLL_S
        with _Bar(progress and sys.stderr.isatty()) as bar:
            while not self.refresh().record.ended:
                bar.show(self.record)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"job {self.id} has not ended within {timeout_s:g} s; it goes on")
                time.sleep(pause)
                pause = min(longest, pause * 1.5)
        if self.state != "succeeded":
            problem = self.record.error or {}
            if "type" in problem:
                raise from_problem(problem)
            log = "; what it printed: job.logs()" if self.record.engine else ""
            why = problem.get("detail", "no reason recorded")
            raise JobFailed(f"job {self.id} ended as {self.state}: {why}{log}")
        return self

    def watch(self, *, rank: int = 0) -> Job:
        """Prints what it prints, as it does, until it ends. An interrupt leaves it running.

        Args:
            rank: Of which of its processes, from 0.

        Raises:
            JobFailed: It did not succeed.
        """
        try:
            for text in self._printed(rank):
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stderr.write(f"job {self.id} goes on; come back with ws.jobs.get({self.id!r}).watch()\n")
            return self
        return self.wait(progress=False)

    def logs(self, *, attempt: int | None = None, rank: int = 0) -> str:
        """What it printed so far.

        Args:
            attempt: Of which attempt, from 1; of the newest if left out.
            rank: Of which of its processes, from 0.

        Raises:
            NotFound: There is no such attempt or rank.
        """
        pieces, offset = [], 0
        while (piece := self._log_from(offset, attempt, rank)).text:
            pieces.append(_shown_piece(piece.text, piece.left_out))
            offset = piece.offset
        return "".join(pieces)

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """What happened to it, oldest first.

        Args:
            follow: Whether to wait for what comes, until it has ended.
        """
        return events_of(self._api, self.id, follow=follow)

    def value(self) -> Any:
        """What the function of the job returned, once it has ended; waits for it.

        Raises:
            MmsError: The job failed.
            NotFound: It runs no function.
        """
        from mms_sdk.compute import values
        from mms_sdk.compute.call import RETURNED

        return values.unpack(self.wait(progress=False)._api.read(f"/v1/jobs/{self.id}/artifacts/{RETURNED}"))

    def cancel(self) -> Job:
        """Takes it from the queue, or asks it to stop; after its grace it is ended with all that it started.

        Raises:
            Conflict: It has ended, or runs where it was begun.
        """
        self.record = self._api.send("POST", f"/v1/jobs/{self.id}:cancel", JobRecord)
        return self

    def retry(self) -> Job:
        """Runs the same anew, as a job of its own.

        Raises:
            Conflict: It has not ended, or no engine ran it.
        """
        return Job(self._api, self._api.send("POST", f"/v1/jobs/{self.id}:retry", JobRecord))

    @property
    def inputs(self) -> dict[str, str]:
        """What it reads, by label: `flowers@7/train` is a dataset, `model:flowers@3` a model."""
        return self._lineage().inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it has made: snapshots that it committed, and versions that it registered."""
        return self._lineage().outputs

    def _lineage(self) -> JobLineage:
        return self._api.get(f"/v1/jobs/{self.id}/lineage", JobLineage)

    @property
    def attempts(self) -> list[Attempt]:
        """Each try at it, the first one first, with how it ended."""
        return self._api.get(f"/v1/jobs/{self.id}/attempts", list[Attempt])

    def environment(self, *, attempt: int | None = None) -> Environment:
        """What it ran in: the revision of its code, the interpreter, all packages, what it was given, and seeds.

        Args:
            attempt: Which attempt did, from 1; the newest if left out.

        Raises:
            NotFound: There is no such attempt, or no engine runs it.
        """
        return self._api.get(f"/v1/jobs/{self.id}/environment", Environment, attempt=attempt)

    def _printed(self, rank: int = 0) -> Iterator[str]:
        attempt = 1
        for message in self._api.follow(f"/v1/jobs/{self.id}/stream", only="log", rank=rank):
            if message.event == "end":
                return
            if message.event == "log":
                told = json.loads(message.data)
                if told["attempt"] != attempt:
                    attempt = told["attempt"]
                    yield f"--- attempt {attempt} ---\n"
                yield _shown_piece(told["text"], told["left_out"])

    def _log_from(self, offset: int, attempt: int | None, rank: int) -> LogPiece:
        return self._api.get(f"/v1/jobs/{self.id}/logs", LogPiece, offset=offset, attempt=attempt, rank=rank)

    def metrics(self, *, points: int | None = None) -> dict[str, Series]:
        """What it logged so far, by name; of a script, what the newest training in it did.

        Args:
            points: At most so many rows of each, for a chart: the least and the greatest value of each stretch. All
                rows if left out.

        Example:
            ```python
            loss = job.metrics()["train/loss"]
            plt.plot(loss.step, loss.value)
            ```
        """
        if points is not None:
            return self._metrics(points=points)[0]
        pieces, since = [], 0
        while (piece := self._metrics(since=since))[1] > since:
            pieces.append(piece[0])
            since = piece[1]
        return joined(pieces)

    def _metrics(self, **asked: int) -> tuple[dict[str, Series], int]:
        return unpack(self._api.read(f"/v1/jobs/{self.id}/metrics", accept=CONTENT_TYPE, **asked))

    def usage(self) -> Usage:
        """What its attempts have had so far: seconds of cores and GPUs, and what they cost at `$MMS_PRICES`."""
        return self._api.get(f"/v1/jobs/{self.id}/usage", Usage)

    def ranks(self) -> Table[Rank]:
        """The processes of its training, of a script the newest one in it: step, phase, and which one is slow."""
        found = self._ranks().ranks
        return Table(found, title="ranks", rows=map(_rank_row, found))

    def _ranks(self) -> Ranks:
        return self._api.get(f"/v1/jobs/{self.id}/ranks", Ranks)

    def artifacts(self, *, attempt: int | None = None) -> Table[Artifact]:
        """The files it left: those of its kind of work, e.g. `predictions.parquet`, and what a script kept.

        A script keeps what it writes into the folder `mms.artifacts()`.

        Args:
            attempt: Of which attempt; of the newest if left out.

        Raises:
            NotFound: There is no such attempt.
        """
        found = self._api.get(f"/v1/jobs/{self.id}/artifacts", list[Artifact], attempt=attempt)
        shown = ({"name": each.name, "size": told.size(each.bytes), "written": each.at} for each in found)
        return Table(found, title="artifacts", rows=shown)

    def download(self, name: str, to: str | Path, *, attempt: int | None = None) -> Path:
        """Saves one of the files it left.

        Args:
            name: As in the list of its artifacts, e.g. `predictions.parquet` or `figures/loss.png`.
            to: Where; it appears whole or not at all.
            attempt: Of which attempt; of the newest if left out.

        Raises:
            NotFound: The job left no such file.
        """
        check_artifact(name)  # addresses are shortened on their way: a/../b would ask for b
        path = Path(to).expanduser()
        self._api.download(f"/v1/jobs/{self.id}/artifacts/{quote(name)}", path, attempt=attempt)
        return path

    def log_to(self, logger: Callback) -> None:
        """Tells a logger of all of a training that has ended, e.g. `job.log_to(mms.loggers.CSV("metrics.csv"))`.

        To one that was told of it before, this brings what it lacks.

        Args:
            logger: One of `mms.loggers`.

        Raises:
            InvalidRequest: The job is no training, or has not ended.
        """
        record = self.record
        if record.kind != "train" or not record.ended:
            raise InvalidRequest(
                f"a logger is told of a training that has ended; {self!r} is not one; wait for it, or take another job"
            )
        with TemporaryDirectory() as folder:
            run = Begun(
                job=self.id,
                run=self._first_job(),
                dataset=record.spec["dataset"],
                options=record.spec["trainer"],
                step=0,
                log=self.download("metrics.jsonl", Path(folder) / "metrics.jsonl"),
            )
            logger.begin(run)
            if record.state == "succeeded":
                logger.end("succeeded", record.result["stopped"])
            else:
                state: Ending = "cancelled" if record.state == "cancelled" else "failed"
                logger.end(state, (record.error or {}).get("detail", record.state))

    def _first_job(self) -> str:
        record = self.record
        while earlier := record.spec["resumed_from"]:
            record = self._api.get(f"/v1/jobs/{earlier}", JobRecord)
        return record.id

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        record = self.record
        about: dict[str, Any] = {
            "id": record.id,
            "work": f"{record.kind} {record.name}",
            "state": record.state,
            "created": record.created_at,
            "ended": record.ended_at or "–",
        }
        if record.cleaned_at:
            about["cleaned"] = record.cleaned_at
        if revision := record.spec.get("revision"):
            about["code"] = _code(revision)
        if not record.ended and record.progress.total:
            about["progress"] = f"{record.progress.done:,} of {record.progress.total:,} {record.progress.what}"
        if record.engine is not None and record.started_at:
            about["used"] = _used(self.usage())
        if record.state == "running" and (alarm := self._ranks().alarm):
            about["alarm"] = alarm
        if record.error:
            about["error"] = record.error.get("detail", "")
        metrics: dict[str, float] = record.result.get("metrics", {})
        about |= {name: f"{value:.4f}" for name, value in metrics.items()}
        if outcome := self.outcome:
            return about | {"outcome": outcome}
        return about | {name: value for name, value in record.result.items() if not isinstance(value, dict)}

    @property
    def outcome(self) -> str:
        """What looking after a dataset found or changed, in words; nothing for other work, or before its end."""
        said = _IN_WORDS.get(self.record.kind)
        return said(self.record.result) if said and self.record.result else ""


class Jobs:
    """All jobs of a workspace."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def __iter__(self) -> Iterator[Job]:
        """All jobs, newest first, page by page."""
        return (Job(self._api, record) for record in records(self._api))

    def submit(
        self,
        script: str | os.PathLike[str] | Code,
        *,
        args: Sequence[str] = (),
        folder: str | os.PathLike[str] | None = None,
        name: str | None = None,
        on: EngineName = "local",
        resources: Resources | None = None,
        mesh: Mapping[str, int] | None = None,
        retry: Retry | None = None,
        environment: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        inputs: Mapping[str, Readable] = MappingProxyType({}),
        outputs: Mapping[str, str] = MappingProxyType({}),
        requirements: Sequence[str] = (),
        priority: int = 0,
        preemptible: bool = False,
        project: str = DEFAULT_PROJECT,
        key: str | None = None,
    ) -> Job:
        """Runs a script, or the text of a cell, in a process of its own, which goes on without this one.

        It begins as soon as there is room; `connect()` within it opens this workspace. It runs in a folder of its own
        that holds what was packed, so that paths to anything else are absolute.

        Args:
            script: A path, or the text of a cell: what has more than one line. Functions are submitted by `mms.remote`.
            args: What the script finds in `sys.argv`.
            folder: What goes along beside the script, which lies in it: code, not data. Hidden files and what
                `.mmsignore` there names stay behind.
            name: For people; the script's name if left out.
            on: The engine that runs it: `local`, the workspace's machine, or `ray`, a cluster.
            resources: What it takes of the machine; all cores and GPUs if left out, so that jobs run one by one.
            mesh: What trainers in it take for their mesh that name none, e.g. `{"data": -1, "fsdp": 2}`.
            retry: When it is tried again; three times after what was none of its own doing, if left out.
            environment: Variables that it sees beside the usual ones.
            secrets: Names of secrets that it sees as variables, too; see `ws.secrets`.
            inputs: What it reads, by label: datasets such as `flowers@7/train`, models such as `model:flowers@best`. It
                finds them, each at the snapshot or version it has now, in `mms.inputs()`.
            outputs: What it is to make, by label, e.g. `{"model": "model:flowers"}`; in `mms.outputs()`.
            requirements: Packages that it needs beside those of the interpreter, e.g. `["einops>=0.8"]`.
            priority: Of those that wait, the highest is next.
            preemptible: Whether it is stopped, and waits again, where one of a higher priority finds no room; a
                training saves where it is, and goes on from there.
            project: Whose quota it counts against.
            key: Whoever asks again with the same key gets the job of the first time, and nothing runs twice.

        Raises:
            NotFound: There is no such script, secret or input.
            InvalidRequest: It is no Python, or asks for more than there is.
            TooLarge: The folder is more than a bundle holds.
            Conflict: The key stands for another job.
        """
        if isinstance(args, str):
            raise InvalidRequest(
                f"arguments of a script are a list of texts; got the text {args[:60]!r}; put it into [ ]"
            )
        if isinstance(requirements, str):
            raise InvalidRequest(
                f"requirements are a list of texts; got the text {requirements[:60]!r}; put it into [ ]"
            )
        if isinstance(secrets, str | Mapping):  # which may hold values
            raise InvalidRequest(
                "secrets are a list of names, e.g. secrets=['HF_TOKEN']; their values are set before, by "
                "ws.secrets.set(name, value) or mms secrets set NAME"
            )
        code = script if isinstance(script, Code) else code_of(script, folder)
        headers = {"content-type": "application/zip"}
        kept = self._api.send_bytes("POST", "/v1/bundles", code.bundle, dict[str, str], headers=headers)
        spec: dict[str, Any] = {
            "bundle": kept["bundle"],
            "entrypoint": code.entrypoint,
            "args": [str(each) for each in args],
            "environment": dict(environment or {}),
            "requirements": list(requirements),
            "secrets": [check_secret_name(each) for each in secrets],
            "inputs": {label: reference_to(each) for label, each in inputs.items()},
            "outputs": dict(outputs),
            "resources": (resources or Resources()).model_dump(),
            "mesh": None if mesh is None else dict(mesh),
            "retry": (retry or Retry()).model_dump(),
            "priority": priority,
            "preemptible": preemptible,
        }
        revision, diff = revision_of(code.folder)
        if revision is not None:
            spec["revision"] = revision.model_dump()
        asked = {"kind": code.kind, "name": name or code.name, "key": key, "spec": spec, "engine": on, "diff": diff}
        asked["project"] = project
        return Job(self._api, self._api.send("POST", "/v1/jobs", JobRecord, asked))

    def list(self, limit: int = 20, *, input: Readable | None = None, output: Readable | None = None) -> Table[Job]:
        """The newest jobs.

        Args:
            limit: How many.
            input: Only those that read it: a dataset such as `flowers`, whichever snapshot, or `flowers@7`; or a model
                such as `model:flowers@3`.
            output: Only those that made it, likewise.

        Raises:
            NotFound: There is no such tag or alias.
        """
        of = {"input": input and reference_to(input), "output": output and reference_to(output)}
        page = self._api.get("/v1/jobs", JobPage, limit=limit, **of)
        found = [Job(self._api, record) for record in page.jobs]
        costs = [{"cost": f"{page.costs[job.id]:,.2f}" if job.id in page.costs else ""} for job in found]
        shown = [_row(job) | (cost if page.costs else {}) for job, cost in zip(found, costs, strict=True)]
        return Table(found, title="jobs", rows=shown)

    def top(self) -> Table[TopJob]:
        """What runs, with what it takes of its machine, and what waits, in the order in which it will run."""
        found = self._api.get("/v1/jobs:top", list[TopJob])
        return Table(found, title="jobs that run or wait", rows=map(_top_row, found))

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state that any is in."""
        return self._api.get("/v1/jobs:counts", dict[str, int])

    def clean(self, *, older_than: str | float, keep: int = 0, dry_run: bool = False, progress: bool = True) -> Job:
        """Removes what old jobs left: their folders, code that no job needs any more, and environments not used since.

        What is recorded of the jobs stays, and their keys stand for them. A job stays whole that has parts which are
        not old, that a model version was made by, or that a job which stays names, e.g. to go on from its checkpoint.

        Args:
            older_than: Those that ended longer ago, e.g. `30d`, `2w`, `12h`, or seconds.
            keep: How many of the newest that have ended stay, however old they are.
            dry_run: Only say what would be removed.
            progress: Show a bar on a terminal.

        Returns:
            The finished job; its `outcome` says what was freed, and its `result` counts it.
        """
        told: dict[str, Any] = {"older_than": older_than, "keep": keep, "dry_run": dry_run}
        asked = CleanJobs(**told).model_dump()
        return Job(self._api, self._api.send("POST", "/v1/jobs:clean", JobRecord, asked)).wait(progress=progress)

    def get(self, job: str) -> Job:
        """One job.

        Raises:
            JobNotFound: There is none of that id.
        """
        return Job(self._api, self._api.get(f"/v1/jobs/{job}", JobRecord))


def _shown_piece(text: str, left_out: int) -> str:
    return f"\n--- {left_out:,} bytes left out ---\n{text}" if left_out else text


def rows(api: Api, job: str) -> Iterator[dict[str, Any]]:
    """All rows of the metrics of a job, oldest first, some MB at a time."""
    since = 0
    while True:
        page: dict[str, Any] = api.get(f"/v1/jobs/{job}/metrics", dict, since=since)
        yield from page["rows"]
        if not page["rows"]:
            return
        since = page["offset"]


def records(api: Api, **query: Any) -> Iterator[JobRecord]:
    """Records of jobs, newest first, page by page.

    Args:
        api: The workspace's.
        query: Which, and `limit`, how many a page.
    """
    before: str | None = None
    while True:
        page = api.get("/v1/jobs", JobPage, before=before, **query)
        yield from page.jobs
        if page.next is None:
            return
        before = page.next


def _verified(result: dict[str, Any]) -> str:
    read = [told.counted(result[f"{noun}s"], noun) for noun in ("snapshot", "part")]
    return f"{', '.join(read)}, {told.size(result['bytes'])}: all as they were written"


def _compacted(result: dict[str, Any]) -> str:
    parts = told.counted(result["parts_before"], "part")
    if result["snapshot"] == result["snapshot_before"]:
        return f"{parts}: nothing to put together"
    if result["parts"] == result["parts_before"]:
        return f"{parts} written anew, in snapshot {result['snapshot']}"
    return f"{parts} became {result['parts']:,}, in snapshot {result['snapshot']}"


def _collected(result: dict[str, Any]) -> str:
    nouns = {"folders": "folder", "snapshots": "expired snapshot", "drafts": "draft", "writings": "writing"}
    gone = [told.counted(result[name], noun) for name, noun in nouns.items() if result[name]]
    return f"{', '.join(gone)} removed: {told.size(result['bytes'])}" if gone else "nothing to remove"


def _cleaned(result: dict[str, Any]) -> str:
    kinds = {"job": "job folder", "bundle": "bundle", "environment": "environment"}
    gone = [
        f"{told.counted(count, noun)} ({told.size(result[f'{kind}_bytes'])})"
        for kind, noun in kinds.items()
        if (count := result[f"{kind}s"])
    ]
    stays = f"; {told.counted(result['in_use'], 'old job')} still referred to" if result["in_use"] else ""
    what = "to be removed" if result["dry_run"] else "removed"
    return f"{', '.join(gone)} {what}{stays}" if gone else f"nothing to remove{stays}"


def _top_row(job: TopJob) -> dict[str, Any]:
    has, takes = job.given, job.footprint
    return {
        "job": job.id,
        "name": job.name,
        "project": job.project,
        "priority": job.priority,
        "state": f"waits for {job.waits_for}" if job.waits_for else job.state,
        "for": told.duration((datetime.now(UTC) - datetime.fromisoformat(job.since)).total_seconds()),
        "cpus": has.get("cpus", ""),
        "gpus": has.get("gpus", ""),
        "cpu time": told.duration(takes.cpu_s) if takes else "",
        "memory": told.size(takes.memory) if takes else "",
        "processes": takes.processes if takes else "",
    }


_IN_WORDS = {"verify": _verified, "compact": _compacted, "collect": _collected, "clean-jobs": _cleaned}


def _code(revision: dict[str, Any]) -> str:
    if revision["commit"] is None:
        return revision["unknown"] or "before the first commit"
    where = f" on {revision['branch']}" if revision["branch"] else ""
    return f"{revision['commit'][:10]}{where}{', changed since' if revision['dirty'] else ''}"


def _row(job: Job) -> dict[str, Any]:
    record = job.record
    return {
        "job": record.id,
        "kind": record.kind,
        "name": record.name,
        "state": record.state,
        "created": record.created_at[:16].replace("T", " "),
        "outcome": _outcome(job),
    }


def _outcome(job: Job) -> str:
    record = job.record
    if not record.ended:
        now = record.progress
        return f"{now.done:,} of {now.total:,} {now.what}" if now.total else ""
    if record.error:
        return str(record.error.get("detail", ""))[:100]
    if outcome := job.outcome:
        return outcome
    for name, value in {**record.result.get("metrics", {}), **record.result}.items():
        if name in ("val/accuracy", "accuracy") and value is not None:
            return f"{name} {value:.4f}"
    if "value" in record.result:  # of a trial, or the best one's of a study
        return f"{record.spec['metric']} {record.result['value']:.6g}"
    return f"{record.result['rows']:,} rows" if "rows" in record.result else ""


def _used(usage: Usage) -> str:
    kinds = {"cores": usage.cpu_s, "GPUs": usage.gpu_s}
    had = [f"{told.duration(seconds)} of {kind}" for kind, seconds in kinds.items() if seconds]
    cost = f", which cost {usage.cost:,.2f}" if usage.cost is not None else ""
    return f"{', '.join(had) or 'nothing yet'}{cost}"


def _rank_row(rank: Rank) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "step": rank.step,
        "phase": rank.phase,
        "since": f"{rank.since_s:.0f} s",
        "a step": f"{rank.step_s:.3g} s" if rank.step_s else "",
        "to the median": f"{rank.ratio:.2f}" if rank.ratio else "",
        "waits for data": f"{100 * rank.input_wait:.0f} %" if rank.step_s else "",
        "for steps": f"{100 * rank.step_wait:.0f} %" if rank.step_s else "",
        "others wait for its": rank.holds_up or "",
    }


class _Bar:
    """A bar on a terminal, or nothing."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, record: JobRecord) -> None:
        if not self._shown:
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("")
        now = record.progress
        self._progress.update(self._task, description=now.what, completed=now.done, total=now.total or None)
