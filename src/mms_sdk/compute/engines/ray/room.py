"""Which jobs have room on which nodes: sums on what each node has, as the catalog knows what was given of them.

Ray decides where a job's parts go. If others use the cluster, too, or its parts lie badly, a job that has room here
waits there until it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mms_sdk.compute.engines.ray.cluster import Node
from mms_sdk.schema.job import JobSpec
from mms_sdk.storage.attempts import Given


def shape_of(nodes: Sequence[Node], spec: JobSpec, count: int) -> Node:
    """What a job takes of each of some nodes: of what it leaves open, all that each of the largest has."""
    asked, largest = spec.resources, _largest_first(nodes)[:count]
    return Node(
        cpus=min((node.cpus for node in largest), default=1) if asked.cpus is None else asked.cpus,
        gpus=min((node.gpus for node in largest), default=0) if asked.gpus is None else asked.gpus,
        memory=asked.memory or 0,
    )


def suiting(nodes: Sequence[Node], spec: JobSpec) -> list[Node]:
    """Nodes that have what a job asks of one, taken or not."""
    shape = shape_of(nodes, spec, 1)
    least = Node(
        cpus=shape.cpus if spec.resources.cpus else 1,
        gpus=shape.gpus if spec.resources.gpus else 0,
        memory=shape.memory,
    )
    return [node for node in nodes if _has(node, least)]


def fitting(nodes: Sequence[Node], spec: JobSpec, taken: Iterable[Given]) -> Given | None:
    """What a job is given beside what others have; None if there is too little left."""
    count = 1
    shape = shape_of(nodes, spec, count)
    free, alone = list(nodes), True
    for given in taken:
        alone = False
        _place(free, Node(cpus=given["cpus"], gpus=given["gpus"], memory=given["memory"]), given["nodes"])
    fits = _place(free, shape, count)
    cores = max((node.cpus for node in nodes), default=1)
    given = {"nodes": count, "cpus": shape.cpus, "gpus": shape.gpus, "memory": shape.memory, "cores": cores}
    # What the cluster has less of than when the job was submitted, is waited for by Ray, and by nobody behind it.
    return given if fits or alone else None


def _place(free: list[Node], shape: Node, count: int) -> bool:
    # On as many nodes, each another one; those that have the least to spare.
    able = sorted((node for node in free if _has(node, shape)), key=lambda node: (node.gpus, node.cpus, node.memory))
    for node in able[:count]:
        free.remove(node)
        free.append(
            Node(
                cpus=node.cpus - shape.cpus,
                gpus=node.gpus - shape.gpus,
                memory=node.memory - shape.memory,
            )
        )
    return len(able) >= count


def _has(node: Node, shape: Node) -> bool:
    return node.cpus >= shape.cpus and node.gpus >= shape.gpus and node.memory >= shape.memory


def _largest_first(nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (node.gpus, node.cpus, node.memory), reverse=True)
