"""Which jobs have room on which nodes: sums on what each node has, as the catalog knows what was given of them.

Ray decides where a job's parts go. If others use the cluster, too, or its parts lie badly, a job that has room here
waits there until it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mms_sdk.compute.engines.ray.cluster import Node
from mms_sdk.schema.job import Resources
from mms_sdk.storage.queue import Given


def shape_of(nodes: Iterable[Node], asked: Resources, count: int) -> Node:
    """What a job takes of each of some nodes: of what it leaves open, all that each of the largest has."""
    largest = sorted(nodes, key=_size, reverse=True)[:count]
    return Node(
        cpus=min((node.cpus for node in largest), default=1) if asked.cpus is None else asked.cpus,
        gpus=min((node.gpus for node in largest), default=0) if asked.gpus is None else asked.gpus,
        memory=asked.memory or 0,
    )


def suiting(nodes: Iterable[Node], asked: Resources) -> list[Node]:
    """Nodes that have what a job asks of each, taken or not."""
    least = Node(cpus=asked.cpus or 1, gpus=asked.gpus or 0, memory=asked.memory or 0)
    return [node for node in nodes if _has(node, least)]


def fitting(nodes: Sequence[Node], asked: Resources, taken: Sequence[Given]) -> Given | None:
    """What a job is given beside what others have; None if there is too little left."""
    able = suiting(nodes, asked)
    count = len(able) if (asked.min_nodes or asked.nodes) <= len(able) < asked.nodes else asked.nodes
    shape, free = shape_of(able, asked, count), list(nodes)
    for given in taken:
        _place(free, Node(cpus=given["cpus"], gpus=given["gpus"], memory=given["memory"]), given["nodes"])
    # What the cluster has less of than when the job was submitted, is waited for by Ray, and by nobody behind it.
    if not _place(free, shape, count) and taken:
        return None
    cores = max((node.cpus for node in nodes), default=1)
    return {"nodes": count, "cpus": shape.cpus, "gpus": shape.gpus, "memory": shape.memory, "cores": cores}


def _place(free: list[Node], shape: Node, count: int) -> bool:
    # On as many nodes, each another one; those that have the least to spare.
    able = sorted((node for node in free if _has(node, shape)), key=_size)
    for node in able[:count]:
        free.remove(node)
        left = Node(cpus=node.cpus - shape.cpus, gpus=node.gpus - shape.gpus, memory=node.memory - shape.memory)
        free.append(left)
    return len(able) >= count


def _has(node: Node, shape: Node) -> bool:
    return node.cpus >= shape.cpus and node.gpus >= shape.gpus and node.memory >= shape.memory


def _size(node: Node) -> tuple[int, int, int]:
    return node.gpus, node.cpus, node.memory
