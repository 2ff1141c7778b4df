"""What an engine does: it runs the jobs of a workspace's queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mms_sdk.schema.job import Attempt, EngineName, Job, JobSpec
from mms_sdk.schema.quota import Footprint


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is to run jobs on: of each node, the least that any has.

    Attributes:
        nodes: Machines.
        cpus: Cores.
        gpus: Names of GPUs.
        memory: Bytes.
    """

    nodes: int = 1
    cpus: int
    gpus: tuple[str, ...]
    memory: int


class Engine(Protocol):
    """Runs jobs. The catalog says what is to run and what became of it; an engine can be made anew at any time.

    Any number of processes may hold an engine of the same workspace, and call it from several threads. All calls are
    idempotent, and each may be cut off at any point: `reconcile` mends what was left. `mms_sdk.testing.engines` has
    the tests that an engine passes.
    """

    name: EngineName
    """As it is called in `on=` and in the catalog."""

    def room(self) -> Room:
        """What there is to run jobs on, taken or not."""

    def check(self, spec: JobSpec) -> None:
        """Refuses what could never run.

        Raises:
            InvalidRequest: It wants more than there is.
        """

    def start_waiting(self) -> list[str]:
        """Starts jobs from the head of the queue while there is room for them; returns their ids.

        Where one of a higher priority finds none, those that are preemptible and in its way are asked to stop.
        """

    def cancel(self, job: str) -> Job:
        """Takes a job from the queue, or asks it to stop, and ends it with all it started after its grace.

        Returns:
            The job as it is now; one that runs ends later.

        Raises:
            JobNotFound: There is none of that id.
            Conflict: It has ended, or no engine runs it.
        """

    def footprint(self, attempt: Attempt) -> Footprint | None:
        """What a running attempt takes of the machine; None where that cannot be told from here."""

    def reconcile(self) -> None:
        """Brings the catalog and what runs together.

        It records what ended, ends what nobody looks after any more, and sees to it that what waits is started.
        """
