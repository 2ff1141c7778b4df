"""Jobs on a Ray cluster: each has an actor that looks after it, which ends neither with a notebook nor with a server.

The catalog is the truth, and what an attempt leaves in its folder says what became of it, as on one machine. Ray is
asked for nodes and whether an actor is there, and for no queue and no record.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mms_sdk.compute.engines import attempt as common
from mms_sdk.compute.engines import folder as names
from mms_sdk.compute.engines.base import Room
from mms_sdk.compute.engines.ray.cluster import Cluster
from mms_sdk.compute.engines.ray.room import fitting, shape_of, suiting
from mms_sdk.errors import InvalidRequest, MmsError, Unavailable
from mms_sdk.schema.job import Attempt, Ended, EngineName, Job, JobSpec, JobState
from mms_sdk.schema.quota import Footprint
from mms_sdk.storage import files
from mms_sdk.storage.ids import now
from mms_sdk.storage.owners import is_alive, is_elsewhere, owner_of
from mms_sdk.storage.queue import Given
from mms_sdk.storage.workspace import Workspace

NAME: EngineName = "ray"
_LOOK_S = 1.0  # how often Ray is asked whether an actor is there
_BEGUN_WITHIN_S = 60.0  # by whoever took an attempt, which takes a second; or on a node that does not go down


class RayEngine:
    """See `Engine`.

    Args:
        workspace: Whose jobs. Its folder is seen under the same path by all nodes.
        cluster: What runs them.
        comes_back: Whether to see to it that what waits is started though nobody looks after what went before it, or
            is there once it is due to be tried again. Not if somebody does already.
    """

    name = NAME

    def __init__(self, workspace: Workspace, cluster: Cluster, *, comes_back: bool = True) -> None:
        self._workspace = workspace
        self._cluster = cluster
        self._comes_back = comes_back
        self._attempts = workspace.catalog.attempts
        self._looked_at: dict[str, float] = {}

    def room(self) -> Room:
        """See `Engine`."""
        nodes = self._cluster.nodes()
        if not nodes:
            return Room(nodes=0, cpus=0, gpus=(), memory=0)
        return Room(
            nodes=len(nodes),
            cpus=min(node.cpus for node in nodes),
            gpus=tuple(map(str, range(min(node.gpus for node in nodes)))),
            memory=min(node.memory for node in nodes),
        )

    def check(self, spec: JobSpec) -> None:
        """See `Engine`."""
        asked, nodes = spec.resources, self._cluster.nodes()
        if len(suiting(nodes, asked)) < (asked.min_nodes or asked.nodes):
            wanted = asked.model_dump(exclude_none=True, include={"nodes", "min_nodes", "cpus", "gpus", "memory"})
            told = ", ".join(f"{name}={value}" for name, value in wanted.items())
            raise InvalidRequest(
                f"a job takes no more than there is; it asks for {told}, and "
                f"the cluster's nodes are {', '.join(map(str, nodes)) or 'none'}; ask for less"
            )
        if asked.gpus is None and shape_of(nodes, asked, asked.nodes).gpus % asked.processes:
            raise InvalidRequest(
                f"GPUs divide over the processes of a node; the cluster's are {', '.join(map(str, nodes))}, for "
                f"processes={asked.processes}; say how many: gpus="
            )

    def start_waiting(self) -> list[str]:
        """See `Engine`."""
        for job, attempt in self._attempts.at_work(NAME):
            self._see_begun(attempt, starting=job.state == "starting")
        if not self._is_due():
            return []
        states: dict[str, JobState | None] = {}
        with contextlib.suppress(Unavailable):  # it waits until the cluster is back
            nodes = self._cluster.nodes()

            def fits(spec: JobSpec, taken: Sequence[Given]) -> Given | None:
                return fitting(nodes, spec.resources, taken)

            while taken := self._attempts.take(engine=NAME, owner=owner_of(os.getpid()), fits=fits):
                states[taken[0].id] = self._start(*taken)
            common.make_room(self._workspace, NAME, fits, lambda _: None)  # its actor looks for the file by itself
        self._come_back(if_so="queued" in states.values())
        return list(states)

    def cancel(self, job: str) -> Job:
        """See `Engine`."""
        return common.cancel(self._workspace, job, self._ask_to_stop)

    def footprint(self, attempt: Attempt) -> Footprint | None:
        """See `Engine`. The processes are on other machines."""
        return None

    def reconcile(self) -> None:
        """See `Engine`. While the cluster cannot be reached, nothing is taken for lost."""
        left_alone, at_work = False, self._attempts.at_work(NAME)
        here = {_actor_of(attempt) for _, attempt in at_work}
        self._looked_at = {actor: at for actor, at in self._looked_at.items() if actor in here}
        for job, attempt in at_work:
            with contextlib.suppress(OSError):  # a full disk, or no cluster: it is looked at again
                left_alone |= self._look_at(attempt, starting=job.state == "starting")
        self._come_back(if_so=left_alone)
        if not at_work and self._is_due():  # whoever was about to start it was killed
            self.start_waiting()

    def _is_due(self) -> bool:
        return self._attempts.next_due_s(NAME) == 0

    def _start(self, job: Job, attempt: Attempt) -> JobState | None:
        spec, given = JobSpec.model_validate(job.spec), attempt.given
        variables = common.own_variables(spec, attempt, cores=given["cores"])
        of_node = {"CPU": given["cpus"], "GPU": given["gpus"], "memory": given["memory"]}
        folder = common.folder_of(self._workspace, attempt)
        try:
            more = {
                "environment": variables,
                "nodes": given["nodes"],
                "min_nodes": min(spec.resources.min_nodes or given["nodes"], given["nodes"]),
                "processes": spec.resources.processes,
                "of_node": of_node,
            }
            common.lay_out(self._workspace, spec, attempt, **more)
            self._cluster.start(_actor_of(attempt), str(folder), self._workspace.variables())
        except Unavailable:  # its actor may have been made, or not: whoever looks finds out
            return None
        except (MmsError, OSError) as error:  # a full disk, a bundle that was damaged
            ended = Ended(reason="infra", detail=f"it could not be started: {error}", at=now())
            return self._end(attempt, ended)
        return None

    def _come_back(self, *, if_so: bool) -> None:
        if self._comes_back and if_so:
            name = f"settle-{hashlib.sha256(str(self._workspace.root).encode()).hexdigest()[:16]}"
            with contextlib.suppress(Unavailable):
                self._cluster.start(name, "", self._workspace.variables())

    def _ask_to_stop(self, attempt: Attempt) -> None:
        with contextlib.suppress(Unavailable):  # its actor looks for the file by itself, too
            self._looked_at[_actor_of(attempt)] = -math.inf
            self._come_back(if_so=self._look_at(attempt, starting=True))
            self._cluster.stop(_actor_of(attempt))

    def _look_at(self, attempt: Attempt, *, starting: bool) -> bool:
        # Whether it ended, and nobody is there who starts the next one.
        folder, actor = common.folder_of(self._workspace, attempt), _actor_of(attempt)
        if (told := common.ended_of(folder)) is not None:
            return self._end(attempt, told) is not None and self._cluster.says(actor) is None
        self._see_begun(attempt, starting=starting)
        if not self._is_to_be_asked(actor):
            return False
        said = self._cluster.says(actor)
        if said:
            self._cluster.stop(actor)
            told = Ended(reason="infra", detail=f"it could not be started: {said}", at=now())
            return self._end(attempt, told) is not None
        if said is not None or not self._is_given_up(attempt, folder):
            return False
        told = common.ended_of(folder)  # it may have written down the end, and gone, since
        detail = "what looked after it is gone: its node went down, or the cluster was started anew"
        return self._end(attempt, told or common.lost(folder, detail)) is not None

    def _see_begun(self, attempt: Attempt, *, starting: bool) -> None:
        folder = common.folder_of(self._workspace, attempt)
        if starting and (folder / names.WORKER).exists():
            claim = common.claim_of(folder)
            self._attempts.runs(attempt, claim["owner"] if claim else attempt.owner)

    def _is_to_be_asked(self, actor: str) -> bool:
        # Not as soon as it is seen: whoever opens the workspace for a moment is not to wait for the cluster.
        seen = time.monotonic()
        if seen < self._looked_at.setdefault(actor, seen) + _LOOK_S:
            return False
        self._looked_at[actor] = seen
        return True

    def _is_given_up(self, attempt: Attempt, folder: Path) -> bool:
        # Of an attempt without an actor.
        if common.claim_of(folder) is not None:
            return True
        age_s = (datetime.now(UTC) - datetime.fromisoformat(attempt.started_at)).total_seconds()
        if age_s < _BEGUN_WITHIN_S:
            if (folder / names.GIVEN).exists():  # Ray drops an actor that was to begin on a node that goes down
                self._cluster.start(_actor_of(attempt), str(folder), self._workspace.variables())
                return False
            if is_alive(attempt.owner) or is_elsewhere(attempt.owner):  # it is about to be started
                return False
        files.make_folder(folder, durable=False)
        return names.create(folder / names.CLAIM, {"owner": ""})  # else an actor did in this moment

    def _end(self, attempt: Attempt, ended: Ended) -> JobState | None:
        return common.end(self._workspace, attempt, ended, self.cancel)


def _actor_of(attempt: Attempt) -> str:
    return f"{attempt.job}-{attempt.number}"
