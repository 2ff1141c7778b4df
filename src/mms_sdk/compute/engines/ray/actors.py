"""What runs in the cluster: an actor that looks after an attempt, and one on each of its nodes.

The first does what the supervisor does on one machine. It claims the attempt, gathers the nodes, all or none, starts
and joins their parts, writes down how they ended and starts what waits next. If it dies, its nodes' actors die with it,
by Ray, and their parts with these.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mms_sdk.compute.engines import folder as files
from mms_sdk.compute.engines.machine import environment, free_port, of_ranks
from mms_sdk.compute.engines.ray import part
from mms_sdk.compute.engines.supervisor import AGAIN_S, RAISED_AT, write_down
from mms_sdk.settings import DATASETS_VARIABLE, RAY_OPEN_VARIABLE, RAY_VARIABLE, WORKSPACE_VARIABLE

Told = dict[str, Any]
OWNER = "ray:"
"""With what the owner of an attempt begins whose actor looks after it."""
_LOOK_S = 0.25
_PLACED_S = 1  # whole seconds, by Ray; a group that is removed as it is made takes its resources along for good
_OTHERS_S = 1.0  # after one node failed, how long it is looked for another whose death was the cause
_OTHER = "another node failed"
# Which of several ends was the cause: with a node that died, the others fail by errors of their own.
_CAUSES = ("lost", "cancelled", "preempted", "oom", "timeout", "infra", "user", "SIGABRT", "succeeded")
_MESSAGE = 1000
_HEARD_S = 600.0  # how long a complaint is kept for whoever comes to hear it
# By which a job submits others. Where the token lies; what it is only if a variable has it, as KubeRay's does: the part
# that is given it masks it.
_OF_RAY = (RAY_OPEN_VARIABLE, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", part.TOKEN)


class AttemptActor:
    """Looks after an attempt, and then starts what waits.

    Args:
        folder: The attempt's; none for one that only starts what waits.
        variables: By which the workspace is opened.
    """

    def __init__(self, folder: str, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self._variables = variables
        self._stop = threading.Event()
        self._says = ""
        # Not as a call of whoever started it, which would end with that one.
        threading.Thread(target=self._run, args=(folder,), daemon=True).start()

    def says(self) -> str:
        """Why it cannot do its work; nothing if it can."""
        return self._says

    def stop(self) -> None:
        """Makes it look whether the attempt was cancelled."""
        self._stop.set()

    def _run(self, folder: str) -> None:
        import ray

        try:
            if not folder or self._attended(Path(folder)):
                settle()
        finally:
            ray.kill(ray.get_runtime_context().current_actor)

    def _attended(self, folder: Path) -> bool:
        given = files.read(folder / files.GIVEN)
        if given is None:
            self._says = _unseen(folder)
            self._stop.wait(_HEARD_S)
            return False
        if not files.create(folder / files.CLAIM, {"owner": f"{OWNER}{_actor()}"}):
            return False  # it was given up before it began
        try:
            told = Gang(folder, given, self._variables, self._stop).run()
        except Exception as error:  # noqa: BLE001 (whatever Ray raises, the attempt gets its recorded end)
            told = _ended("infra", f"Ray could not run it: {type(error).__name__}: {str(error)[:_MESSAGE]}")
        write_down(folder, told)
        return True


class NodeActor:
    """Runs the part of an attempt that is one node's.

    Args:
        variables: By which the workspace is opened.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._process: subprocess.Popen[str] | None = None
        self._stopping: Told | None = None
        self._starting = threading.Lock()

    def address(self) -> str:
        """Where the ranks can come together, on this node."""
        import ray

        found: Any = ray.util
        address = found.get_node_ip_address()
        return f"{address}:{free_port(address)}"

    def run(self, folder: str, ranks: Sequence[int], of: int, coordinator: str | None) -> Told:
        """Runs it to its end.

        Args:
            folder: The attempt's.
            ranks: Of this node.
            of: How many there are on all nodes.
            coordinator: Where they come together.

        Returns:
            What `mms_sdk.schema.job.Ended` holds.
        """
        there = Path(folder)
        if files.read(there / files.GIVEN) is None:
            return _ended("infra", _unseen(there))
        with self._starting:
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", part.MODULE, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**_variables(stores="://" in self._variables.get(DATASETS_VARIABLE, "")), **self._variables},
                text=True,
            )
            self._say({"ranks": of_ranks(range(*ranks), of=of, gpus=_gpus(), coordinator=coordinator)})
            if self._stopping is not None:
                self._say(self._stopping)
        assert process.stdout is not None
        said = process.stdout.read()
        process.wait()
        if said:
            told: Told = json.loads(said)
            return told
        _end_orphans(there)
        return _ended("lost", f"what looked after it on {_here()} is gone: it was killed")

    def stop(self, told: Told) -> None:
        """Makes it stop, for a reason and with a grace."""
        with self._starting:
            self._stopping = told
            if self._process is not None:
                self._say(told)

    def _say(self, told: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps(told)}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended
            return


