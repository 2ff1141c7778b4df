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
_GATHERED_S = 120.0  # how long it is tried to begin on nodes that go down meanwhile: Ray notices it after 15 s
_AGAIN_S = 3.0  # before a node that could not be asked is asked again
_UNHEARD_S = 120.0  # so long; then what runs there is given up
_OTHERS_S = 1.0  # after one node failed, how long it is looked for another whose death was the cause
_OTHER = "another node failed"
# Which of several ends was the cause: with a node that died, the others fail by errors of their own.
_CAUSES = ("lost", "cancelled", "preempted", "oom", "timeout", "infra", "user", "SIGABRT", "succeeded")
_MESSAGE = 1000
_HEARD_S = 600.0  # how long a complaint is kept for whoever comes to hear it
# By which a job submits others. Where the token lies; what it is only if a variable has it, as KubeRay's does: the part
# that is given it masks it.
_RAY_VARIABLES = (RAY_OPEN_VARIABLE, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", part.TOKEN)


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
        self._ended: Told | None = None
        self._starting = threading.Lock()
        self._waiting = threading.Lock()

    def address(self) -> str:
        """Where the ranks can come together, on this node."""
        import ray

        found: Any = ray.util
        address = found.get_node_ip_address()
        return f"{address}:{free_port(address)}"

    def run(self, folder: str, ranks: Sequence[int], of: int, coordinator: str | None) -> Told:
        """Runs it to its end; asked again, tells of the same end.

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
            if self._process is None:
                self._start(folder, {"ranks": of_ranks(range(*ranks), of=of, gpus=_gpus(), coordinator=coordinator)})
        with self._waiting:
            if self._ended is None:
                self._ended = self._end(there)
            return self._ended

    def _start(self, folder: str, told: Told) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", part.MODULE, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_variables(stores="://" in self._variables.get(DATASETS_VARIABLE, "")), **self._variables},
            text=True,
        )
        self._say(told)
        if self._stopping is not None:
            self._say(self._stopping)

    def _end(self, folder: Path) -> Told:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        said = process.stdout.read()
        process.wait()
        if said:
            told: Told = json.loads(said)
            return told
        _end_orphans(folder)
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


class NodePart:
    """The part of an attempt that a node's actor runs.

    Args:
        actor: Which.
        words: What it is told to run.
    """

    def __init__(self, actor: Any, words: tuple[Any, ...]) -> None:
        self._actor = actor
        self._words = words
        self._unheard = (-math.inf, -math.inf)  # since when, and until when so far

    def given_up(self) -> Told | None:
        """How it ended, if it could not be asked for too long; None if it is to be asked again, now."""
        time.sleep(_AGAIN_S)
        since, until = self._unheard
        here = time.monotonic()
        since = here if here > until + 2 * _AGAIN_S else since  # it was heard of in between
        self._unheard = (since, here)
        if here < since + _UNHEARD_S:
            return None
        return _ended("lost", f"its node could not be asked for {_UNHEARD_S:.0f} s; what it still does changes nothing")

    def run(self) -> Any:
        """Has it run, or say again how it ended; returns what to wait for."""
        return self._actor.run.remote(*self._words)

    def stop(self, told: Told | None) -> None:
        """Makes it stop, if it is to."""
        if told is not None:
            self._actor.stop.remote(told)


class Gang:
    """The nodes of an attempt: all of them, or none."""

    def __init__(self, folder: Path, given: Told, variables: Mapping[str, str], stop: threading.Event) -> None:
        self._folder = folder
        self._given = given
        self._variables = variables
        self._stop = stop
        self._why = ""

    def run(self) -> Told:
        """Runs the attempt to its end; returns what `mms_sdk.schema.job.Ended` holds."""
        from ray.util import remove_placement_group

        until = time.monotonic() + _GATHERED_S
        while True:
            if (group := self._placed()) is not None:
                try:
                    actors = [made.remote(self._variables) for made in _made_on(group, self._given["of_node"])]
                    if (coordinator := self._gathered(actors)) is not None:
                        return self._joined(self._parts(actors, coordinator))
                finally:
                    remove_placement_group(group)
            if (told := self._reason_to_stop()) is not None:
                return _ended(told["reason"], told["detail"])
            if time.monotonic() > until:
                return _ended("infra", f"no nodes stayed for as long as it takes to begin: {self._why}")

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

    def _gathered(self, actors: Sequence[Any]) -> str | None:
        # Where all of them come together; None if one is not there, or they are to stop first. Nothing has run yet, so
        # that the attempt is not spent on a node that went down in this moment.
        import ray

        asked = [actor.address.remote() for actor in actors]
        while ray.wait(asked, num_returns=len(asked), timeout=_LOOK_S)[1]:
            if self._reason_to_stop() is not None:
                return None
        try:
            first: str = ray.get(asked)[0]
        except ray.exceptions.RayActorError as error:
            self._why = _of_ray(error)
            self._stop.wait(_PLACED_S)
            return None
        return first

    def _parts(self, actors: Sequence[Any], coordinator: str) -> list[NodePart]:
        each = self._given["processes"]
        count = len(actors) * each
        told = coordinator if count > 1 else None
        return [
            NodePart(actor, (str(self._folder), (node * each, (node + 1) * each), count, told))
            for node, actor in enumerate(actors)
        ]

    def _joined(self, parts: Sequence[NodePart]) -> Told:
        import ray

        ends: list[Told] = []  # in the order in which they came, but for those that we brought about
        failed_at = math.inf
        told: Told | None = None
        running = {part.run(): part for part in parts}
        while running:
            for reference in ray.wait(list(running), timeout=_LOOK_S)[0]:
                part = running.pop(reference)
                end = _end_of(reference)
                if end is None and (end := part.given_up()) is None:
                    running[part.run()] = part
                    part.stop(told)  # which it may not have heard
                elif end["detail"] != _OTHER:
                    ends.append(end)
            if failed_at == math.inf and any(end["reason"] != "succeeded" for end in ends):
                failed_at = time.monotonic()
            if told is None and (told := self._reason_to_stop(failed_at)):
                for part in parts:
                    part.stop(told)
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
            max_concurrency=64,  # it is told to stop while it runs, or asked again, and again, how it ended
        )
        for number in range(group.bundle_count)
    ]


def _end_of(running: Any) -> Told | None:
    # None if its node cannot be asked for the moment: it may well run on there.
    import ray

    try:
        told: Told = ray.get(running)
    except ray.exceptions.ActorUnavailableError:
        return None
    except ray.exceptions.RayActorError as error:
        return _ended("lost", f"a node went down, or what Ray ran there was killed: {_of_ray(error)}")
    return told


def _of_ray(error: Exception) -> str:
    # The first lines say which actor it was; the last ones why.
    return " ".join(str(error).split("\n")[-1].split())[:_MESSAGE]


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

    seen = environment(os.environ, more=_RAY_VARIABLES, stores=stores)
    return {**seen, RAY_VARIABLE: ray.get_runtime_context().gcs_address}


def _end_orphans(folder: Path) -> None:
    from mms_sdk.compute.engines.attempt import end_orphans

    given = files.read(folder / files.GIVEN) or {}
    end_orphans(folder, files.cookie(given["job"], given["number"]))
