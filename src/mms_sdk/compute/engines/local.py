"""Jobs on this machine: each has a process that looks after it, which ends neither with a notebook nor with a server.

There is no daemon. Whoever submits a job starts it if there is room; whoever's job has ended starts the next. What an
attempt leaves in its folder says what became of it, and whoever comes along writes it into the catalog.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mms_sdk.compute.engines import attempt as common
from mms_sdk.compute.engines import folder as names
from mms_sdk.compute.engines.base import Room
from mms_sdk.compute.engines.environments import interpreter
from mms_sdk.compute.engines.machine import cores_here, environment, free_port, gpus_here, of_ranks
from mms_sdk.compute.engines.supervisor import MODULE
from mms_sdk.errors import InvalidRequest, MmsError
from mms_sdk.schema.job import Attempt, Ended, EngineName, Job, JobSpec, JobState
from mms_sdk.schema.quota import Footprint
from mms_sdk.storage import files
from mms_sdk.storage.ids import now
from mms_sdk.storage.owners import is_alive, is_elsewhere, owner_of, pid_of
from mms_sdk.storage.queue import Given
from mms_sdk.storage.workspace import Workspace

NAME: EngineName = "local"
_OURS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_ANSWERS_WITHIN_S = 60.0  # beyond the grace
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
        states: dict[str, JobState | None] = {}
        room = self.room()

        def fits(spec: JobSpec, taken: Sequence[Given]) -> Given | None:
            return _given(room, spec, taken)

        while taken := self._attempts.take(engine=NAME, owner=owner_of(os.getpid()), fits=fits):
            job, attempt = taken
            states[job.id] = self._start(job, attempt)
            if states[job.id] is None and attempt.given["cpus"] >= room.cpus:
                break  # it runs, and has all there is: nobody else finds room
        common.make_room(self._workspace, NAME, fits, self._wake)
        self._come_back(if_so="queued" in states.values())
        return list(states)

    def cancel(self, job: str) -> Job:
        """See `Engine`."""
        return common.cancel(self._workspace, job, self._ask_to_stop)

    def footprint(self, attempt: Attempt) -> Footprint | None:
        """See `Engine`."""
        return common.footprint_of(pid_of(attempt.owner)) if is_alive(attempt.owner) else None

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

    def _start(self, job: Job, attempt: Attempt) -> JobState | None:
        spec, room = JobSpec.model_validate(job.spec), self.room()
        count = spec.resources.processes
        ranks = of_ranks(
            range(count),
            of=count,
            gpus=attempt.given["gpus"] if room.gpus else None,
            coordinator=f"127.0.0.1:{free_port('127.0.0.1')}" if count > 1 else None,
        )
        variables = common.own_variables(spec, attempt, cores=room.cpus)
        try:
            common.lay_out(self._workspace, spec, attempt, environment=variables, ranks=ranks)
            owner = self._supervised(spec, common.folder_of(self._workspace, attempt))
        except (MmsError, OSError) as error:  # a full disk, a bundle that was damaged, too many processes
            return self._end(attempt, Ended(reason="infra", detail=f"it could not be started: {error}", at=now()))
        with contextlib.suppress(OSError):  # a disk that is full by now: whoever looks next records it
            self._attempts.runs(attempt, owner)
        return None

    def _supervised(self, spec: JobSpec, folder: Path) -> str:
        return self._detached(spec.python, [str(folder)], spec.inherited, log=folder / "supervisor.txt")

    def _come_back(self, *, if_so: bool) -> None:
        if self._comes_back and if_so:
            inherited = environment(os.environ)
            with contextlib.suppress(OSError):  # too many processes: it waits for whoever comes next
                self._detached(interpreter(), [], inherited, log=Path(os.devnull))

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
        if not self._wake(attempt):
            self._come_back(if_so=self._look_at(attempt))

    def _wake(self, attempt: Attempt) -> bool:
        claim = common.claim_of(common.folder_of(self._workspace, attempt))
        if not claim or not is_alive(claim["owner"]):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid_of(claim["owner"]), signal.SIGTERM)
        return True

    def _look_at(self, attempt: Attempt, *, starting: bool = False) -> bool:
        # Whether it ended, and nobody is there who starts the next one.
        folder = common.folder_of(self._workspace, attempt)
        claim, told = common.claim_of(folder), common.ended_of(folder)
        if told is not None:
            return self._end(attempt, told) is not None and not (claim and is_alive(claim["owner"]))
        if is_elsewhere(claim["owner"] if claim else attempt.owner):
            return self._has_not_answered(folder) and self._end(attempt, _unanswered()) is not None
        if claim is None:
            if is_alive(attempt.owner):
                return False  # who starts it, or a supervisor that is about to claim it
            files.make_folder(folder, durable=False)
            if not names.create(folder / names.CLAIM, {"owner": ""}):  # a supervisor did in this moment
                claim = common.claim_of(folder)
        if claim is not None and is_alive(claim["owner"]):
            if starting:
                self._attempts.runs(attempt, claim["owner"])
            return False
        told = common.ended_of(folder)  # it may have written down the end, and gone, since
        if told is None:
            common.end_orphans(folder, names.cookie(attempt.job, attempt.number))
            told = common.lost(folder, "what looked after it is gone: it was killed, or the machine went down")
        return self._end(attempt, told) is not None

    def _has_not_answered(self, folder: Path) -> bool:
        # Another machine, which sees this folder, too, as soon as it looks, was to stop it and has had its time.
        asked, given = names.read(folder / names.CANCEL), names.read(folder / names.GIVEN) or {}
        if asked is None:
            return False
        age_s = (datetime.now(UTC) - datetime.fromisoformat(asked["at"])).total_seconds()
        return bool(age_s > given.get("grace_s", 0) + _ANSWERS_WITHIN_S)

    def _end(self, attempt: Attempt, ended: Ended) -> JobState | None:
        return common.end(self._workspace, attempt, ended, self.cancel)


def _given(room: Room, spec: JobSpec, taken: Sequence[Given]) -> Given | None:
    asked = spec.resources
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


def _unanswered() -> Ended:
    return Ended(reason="cancelled", detail="it was cancelled; the machine that it ran on did not answer", at=now())


def _wait_for_ended() -> None:
    # A child that ended keeps its number until it is waited for.
    with _starting:
        for pid in list(_started):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            _started.discard(pid)