class Gang:
    """The nodes of an attempt: all of them, or none."""

    def __init__(self, folder: Path, given: Told, variables: Mapping[str, str], stop: threading.Event) -> None:
        self._folder = folder
        self._given = given
        self._variables = variables
        self._stop = stop

    def run(self) -> Told:
        """Runs the attempt to its end; returns what `mms_sdk.schema.job.Ended` holds."""
        from ray.util import remove_placement_group

        group = self._placed()
        if group is None:
            told = self._reason_to_stop()
            assert told is not None
            return _ended(told["reason"], told["detail"])
        try:
            made = _made_on(group, self._given["of_node"])
            actors = [options.remote(self._variables) for options in made]
            return self._joined(actors, self._started(actors))
        finally:
            remove_placement_group(group)

    def _placed(self) -> Any:
        # None if it is to stop first. A node that went down may still have been counted when the job was taken.
        from ray.util import remove_placement_group

        nodes, each = self._given["nodes"], self._given["of_node"]
        group = _group(nodes, each)
        while not group.wait(_PLACED_S):
            there = max(self._given["min_nodes"], _count_of(each))
            stops = self._reason_to_stop() is not None
            if stops or there < nodes:
                remove_placement_group(group)
                if stops:
                    return None
                nodes, group = there, _group(there, each)
        return group

    def _started(self, actors: Sequence[Any]) -> list[Any]:
        import ray

        each = self._given["processes"]
        count = len(actors) * each
        coordinator = ray.get(actors[0].address.remote()) if count > 1 else None
        return [
            actor.run.remote(str(self._folder), (node * each, (node + 1) * each), count, coordinator)
            for node, actor in enumerate(actors)
        ]

    def _joined(self, actors: Sequence[Any], running: list[Any]) -> Told:
        import ray

        ends: list[Told] = []  # in the order in which they came, but for those that we brought about
        failed_at = math.inf
        told: Told | None = None
        while running:
            ended, running = ray.wait(running, timeout=_LOOK_S)
            ends += [end for end in map(_end_of, ended) if end["detail"] != _OTHER]
            if failed_at == math.inf and any(end["reason"] != "succeeded" for end in ends):
                failed_at = time.monotonic()
            if told is None and (told := self._reason_to_stop(failed_at)):
                for actor in actors:
                    actor.stop.remote(told)
        return _cause(ends)

    def _reason_to_stop(self, failed_at: float = math.inf) -> Told | None:
        if self._is_cancelled():
            return {"reason": "cancelled", "detail": "it was cancelled", "grace_s": self._given["grace_s"]}
        if (asked := files.read(self._folder / files.PREEMPT)) is not None:
            return {"reason": "preempted", "detail": asked["why"], "grace_s": self._given["grace_s"]}
        if time.monotonic() > failed_at + _OTHERS_S:
            # They do their work together: what one of them does not outlive, the others cannot end without it.
            return {"reason": "infra", "detail": _OTHER, "grace_s": 0.0}
        return None

    def _is_cancelled(self) -> bool:
        return self._stop.is_set() or (self._folder / files.CANCEL).exists()


