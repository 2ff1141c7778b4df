"""What every engine does with an attempt: lays out its folder, reads what is said there, and records how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import psutil

from mms_sdk.compute.engines import folder as names
from mms_sdk.compute.engines.log import KEPT_BYTES, last_lines
from mms_sdk.errors import Conflict
from mms_sdk.schema.job import ENDED, Attempt, Ended, EngineName, Job, JobSpec, JobState
from mms_sdk.schema.lineage import Reference
from mms_sdk.schema.quota import Footprint
from mms_sdk.settings import INPUTS_VARIABLE, JOB_VARIABLE, MESH_VARIABLE, OUTPUTS_VARIABLE
from mms_sdk.storage import files
from mms_sdk.storage.ids import now
from mms_sdk.storage.noting import noted
from mms_sdk.storage.owners import owner_of, pid_of
from mms_sdk.storage.queue import Fits
from mms_sdk.storage.workspace import Workspace


def folder_of(workspace: Workspace, attempt: Attempt) -> Path:
    """Where an attempt lies."""
    return names.attempt_folder(workspace.root / "jobs" / attempt.job, attempt.number)


def lay_out(workspace: Workspace, spec: JobSpec, attempt: Attempt, **more: Any) -> None:
    """Unpacks what an attempt runs, and writes down how.

    Args:
        workspace: Whose.
        spec: Of its job.
        attempt: Which.
        more: What the engine says to its own supervisor beside the usual.

    Raises:
        MmsError: There is no such bundle, or it was damaged.
        OSError: The disk is full.
    """
    folder = folder_of(workspace, attempt)
    code = files.make_folder(folder / names.CODE, durable=False)
    if spec.bundle is not None:
        workspace.bundles.unpack(spec.bundle, code)
    told = {
        "job": attempt.job,
        "number": attempt.number,
        "entrypoint": spec.entrypoint,
        "args": list(spec.args),
        "secrets": list(spec.secrets),
        "requirements": list(spec.requirements),
        "log_bytes": KEPT_BYTES,
        "time_s": spec.resources.time,
        "memory_bytes": spec.resources.memory,
        "grace_s": spec.grace_s,
    }
    names.create(folder / names.GIVEN, {**told, **more})


def own_variables(spec: JobSpec, attempt: Attempt, *, cores: int) -> dict[str, str]:
    """Variables of an attempt's processes beside the usual ones.

    Args:
        spec: Of its job.
        attempt: Which.
        cores: How many the machine has.
    """
    # Sets have the same order in each attempt, and what it was is known.
    told = {"PYTHONHASHSEED": str(zlib.crc32(attempt.job.encode())), **spec.environment}
    cpus = max(1, attempt.given["cpus"] // spec.resources.processes)
    if cpus < cores:  # XLA's CPU client takes NPROC for the number of its threads
        told = {"NPROC": str(cpus), "OMP_NUM_THREADS": str(cpus), **told}
    if spec.mesh is not None:
        told[MESH_VARIABLE] = json.dumps(spec.mesh)
    for variable, named in ((INPUTS_VARIABLE, spec.inputs), (OUTPUTS_VARIABLE, spec.outputs)):
        if named:
            told[variable] = json.dumps({label: Reference.of(text).plain for label, text in named.items()})
    told[names.COOKIE] = names.cookie(attempt.job, attempt.number)
    return {**told, JOB_VARIABLE: attempt.job, "PYTHONUNBUFFERED": "1"}


def claim_of(folder: Path) -> dict[str, str] | None:
    """Who looks after an attempt; None if nobody does yet."""
    try:
        return names.read(folder / names.CLAIM)
    except ValueError:  # the machine went down before it was on the disk
        return {"owner": ""}


def ended_of(folder: Path) -> Ended | None:
    """How an attempt ended, as whoever looked after it wrote down; None if nobody did."""
    try:
        told = names.read(folder / names.ENDED)
        return None if told is None else Ended.model_validate(told)
    except ValueError:
        return lost(folder, f"how it ended cannot be read in {folder / names.ENDED}")


def lost(folder: Path, detail: str) -> Ended:
    """The end of an attempt that nobody saw."""
    return Ended(reason="lost", detail=detail, lines=tuple(last_lines(folder / names.LOG)), at=now())


def end(workspace: Workspace, attempt: Attempt, ended: Ended, cancel: Callable[[str], Job]) -> JobState | None:
    """Records how an attempt ended.

    Returns:
        The job's state now; None if the attempt had ended before.
    """
    # Who cancels writes that down and then looks how the job is; here it is the other way round, so that one of
    # the two sees what the other did, and nothing that was cancelled is tried again.
    folder = files.make_folder(folder_of(workspace, attempt), durable=False)
    cancelled = folder / names.CANCEL
    names.create(folder / names.OVER, {"at": now()})
    if ended.reason in ("infra", "lost", "preempted") and cancelled.exists():
        ended = ended.model_copy(update={"reason": "cancelled", "detail": "it was cancelled"})
    state = workspace.catalog.attempts.end(attempt, ended, made=noted(workspace, folder), outcome=_outcome(folder))
    if state == "queued" and cancelled.exists():
        with contextlib.suppress(Conflict):
            return cancel(attempt.job).state
    return state


def _outcome(folder: Path) -> dict[str, Any] | None:
    try:
        return names.read(folder / names.OUTCOME)
    except ValueError:  # the machine went down before it was on the disk
        return None


def cancel(workspace: Workspace, job: str, ask_to_stop: Callable[[Attempt], None]) -> Job:
    """Takes a job from the queue, or asks its newest attempt to stop; see `Engine.cancel`."""
    jobs, attempts = workspace.catalog.jobs, workspace.catalog.attempts
    asked: Attempt | None = None
    while not attempts.cancel_waiting(job):
        found = jobs.get(job)
        if asked is None and (found.state in ENDED or found.engine is None):
            told = f"it is {found.state}" if found.state in ENDED else "whoever began it runs it; stop it there"
            raise Conflict(f"a job is cancelled while it waits or runs on an engine; {job}: {told}")
        newest = attempts.of(job)[-1]
        if found.state in ENDED or (asked is not None and asked.number == newest.number):
            return found
        # Whoever starts it may not have come so far as to make the folder.
        folder = files.make_folder(folder_of(workspace, newest), durable=False)
        names.create(folder / names.CANCEL, {"at": now()}, durable=True)
        ask_to_stop(newest)
        asked = newest  # which may have ended in this moment, and wait to be tried again
    return jobs.get(job)


def make_room(workspace: Workspace, engine: EngineName, fits: Fits, wake: Callable[[Attempt], object]) -> None:
    """Asks attempts to stop that are in the way of one of a higher priority; they wait again then.

    Args:
        workspace: Whose.
        engine: Of which the job that is next finds no room.
        fits: Says what of the machine a job is given.
        wake: Has what looks after an attempt see at once what is in its folder.
    """
    for attempt in workspace.catalog.attempts.to_make_room(engine=engine, fits=fits):
        folder = files.make_folder(folder_of(workspace, attempt), durable=False)
        why = {"why": "it made room for a job of a higher priority"}
        if names.create(folder / names.PREEMPT, why):
            wake(attempt)


def footprint_of(pid: int) -> Footprint | None:
    """What the processes below one take; None if it is not there."""
    cpu_s, memory, count = 0.0, 0, 0
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    for each in below:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = each.cpu_times()
            cpu_s += times.user + times.system
            memory += each.memory_info().rss
            count += 1
    return Footprint(cpu_s=cpu_s, memory=memory, processes=count)


def end_orphans(folder: Path, cookie: str) -> None:
    """Ends what the processes of an attempt left on this machine when they died with their supervisor.

    These know whose they are, or, if they were given other variables, are of the worker's session; with neither, they
    are as if a person had started them.
    """
    sessions = _sessions(folder)
    while left := [process for process in psutil.process_iter() if _has(process, cookie, sessions)]:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _sessions(folder: Path) -> set[int]:
    stem, _, kind = names.WORKER.rpartition(".")
    found = (_session(worker) for worker in folder.glob(f"{stem}*.{kind}"))
    return {each for each in found if each is not None}


def _session(worker: Path) -> int | None:
    try:
        told = names.read(worker)
    except ValueError:  # the machine went down before it was on the disk
        return None
    if told is None or told["owner"].partition("@")[2] != owner_of(os.getpid()).partition("@")[2]:  # another boot
        return None
    pid = pid_of(told["owner"])
    with contextlib.suppress(ProcessLookupError):
        return pid if owner_of(pid) == told["owner"] else None  # None: the number has been given anew
    return pid


def _has(process: psutil.Process, cookie: str, sessions: AbstractSet[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(os.getsid(process.pid) in sessions or process.environ().get(names.COOKIE) == cookie)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False
