"""What each of several trials at once gets of a machine, and which variables they see."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mms_sdk.settings import COMPILE_CACHE_VARIABLE

# What a process needs to run, to find its libraries and devices, and to speak a language. No tokens, no passwords.
_PLAIN = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
    | {COMPILE_CACHE_VARIABLE}  # what one trial compiled, the next one finds
)
_FAMILIES = re.compile(r"(LC|XLA|JAX|CUDA|NVIDIA|NCCL|TPU|OMP|OPENBLAS|MKL|CONDA|SSL_CERT|XDG)_\w+|NPROC")
# Only where datasets lie in such a store, which trials read.
_STORES = re.compile(r"(AWS|GOOGLE|AZURE|HADOOP)_\w+")


def environment(given: Mapping[str, str], *, more: Sequence[str] = (), stores: bool = False) -> dict[str, str]:
    """The variables of this process that trials see.

    Args:
        given: Those of this process.
        more: Names beside the usual ones.
        stores: Those by which object stores know a person, too.
    """
    return {
        name: value
        for name, value in given.items()
        if name in _PLAIN or name in more or _FAMILIES.fullmatch(name) or (stores and _STORES.fullmatch(name))
    }


def share(given: Mapping[str, str], slot: int, slots: int, *, gpus: Sequence[str], cores: int) -> dict[str, str]:
    """The variables that give one of several trials its devices.

    With as many GPUs as trials at once or more, each has its own; with fewer, they share memory in equal parts. The
    threads that compute on CPU cores are divided likewise.

    Args:
        given: Those that are set already, and win where they say how many threads.
        slot: Which trial of those at once, from 0.
        slots: How many at once.
        gpus: Names of the GPUs.
        cores: How many CPU cores there are.
    """
    if slots == 1:
        return {}
    threads = str(max(1, cores // slots))
    # XLA's CPU client takes NPROC for the number of its threads.
    told = {name: threads for name in ("NPROC", "OMP_NUM_THREADS") if name not in given}
    if not gpus:
        return told
    if len(gpus) >= slots:
        own = [gpu for at, gpu in enumerate(gpus) if at * slots // len(gpus) == slot]
        return {**told, "CUDA_VISIBLE_DEVICES": ",".join(own)}
    sharing = -(-slots // len(gpus))
    told["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}", **told}


def gpus_here(given: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that this process may use: as `$CUDA_VISIBLE_DEVICES` says, or all that Linux shows."""
    if "CUDA_VISIBLE_DEVICES" in given:
        named = [each.strip() for each in given["CUDA_VISIBLE_DEVICES"].split(",")]
        return [each for each in named if each and each != "-1"]
    return sorted((path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")), key=int)


def cores_here() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