def settle() -> None:
    """Records what ended and starts what waits, until nothing waits to be tried again, or the workspace is gone."""
    pause_s, longest_s = AGAIN_S
    workspace = Path(os.environ[WORKSPACE_VARIABLE])
    while workspace.exists():
        try:
            due_s = _settled(workspace)
        except Exception as error:  # noqa: BLE001 (the catalog is away, or the cluster busy: until it is back)
            sys.stderr.write(f"the workspace could not be settled: {type(error).__name__}: {str(error)[:_MESSAGE]}\n")
            time.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)
        else:
            if not due_s:
                return
            time.sleep(min(due_s + 0.01, longest_s))


def _settled(root: Path) -> float | None:
    from mms_sdk.compute.engines.ray.cluster import Connected
    from mms_sdk.compute.engines.ray.engine import RayEngine
    from mms_sdk.settings import default_catalog, default_datasets
    from mms_sdk.storage.workspace import Workspace

    workspace = Workspace(root, catalog=default_catalog(), datasets=default_datasets(), make=False)
    try:
        engine = RayEngine(workspace, Connected(), comes_back=False)
        engine.reconcile()
        engine.start_waiting()
        return workspace.catalog.attempts.next_due_s(engine.name)
    finally:
        workspace.close()


def _group(nodes: int, each: Mapping[str, int]) -> Any:
    from ray.util import placement_group

    bundle = {name: has for name, has in each.items() if has}
    return placement_group([bundle] * nodes, strategy="STRICT_SPREAD")


def _count_of(each: Mapping[str, int]) -> int:
    from mms_sdk.compute.engines.ray.cluster import Connected

    nodes = Connected().nodes()
    return sum(has.cpus >= each["CPU"] and has.gpus >= each["GPU"] and has.memory >= each["memory"] for has in nodes)


def _made_on(group: Any, each: Mapping[str, int]) -> list[Any]:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    made: Any = ray.remote(NodeActor)
    return [
        made.options(
            num_cpus=each["CPU"],
            num_gpus=each["GPU"],
            memory=each["memory"] or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            max_restarts=0,
            max_concurrency=2,  # it is told to stop while it runs
        )
        for number in range(group.bundle_count)
    ]


def _end_of(running: Any) -> Told:
    import ray

    try:
        told: Told = ray.get(running)
    except ray.exceptions.RayActorError:
        return _ended("lost", "a node went down, or what Ray ran there was killed")
    return told


def _cause(ends: Sequence[Told]) -> Told:
    # JAX aborts those whose others failed; or they fail by errors of their own, after the first.
    def how_likely(end: Told) -> tuple[int, float]:
        kind = "SIGABRT" if end.get("signal") == "SIGABRT" else end["reason"]
        return _CAUSES.index(kind), end.get(RAISED_AT, math.inf)

    return min(ends, key=how_likely)


def _ended(reason: str, detail: str) -> Told:
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"reason": reason, "detail": detail, "at": at}


def _unseen(folder: Path) -> str:
    return (
        f"each node sees the workspace under the same path; {_here()} does not see {folder}; mount the workspace "
        f"there, too"
    )


def _gpus() -> list[str]:
    # Of a job without any, too: it sees none of the node's then.
    import ray

    return [str(each) for each in ray.get_gpu_ids()]


def _here() -> str:
    return f"node {socket.gethostname()}"


def _actor() -> str:
    import ray

    return str(ray.get_runtime_context().get_actor_id())


def _variables(*, stores: bool) -> dict[str, str]:
    # What a job sees of the node; and by which it submits others to the same workspace and cluster.
    import ray

    seen = environment(os.environ, more=_OF_RAY, stores=stores)
    return {**seen, RAY_VARIABLE: ray.get_runtime_context().gcs_address}


def _end_orphans(folder: Path) -> None:
    from mms_sdk.compute.engines.attempt import end_orphans

    given = files.read(folder / files.GIVEN) or {}
    end_orphans(folder, files.cookie(given["job"], given["number"]))
