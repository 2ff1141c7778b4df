"""What the engine asks of Ray, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mms_sdk.compute.engines.ray.actors import AttemptActor

NAMESPACE = "mms"
"""In which actors have their names."""
_SAYS_WITHIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, on which jobs can run.

    Attributes:
        cpus: Cores.
        gpus: How many GPUs.
        memory: Bytes.
    """

    cpus: int
    gpus: int
    memory: int

    def __str__(self) -> str:
        return f"one of {self.cpus} cores, {self.gpus} GPUs and {self.memory:,} bytes"


class Cluster(Protocol):
    """A Ray cluster. All calls raise `Unavailable` if it cannot be reached, and are idempotent."""

    def nodes(self) -> list[Node]:
        """Those that are alive and have cores to give."""

    def start(self, actor: str, folder: str, variables: Mapping[str, str]) -> None:
        """Starts the actor that looks after an attempt, unless one of that name is there.

        Args:
            actor: Its name.
            folder: The attempt's; none for an actor that only starts what waits.
            variables: By which it opens the workspace.
        """

    def says(self, actor: str) -> str | None:
        """Why an actor cannot do its work; nothing if it can, or does not say; None if it is not there."""

    def stop(self, actor: str) -> None:
        """Tells an actor to look whether its attempt was cancelled, or to go, if it cannot do its work."""


class Connected:
    """The cluster that this process is connected to; see `Cluster`."""

    def nodes(self) -> list[Node]:
        """See `Cluster`."""
        import ray

        of_ray: Any = ray
        alive = [node["Resources"] for node in of_ray.nodes() if node["Alive"]]
        return [
            Node(cpus=int(has["CPU"]), gpus=int(has.get("GPU", 0)), memory=int(has.get("memory", 0)))
            for has in alive
            if has.get("CPU", 0) >= 1
        ]

    def start(self, actor: str, folder: str, variables: Mapping[str, str]) -> None:
        """See `Cluster`."""
        import ray

        made: Any = ray.remote(AttemptActor)
        options = made.options(
            name=actor,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=0,  # an attempt is claimed once; the next one has an actor of its own
        )
        options.remote(folder, dict(variables))

    def says(self, actor: str) -> str | None:
        """See `Cluster`."""
        import ray

        try:
            asked = _of_name(actor).says.remote()
            said: str = ray.get(asked, timeout=_SAYS_WITHIN_S)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
            return ""  # it has yet to begin, or its node cannot be asked for the moment
        except (ValueError, ray.exceptions.RayActorError):
            return None
        return said

    def stop(self, actor: str) -> None:
        """See `Cluster`."""
        import ray

        try:
            _of_name(actor).stop.remote()
        except (ValueError, ray.exceptions.RayActorError):
            return


def as_json(nodes: list[Node]) -> list[dict[str, int]]:
    """Nodes as they go through a door."""
    return [asdict(node) for node in nodes]


def _of_name(actor: str) -> Any:
    import ray

    return ray.get_actor(actor, namespace=NAMESPACE)
