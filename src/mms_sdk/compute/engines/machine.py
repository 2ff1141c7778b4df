"""This machine: what there is of it, and which variables of this process a job sees."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from mms_sdk.compute.engines.folder import COORDINATOR, RANK, RANKS
from mms_sdk.settings import COMPILE_CACHE_VARIABLE, SECRETS_VARIABLE

# What a process needs to run, to find its libraries and devices, and to speak a language. No tokens, no passwords.
_PLAIN = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
    | {COMPILE_CACHE_VARIABLE}  # what one job compiled, the next one finds
)
_FAMILIES = re.compile(r"(LC|XLA|JAX|CUDA|NVIDIA|NCCL|TPU|OMP|OPENBLAS|MKL|CONDA|SSL_CERT|XDG)_\w+|NPROC")
# How pip finds packages; not where it puts them, which is the engine's to say.
_PIP = re.compile(
    r"PIP_((EXTRA_)?INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|CERT|CONFIG_FILE|CACHE_DIR|DEFAULT_TIMEOUT|RETRIES|PROXY)"
)
_PASSWORD = re.compile(r"://[^/\s]*@")
# But for those of a family that let somebody in, e.g. NVIDIA_API_KEY.
_SECRET = re.compile(r"\w*(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD)\w*")
# Only where datasets lie in such a store, which jobs read.
_STORES = re.compile(r"(AWS|GOOGLE|AZURE|HADOOP)_\w+")


def environment(given: Mapping[str, str], *, more: Sequence[str] = (), stores: bool = False) -> dict[str, str]:
    """The variables of this process that a job sees; within a job not its secrets, whatever they are called.

    Args:
        given: Those of this process.
        more: Names beside the usual ones.
        stores: Those by which object stores know a person, too.
    """
    secrets = given.get(SECRETS_VARIABLE, "").split(",")
    return {
        name: value
        for name, value in given.items()
        if name in more
        or (
            name not in secrets
            and (
                name in _PLAIN
                or (_FAMILIES.fullmatch(name) and not _SECRET.fullmatch(name))
                or (_PIP.fullmatch(name) and not _PASSWORD.search(value))
                or (stores and _STORES.fullmatch(name))
            )
        )
    }


def of_ranks(
    ranks: range, *, of: int, gpus: Sequence[str] | None = None, coordinator: str | None = None
) -> list[dict[str, str]]:
    """The variables by which each worker of a machine knows which it is, where all come together, and its GPUs.

    Args:
        ranks: Of this machine.
        of: How many there are in all.
        gpus: Names of GPUs, which the ranks divide; None on a machine that has none.
        coordinator: An address and a port.
    """
    told = [{RANK: str(rank), RANKS: str(of)} for rank in ranks]
    if coordinator and of > 1:
        told = [{**each, COORDINATOR: coordinator} for each in told]
    if gpus is not None:
        share = len(gpus) // len(ranks)
        told = [
            {**each, "CUDA_VISIBLE_DEVICES": ",".join(gpus[at * share : (at + 1) * share])}
            for at, each in enumerate(told)
        ]
    return told


def free_port(address: str) -> int:
    """A port that nobody listens on.

    Somebody else may take it before the first rank does: then the ranks do not come together, and it is tried again.
    """
    with socket.socket() as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])


def gpus_here(given: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that this process may use: as `$CUDA_VISIBLE_DEVICES` says, or all that Linux shows."""
    if "CUDA_VISIBLE_DEVICES" in given:
        named = [each.strip() for each in given["CUDA_VISIBLE_DEVICES"].split(",")]
        return [each for each in named if each and each != "-1"]
    return sorted((path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")), key=int)


def cores_here() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
