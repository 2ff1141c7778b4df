"""Several processes that do one piece of work together under `jax.distributed`: who writes, and what they agree on.

The first process alone writes what there is one of: rows of the catalog, the metric log, manifests. Orbax writes the
arrays of a checkpoint from all of them. With one process nothing here waits or sends.
"""

from __future__ import annotations

import numpy as np

_WAIT_S = 3600  # for a manifest over large files; a process that has died ends the others by its missing heartbeat
_TEXT_BYTES = 64


def is_first() -> bool:
    """Whether this process writes for all."""
    import jax

    return jax.process_index() == 0


def rank() -> int:
    """Which of them this process is, from 0."""
    import jax

    return int(jax.process_index())


def count() -> int:
    """How many there are."""
    import jax

    return int(jax.process_count())


def wait_for_all(what: str) -> None:
    """Waits until every process says that it is there; unlike JAX's own, safe on any thread.

    Args:
        what: The same in every process, and used once.
    """
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"mms:{what}", timeout_ms=_WAIT_S * 1000)


def agreed(value: int) -> int:
    """What the first process says, a number from 0. Every process asks, in the same order and on its main thread."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def anyone(value: bool) -> bool:
    """Whether it is so in any process. Every process asks, in the same order and on its main thread."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    return bool(np.asarray(multihost_utils.process_allgather(np.int32(value))).any())


def agreed_text(text: str) -> str:
    """Likewise for up to 64 bytes of text, such as an id."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return text
    padded = np.frombuffer(text.encode().ljust(_TEXT_BYTES, b"\0"), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).rstrip(b"\0").decode()
