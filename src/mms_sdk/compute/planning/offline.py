"""The memory of a step compiled for a TPU that is not there, by libtpu and `jax.experimental.topologies`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from typing import Any

import numpy as np

from mms_sdk.compute.planning.case import Case
from mms_sdk.compute.planning.devices import Target
from mms_sdk.compute.planning.plan import DeviceBytes, Options
from mms_sdk.errors import InvalidRequest


def compiled_bytes(case: Case, options: Options, estimated: DeviceBytes) -> DeviceBytes | None:
    """What the compiler gives each device, from half a second to minutes; None where it cannot be asked.

    That is without libtpu, and for a target that it does not compile for.

    Raises:
        InvalidRequest: There is no such slice, or the compiler refuses the program, e.g. because it does not fit.
    """
    if not case.target.device.compiles or importlib.util.find_spec("libtpu") is None:
        return None
    mesh = _mesh(case.target, options)
    program = replace(case.on(mesh), options=case.step_options(options, accumulate=options.accumulate))
    vars(program)["abstract"] = case.program.abstract
    try:
        found = _compiled(case, program, options).memory_analysis()
    except Exception as error:  # XLA's errors have no common class; the first line says what it lacks
        told = str(error).strip().partition("\n")[0]
        raise InvalidRequest(
            f"the compiler takes a program that fits {case.target}; it says: {told}; plan without compile=True, and "
            f"look at the suggestions"
        ) from error
    # State and batch are arguments, and the state is given back in the same place.
    beside = found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    whole = found.argument_size_in_bytes + found.generated_code_size_in_bytes + beside
    gradients = min(estimated.gradients, found.temp_size_in_bytes)
    known = estimated.parameters + estimated.optimizer + estimated.batch // 3 + gradients
    return replace(estimated, gradients=gradients, activations=max(0, whole - known))


def _compiled(case: Case, program: Any, options: Options) -> Any:
    import jax

    def placed(value: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    state = jax.tree.map(placed, program.abstract, program.shardings)
    totals = jax.ShapeDtypeStruct((len(program._totals),), np.float32, sharding=program.shardings.step)
    batch = case.batch(options.batch_size, program.batch_sharding)
    return program.step.lower(program.flat(state), totals, *batch).compile()


def _mesh(target: Target, options: Options) -> Any:
    import jax
    from jax.experimental import topologies

    # libtpu otherwise asks a metadata server for the machine's neighbours, of which there are none, and two processes
    # that plan at once get in each other's way, though neither has a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    shape = "x".join(map(str, target.topology if target.count > 1 else (1, 1, 1)))
    # libtpu takes four chips a host unless it is told, and one chip then is no slice.
    host = {"chips_per_host_bounds": (1, 1, 1)} if target.count == 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{target.device.name}:{shape}", **host)
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        raise InvalidRequest(
            f"libtpu describes the slice that a program is compiled for; of {target} it says: {told}; plan without "
            f"compile=True"
        ) from error
    sizes = options.mesh
    axes = (jax.sharding.AxisType.Auto,) * len(sizes)
    # In the order of the topology: a mesh that does not follow its axes is compiled all the same.
    devices: Any = np.array(topology.devices).reshape(tuple(sizes.values()))
    return jax.sharding.Mesh(devices, tuple(sizes), axis_types=axes)
