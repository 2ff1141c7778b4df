"""Jobs on this machine: each has a process that looks after it, which ends neither with a notebook nor with a server.

There is no daemon. Whoever submits a job starts it if there is room; whoever's job has ended starts the next. What an
attempt leaves in its folder says what became of it, and whoever comes along writes it into the catalog.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import psutil

from mms_sdk.compute.engines import folder as names
from mms_sdk.compute.engines.base import Room
from mms_sdk.compute.engines.machine import cores_here, environment, gpus_here
from mms_sdk.compute.engines.supervisor import MODULE, last_lines
from mms_sdk.errors import Conflict, InvalidRequest, MmsError
from mms_sdk.schema.job import ENDED, Attempt, Ended, EngineName, Job, JobSpec, JobState
from mms_sdk.settings import JOB_VARIABLE
from mms_sdk.storage import files
from mms_sdk.storage.attempts import Given
from mms_sdk.storage.ids import now
from mms_sdk.storage.owners import is_alive, owner_of, pid_of
from mms_sdk.storage.workspace import Workspace

NAME: EngineName = "local"
_OURS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_started: set[int] = set()  # children of this process that were not waited for yet
_starting = threading.Lock()


class LocalEngine:
    """See `Engine`.

    Args:
        workspace: Whose jobs.
        comes_back: Whether to see to it that what waits is started though nobody looks after what went before it, or
            is there once it is due to be tried again. Not if somebody does already.
    """

    name = NAME

    def __init__(self, workspace: Workspace, *, comes_back: bool = True) -> None:
        self._workspace = workspace
        self._comes_back = comes_back
        self._attempts = workspace.catalog.attempts

    def room(self) -> Room:
        """See `Engine`."""
        memory = psutil.virtual_memory().total
        return Room(cpus=cores_here(), gpus=tuple(gpus_here(os.environ)), memory=memory)

    def check(self, spec: JobSpec) -> None:
        """See `Engine`."""
        asked, room = spec.resources, self.room()
        if asked.gpus is None and len(room.gpus) % asked.processes:
            raise InvalidRequest(
                f"GPUs divide over the processes of a node; this machine has {len(room.gpus)}, for processes="
                f"{asked.processes}; say how many: gpus="
            )
        for what, wanted, there in (
            ("machines", asked.nodes, room.nodes),
            ("cores", asked.cpus, room.cpus),
            ("GPUs", asked.gpus, len(room.gpus)),
            ("bytes of memory", asked.memory, room.memory),
        ):
            if wanted is not None and wanted > there:
                raise InvalidRequest(
                    f"a job takes no more than there is; it asks for {wanted:,} {what}, and this machine has "
                    f"{there:,}; ask for less"
                )

    def start_waiting(self) -> list[str]:
        """See `Engine`."""
        _wait_for_ended()
        states = {}
        while taken := self._attempts.take(engine=NAME, owner=owner_of(os.getpid()), fits=self._fits):
            states[taken[0].id] = self._start(*taken)
        self._come_back(if_so="queued" in states.values())
        return list(states)

    def cancel(self, job: str) -> Job:
        """See `Engine`."""
        jobs = self._workspace.catalog.jobs
        asked: Attempt | None = None
        while not self._attempts.cancel_waiting(job):
            found = jobs.get(job)
            if asked is None and (found.state in ENDED or found.engine is None):
                told = f"it is {found.state}" if found.state in ENDED else "whoever began it runs it; stop it there"
                raise Conflict(f"a job is cancelled while it waits or runs on an engine; {job}: {told}")
            newest = self._attempts.of(job)[-1]
            if found.state in ENDED or (asked is not None and asked.number == newest.number):
                return found
            self._ask_to_stop(newest)
            asked = newest  # which may have ended in this moment, and wait to be tried again
        return jobs.get(job)

    def reconcile(self) -> None:
        """See `Engine`."""
        _wait_for_ended()
        left_alone, at_work = False, self._attempts.at_work(NAME)
        for job, attempt in at_work:
            with contextlib.suppress(OSError):  # a full disk: it is looked at again by whoever comes next
                left_alone |= self._look_at(attempt, starting=job.state == "starting")
        self._come_back(if_so=left_alone)
        if not at_work and self._attempts.next_due_s(NAME) == 0:  # whoever was about to start it was killed
            self.start_waiting()

    def _fits(self, spec: JobSpec, taken: Sequence[Given]) -> Given | None:
        asked, room = spec.resources, self.room()
        cpus = room.cpus if asked.cpus is None else asked.cpus
        free = [gpu for gpu in room.gpus if not any(gpu in given["gpus"] for given in taken)]
        gpus = room.gpus if asked.gpus is None else free[: asked.gpus]
        memory = asked.memory or 0
        fits = (
            cpus + sum(given["cpus"] for given in taken) <= room.cpus
            and set(gpus) <= set(free)
            and len(gpus) == (len(room.gpus) if asked.gpus is None else asked.gpus)
            and memory + sum(given["memory"] for given in taken) <= room.memory
        )
        # What a machine has less of than when the job was submitted, it has to itself: it waits for nobody then.
        return {"cpus": cpus, "gpus": list(gpus), "memory": memory} if fits or not taken else None

    def _start(self, job: Job, attempt: Attempt) -> JobState | None:
        spec = JobSpec.model_validate(job.spec)
        folder = self._folder(attempt)
        try:
            self._lay_out(spec, folder, attempt)
            owner = self._supervised(spec, folder)
        except (MmsError, OSError) as error:  # a full disk, a bundle that was damaged, too many processes
            return self._end(attempt, Ended(reason="infra", detail=f"it could not be started: {error}", at=now()))
        self._attempts.runs(attempt, owner)
        return None

    def _lay_out(self, spec: JobSpec, folder: Path, attempt: Attempt) -> None:
        code = files.make_folder(folder / names.CODE, durable=False)
        self._workspace.bundles.unpack(spec.bundle, code)
        told = {
            "job": attempt.job,
            "number": attempt.number,
            "entrypoint": spec.entrypoint,
            "args": list(spec.args),
            "environment": self._own_variables(spec, attempt),
            "ranks": self._variables_of_ranks(spec, attempt),
            "time_s": spec.resources.time,
            "memory_bytes": spec.resources.memory,
            "grace_s": spec.grace_s,
        }
        names.create(folder / names.GIVEN, told)

    def _own_variables(self, spec: JobSpec, attempt: Attempt) -> dict[str, str]:
        room, given = self.room(), attempt.given
        told = dict(spec.environment)
        cpus = max(1, given["cpus"] // spec.resources.processes)
        if cpus < room.cpus:  # XLA's CPU client takes NPROC for the number of its threads
            told = {"NPROC": str(cpus), "OMP_NUM_THREADS": str(cpus), **told}
        told[names.COOKIE] = names.cookie(attempt.job, attempt.number)
        return {**told, JOB_VARIABLE: attempt.job, "PYTHONUNBUFFERED": "1"}

    def _variables_of_ranks(self, spec: JobSpec, attempt: Attempt) -> list[dict[str, str]]:
        count, gpus = spec.resources.processes, attempt.given["gpus"]
        share = len(gpus) // count
        told: list[dict[str, str]] = [{names.RANK: str(rank), names.RANKS: str(count)} for rank in range(count)]
        coordinator = f"127.0.0.1:{_free_port()}" if count > 1 else None
        for rank, variables in enumerate(told):
            if self.room().gpus:
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[rank * share : (rank + 1) * share])
            if coordinator:
                variables[names.COORDINATOR] = coordinator
        return told

    def _supervised(self, spec: JobSpec, folder: Path) -> str:
        return self._detached(spec.python, [str(folder)], spec.inherited, log=folder / "supervisor.txt")

    def _come_back(self, *, if_so: bool) -> None:
        if self._comes_back and if_so:
            inherited = environment(os.environ)
            with contextlib.suppress(OSError):  # too many processes: it waits for whoever comes next
                self._detached(sys.executable, [], inherited, log=Path(os.devnull))

    def _detached(self, python: str, words: Sequence[str], inherited: Mapping[str, str], *, log: Path) -> str:
        # Those by which object stores know a person are written nowhere: they go from process to process.
        stores = not self._workspace.datasets.local
        seen = {name: os.environ[name] for name in environment(os.environ, stores=stores) if stores}
        with _starting:  # so that its number is not waited for, and used again, before it is looked up
            pid = os.posix_spawn(
                python,
                [python, "-P", "-m", MODULE, *words],
                {**seen, **inherited, **self._workspace.variables()},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), _OURS, files.FILE_MODE),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=(),  # whatever this thread does not want to hear
            )
            owner = owner_of(pid)
            _started.add(pid)
        return owner

    def _ask_to_stop(self, attempt: Attempt) -> None:
        folder = files.make_folder(self._folder(attempt), durable=False)  # whoever starts it may not have come so far
        names.create(folder / names.CANCEL, {"at": now()}, durable=True)
        claim = _claim(folder)
        if claim and is_alive(claim["owner"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid_of(claim["owner"]), signal.SIGTERM)
        else:
            self._come_back(if_so=self._look_at(attempt))

    def _look_at(self, attempt: Attempt, *, starting: bool = False) -> bool:
        # Whether it ended, and nobody is there who starts the next one.
        folder = self._folder(attempt)
        claim, told = _claim(folder), self._told(folder)
        if told is not None:
            return self._end(attempt, told) is not None and not (claim and is_alive(claim["owner"]))
        if claim is None:
            if is_alive(attempt.owner):
                return False  # who starts it, or a supervisor that is about to claim it
            files.make_folder(folder, durable=False)
            if not names.create(folder / names.CLAIM, {"owner": ""}):  # a supervisor did in this moment
                claim = _claim(folder)
        if claim is not None and is_alive(claim["owner"]):
            if starting:
                self._attempts.runs(attempt, claim["owner"])
            return False
        told = self._told(folder)  # it may have written down the end, and gone, since
        if told is None:
            _end_orphans(names.cookie(attempt.job, attempt.number), _sessions(folder))
            told = _lost(folder, "what looked after it is gone: it was killed, or the machine went down")
        return self._end(attempt, told) is not None

    def _told(self, folder: Path) -> Ended | None:
        try:
            told = names.read(folder / names.ENDED)
            return None if told is None else Ended.model_validate(told)
        except ValueError:
            return _lost(folder, f"how it ended cannot be read in {folder / names.ENDED}")

    def _end(self, attempt: Attempt, ended: Ended) -> JobState | None:
        # Who cancels writes that down and then looks how the job is; here it is the other way round, so that one of
        # the two sees what the other did, and nothing that was cancelled is tried again.
        cancelled = self._folder(attempt) / names.CANCEL
        if ended.reason in ("infra", "lost") and cancelled.exists():
            ended = ended.model_copy(update={"reason": "cancelled", "detail": "it was cancelled"})
        state = self._attempts.end(attempt, ended)
        if state == "queued" and cancelled.exists():
            with contextlib.suppress(Conflict):
                return self.cancel(attempt.job).state
        return state

    def _folder(self, attempt: Attempt) -> Path:
        return names.attempt_folder(self._workspace.root / "jobs" / attempt.job, attempt.number)


def _free_port() -> int:
    # Somebody else may take it before the first rank does: then the ranks do not come together, and it is tried again.
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _lost(folder: Path, detail: str) -> Ended:
    return Ended(reason="lost", detail=detail, lines=tuple(last_lines(folder / names.LOG)), at=now())


def _wait_for_ended() -> None:
    # A child that ended keeps its number until it is waited for.
    with _starting:
        for pid in list(_started):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            _started.discard(pid)


def _claim(folder: Path) -> dict[str, str] | None:
    try:
        return names.read(folder / names.CLAIM)
    except ValueError:  # the machine went down before it was on the disk
        return {"owner": ""}


def _sessions(folder: Path) -> set[int]:
    try:
        ranks = len((names.read(folder / names.GIVEN) or {}).get("ranks", ()))
    except ValueError:  # likewise
        return set()
    found = (_session(folder / names.of_rank(names.WORKER, rank)) for rank in range(ranks))
    return {each for each in found if each is not None}


def _session(worker: Path) -> int | None:
    try:
        told = names.read(worker)
    except ValueError:  # likewise
        return None
    if told is None or told["owner"].partition("@")[2] != owner_of(os.getpid()).partition("@")[2]:  # another boot
        return None
    pid = pid_of(told["owner"])
    with contextlib.suppress(ProcessLookupError):
        return pid if owner_of(pid) == told["owner"] else None  # None: the number has been given anew
    return pid


def _end_orphans(cookie: str, sessions: AbstractSet[int]) -> None:
    # They died with their supervisor, but for those that they started. These know whose they are, or, if they were
    # given other variables, are of the worker's session; with neither, they are as if a person had started them.
    while left := [process for process in psutil.process_iter() if _has(process, cookie, sessions)]:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _has(process: psutil.Process, cookie: str, sessions: AbstractSet[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(os.getsid(process.pid) in sessions or process.environ().get(names.COOKIE) == cookie)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False
