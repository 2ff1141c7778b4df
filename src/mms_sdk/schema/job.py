"""Jobs: one piece of work with one recorded end, and the attempts at it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.environment import MAX_DIFF_CHARS, Revision
from mms_sdk.schema.lineage import check_references
from mms_sdk.schema.quota import DEFAULT_PROJECT, ProjectName
from mms_sdk.schema.requirements import MAX_REQUIREMENTS, check_requirements
from mms_sdk.schema.secret_names import MAX_SECRETS, check_secret_names

JobKind = Literal[
    "script",
    "cell",
    "function",
    "ingest",
    "clean",
    "join",
    "concat",
    "verify",
    "compact",
    "collect",
    "clean-jobs",
    "follow",
    "train",
    "tune",
    "trial",
    "evaluate",
    "predict",
]
CodeKind = Literal["script", "cell", "function"]
DescribedKind = Literal["ingest", "evaluate", "predict"]
JobState = Literal["queued", "starting", "running", "succeeded", "failed", "cancelled", "lost"]
EngineName = Literal["local", "ray"]
MeshAxis = Literal["data", "fsdp", "tensor", "sequence", "expert"]
MeshSize = Annotated[int, Field(ge=-1, le=10_000_000)]
ENDED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled", "lost"})
Reason = Literal["succeeded", "user", "oom", "timeout", "infra", "lost", "preempted", "cancelled"]
"""How an attempt ended. `user`: the code raised, or ended with an exit code. `oom`: it took more memory than it may.
`timeout`: more time. `infra`: something ended it that was none of its own doing. `lost`: nobody saw it end, since the
machine or whatever looked after it went down. These two are worth another attempt. `preempted`: it made room for a job
of a higher priority, and waits again."""
_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(MB|GB|TB|MiB|GiB|TiB)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_MAX_VARIABLE_BYTES = 100_000  # Linux takes 128 KiB, name and value together
_PLAIN = r"^[^\x00-\x1f\x7f]*$"  # a name that is shown: on one line, and moves no cursor


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


class Resources(Asked):
    """What a job takes of a machine, or of each of several, while it runs. Jobs wait in a queue until it is free.

    Attributes:
        nodes: Machines. What else is asked for is of each of them.
        min_nodes: With how many it begins, or is tried again, when there are fewer machines by then; None for no fewer.
        processes: On each node. They run the same script and become one `jax.distributed` cluster before it begins;
            cores and GPUs are divided between them.
        cpus: Cores; None for all, so that no other job runs beside it.
        gpus: GPUs, which nobody else's job sees meanwhile; None for all.
        memory: Most it may hold in all its processes, e.g. `8GB` or `512MiB`, or bytes; beyond, it is ended. None for
            as much as there is.
        time: Most that one attempt may take, e.g. `2h`, `30min`, `90s`, or seconds; beyond, it is ended.
    """

    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    min_nodes: Annotated[int, Field(ge=1)] | None = None
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    cpus: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    memory: Annotated[int, Field(gt=0)] | None = None
    time: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, asked: Any) -> Any:
        found = _in_units(asked, _MEMORY, _BYTES, "memory is bytes, or a number with MB, GB, TB, MiB, GiB or TiB")
        return round(found) if isinstance(asked, str) else found

    @field_validator("time", mode="before")
    @classmethod
    def _seconds(cls, asked: Any) -> Any:
        return _in_units(asked, _TIME, _SECONDS, "time is seconds, or a number with s, min, h or d")

    @model_validator(mode="after")
    def _divide(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes is at most nodes; got min_nodes={self.min_nodes} of nodes={self.nodes}")
        if self.gpus is not None and self.gpus % self.processes:
            raise ValueError(
                f"GPUs divide over the processes of a node; got gpus={self.gpus} for processes={self.processes}"
            )
        return self


def _in_units(asked: Any, pattern: re.Pattern[str], units: dict[str, int], rule: str) -> Any:
    if not isinstance(asked, str):
        return asked
    found = pattern.fullmatch(asked.replace(" ", ""))
    value = float(found[1]) * units[found[2]] if found else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{rule}; got {asked[:60]!r}")
    return value


class Retry(Asked):
    """When a job is tried again: after what was none of its own doing, such as a machine that went down.

    What the code itself raised would come again, and so would a limit that it ran into; neither is tried again.

    Attributes:
        times: At most so often, after the first attempt.
        wait_s: Seconds before the second attempt, and twice as many before each one after it, up to an hour.
    """

    by_place = ("times",)

    times: Annotated[int, Field(ge=0, le=100)] = 3
    wait_s: Annotated[float, Field(ge=0, le=3600)] = 1.0


class JobSpec(Schema):
    """What is run, and how.

    Attributes:
        spec_version: Of this description.
        bundle: SHA-256 of the code, by which the workspace keeps it; None of work that is described.
        entrypoint: The script within it.
        request: The description of such work, as the route takes it that does it in the service's process.
        args: What the script finds in `sys.argv` behind its name.
        environment: Variables that it sees beside the usual ones; none whose name begins with `MMS_`.
        secrets: Names of the workspace's secrets that it sees as variables, too.
        inputs: References to what it reads, by label, e.g. `flowers@7/train`, or `model:flowers@3`; the workspace
            makes them exact.
        outputs: Names of what it is to make, by label, e.g. `flowers` or `model:flowers`.
        requirements: Packages that it needs beside those of the interpreter, e.g. `einops>=0.8`.
        resources: What it takes of the machine.
        mesh: What trainers in it take for their mesh that name none, e.g. `{"data": -1, "fsdp": 2}`.
        retry: When it is tried again.
        priority: Of those that wait, the highest is next; among equals the oldest.
        preemptible: Whether it is stopped, and waits again, where one of a higher priority finds no room. A training
            saves where it is first, and goes on from there.
        grace_s: Seconds between asking it to stop and ending it.
        python: The interpreter that runs it; the workspace's own fills it in.
        inherited: What it sees of the variables where it was submitted; likewise.
        revision: Where its code came from; None if it lay in no repository.
    """

    spec_version: Literal[1] = 1
    bundle: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    entrypoint: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    request: dict[str, Any] | None = None
    args: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    environment: dict[str, str] = {}
    secrets: Annotated[tuple[str, ...], Field(max_length=MAX_SECRETS)] = ()
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    requirements: Annotated[tuple[str, ...], Field(max_length=MAX_REQUIREMENTS)] = ()
    resources: Resources = Resources()
    mesh: dict[MeshAxis, MeshSize] | None = None
    retry: Retry = Retry()
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    preemptible: bool = False
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    python: str = ""
    inherited: dict[str, str] = {}
    revision: Revision | None = None

    @field_validator("environment")
    @classmethod
    def _own_names(cls, asked: dict[str, str]) -> dict[str, str]:
        for name, value in asked.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"a variable has a name without '=', and no byte 0; got {name[:60]!r}")
            if (size := len(f"{name}{value}".encode())) > _MAX_VARIABLE_BYTES:
                raise ValueError(
                    f"a variable has at most {_MAX_VARIABLE_BYTES:,} bytes; {name[:60]!r} has {size:,}; put it into a "
                    f"file of the folder that goes along"
                )
            if name.startswith("MMS_"):
                raise ValueError(f"variables that begin with MMS_ are the engine's; got {name!r}")
        return asked

    @field_validator("requirements")
    @classmethod
    def _packages(cls, asked: tuple[str, ...]) -> tuple[str, ...]:
        return check_requirements(asked)

    @field_validator("inputs")
    @classmethod
    def _read(cls, asked: dict[str, str]) -> dict[str, str]:
        return check_references(asked, way="input")

    @field_validator("outputs")
    @classmethod
    def _made(cls, asked: dict[str, str]) -> dict[str, str]:
        return check_references(asked, way="output")

    @field_validator("secrets")
    @classmethod
    def _each_once(cls, asked: tuple[str, ...]) -> tuple[str, ...]:
        return check_secret_names(asked)

    @model_validator(mode="after")
    def _code_or_description(self) -> Self:
        if (self.bundle is None) != (self.entrypoint is None) or (self.bundle is None) == (self.request is None):
            raise ValueError("a job runs the entrypoint of a bundle, or does what a request describes; give one")
        return self

    @model_validator(mode="after")
    def _one_value_each(self) -> Self:
        if twice := [name for name in self.secrets if name in self.environment]:
            raise ValueError(f"a variable has one value; {twice[0]!r} is a secret and in environment; leave one out")
        return self


class On(Asked):
    """What does a piece of work in place of the process that asks for it, and how.

    Attributes:
        engine: `local`, the workspace's machine, or `ray`, a cluster.
        resources: What it takes of the machine; all cores and GPUs if left out.
        retry: When it is tried again. It goes on with what an attempt before had done.
        priority: Of those that wait, the highest is next.
        preemptible: Whether it makes room for one of a higher priority, and waits again.
        grace_s: Seconds between asking it to stop and ending it.
        secrets: Names of secrets that it sees as variables.
        project: Whose quota it counts against.
        key: Whoever asks again with the same key gets the job of the first time.
    """

    by_place = ("engine",)

    engine: EngineName = "local"
    resources: Resources = Resources()
    retry: Retry = Retry()
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    preemptible: bool = False
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    secrets: Annotated[tuple[str, ...], Field(max_length=MAX_SECRETS)] = ()
    project: ProjectName = DEFAULT_PROJECT
    key: Annotated[str, Field(min_length=1, max_length=64, pattern=_PLAIN)] | None = None

    @field_validator("secrets")
    @classmethod
    def _each_once(cls, asked: tuple[str, ...]) -> tuple[str, ...]:
        return check_secret_names(asked)

    @field_validator("resources")
    @classmethod
    def _one_process(cls, asked: Resources) -> Resources:
        if (asked.nodes, asked.processes) != (1, 1):
            raise ValueError(
                f"what is described is done by one process; got nodes={asked.nodes}, processes={asked.processes}; "
                f"leave them out"
            )
        return asked


class Ended(Schema):
    """How an attempt ended.

    Attributes:
        reason: The class of it, which decides whether it is tried again.
        detail: In words.
        exit_code: Of its process, if it ended by itself.
        signal: The name of the signal that ended it, e.g. `SIGKILL`.
        lines: Last lines of its log.
        error: Type and message of what its code raised.
        at: When.
    """

    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    signal: str | None = None
    lines: tuple[str, ...] = ()
    error: dict[str, str] | None = None
    at: str


class Attempt(Schema):
    """One try at a job.

    Attributes:
        number: From 1.
        owner: The process that looks after it.
        given: What of the machine it was given: cores, and names of GPUs.
        ended: How it ended; None while it runs.
    """

    job: str
    number: int
    owner: str
    given: dict[str, Any] = {}
    started_at: str
    ended: Ended | None = None


class JobRequest(Schema):
    """A job that is to be run.

    Attributes:
        kind: A script, the text of a cell, or a function; or work that is described.
        name: What it is called in lists.
        key: Whoever asks again with the same key gets the job of the first time, and nothing runs twice.
        spec: What is run.
        parent: The job it is a part of.
        engine: What runs it: `local`, this machine, or `ray`, a cluster.
        project: Whose quota it counts against.
        diff: What was changed in its code since its revision.
    """

    kind: CodeKind | DescribedKind
    name: Annotated[str, Field(min_length=1, max_length=63, pattern=_PLAIN)]
    key: Annotated[str, Field(min_length=1, max_length=64, pattern=_PLAIN)] | None = None
    spec: JobSpec
    parent: str | None = None
    engine: EngineName = "local"
    project: ProjectName = DEFAULT_PROJECT
    diff: Annotated[str, Field(max_length=MAX_DIFF_CHARS)] = ""

    @model_validator(mode="after")
    def _described(self) -> Self:
        if (self.kind in get_args(DescribedKind)) != (self.spec.request is not None):
            raise ValueError(f"a {self.kind} has {'no ' if self.spec.request is not None else 'a '}request")
        return self


class LogPiece(Schema):
    """A piece of a log.

    Attributes:
        text: What was written since the offset; a byte that is no UTF-8 is shown as `�`.
        left_out: How many bytes in front of it are no longer kept: of a long log, the middle is given up.
        offset: Where to go on.
        attempt: Of which attempt it is; 0 before there is one.
        ended: Whether nothing will be added.
    """

    text: str
    left_out: int = 0
    offset: int
    attempt: int = 0
    ended: bool


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
        engine: What runs it: `local` or `ray`; None for work that is done by whoever asked for it.
        priority: Of those that wait, the highest is next.
        key: By which whoever asks again finds it.
        not_before: When the next attempt may begin.
        project: Whose quota it counts against.
        cleaned_at: Since when the files that it left are gone; None while they are kept.
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
    engine: str | None = None
    priority: int = 0
    key: str | None = None
    not_before: str | None = None
    project: str = DEFAULT_PROJECT
    cleaned_at: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end, good or bad."""
        return self.state in ENDED


class JobPage(Schema):
    """Some jobs, newest first.

    Attributes:
        jobs: The jobs.
        next: Where the next page begins; None on the last one.
        costs: So far, by the jobs' ids, where there are prices.
    """

    jobs: tuple[Job, ...]
    next: str | None = None
    costs: dict[str, float] = {}
