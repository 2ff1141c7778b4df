"""What each of several trials at once gets of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
