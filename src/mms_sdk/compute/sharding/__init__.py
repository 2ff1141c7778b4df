"""Which array lies on which device; `mms.sharding`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mms_sdk.compute.sharding.attention import exchanged_attention, ring_attention
    from mms_sdk.compute.sharding.mesh import current_mesh, make_mesh
    from mms_sdk.compute.sharding.processes import join_processes
    from mms_sdk.compute.sharding.report import ShardingReport
    from mms_sdk.compute.sharding.rules import Placement

# Resolved late: the trainer needs the mesh before anybody needs JAX, and attention is nothing without it.
_HOME = {
    "Placement": "rules",
    "ShardingReport": "report",
    "current_mesh": "mesh",
    "exchanged_attention": "attention",
    "join_processes": "processes",
    "make_mesh": "mesh",
    "ring_attention": "attention",
}

__all__ = [
    "Placement",
    "ShardingReport",
    "current_mesh",
    "exchanged_attention",
    "join_processes",
    "make_mesh",
    "ring_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mms_sdk.sharding' has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"mms_sdk.compute.sharding.{_HOME[name]}"), name)
