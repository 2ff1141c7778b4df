"""Quotas: how much the jobs of a project may take at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mms_sdk.schema.base import Schema

ProjectName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
DEFAULT_PROJECT = "default"


class Quota(Schema):
    """The most that all running jobs of a project take together, on each engine; what is left out has no bound.

    Attributes:
        project: Whose.
        cpus: Cores.
        gpus: GPUs.
        memory: Bytes, of what jobs ask for.
    """

    project: ProjectName
    cpus: Annotated[int, Field(ge=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    memory: Annotated[int, Field(ge=0)] | None = None


class Footprint(Schema):
    """What a running job takes, as its machine counts it.

    Attributes:
        cpu_s: Seconds of cores, of all its processes that are there.
        memory: Bytes that they hold.
        processes: How many they are.
    """

    cpu_s: float
    memory: int
    processes: int


class TopJob(Schema):
    """A job that runs or waits.

    Attributes:
        id: The job.
        name: For people.
        project: Whose.
        priority: Of those that wait, the highest is next.
        state: `starting`, `running` or `queued`.
        since: When its attempt began, or it was submitted.
        given: What of the machine it has: `cpus`, `gpus`, `memory`; nothing while it waits.
        footprint: What it takes of it; None where that is not known.
        waits_for: `room`, `its project's quota`, `its turn`, or `its next attempt`; nothing if it runs.
    """

    id: str
    name: str
    project: str
    priority: int
    state: str
    since: str
    given: dict[str, int]
    footprint: Footprint | None = None
    waits_for: str = ""
