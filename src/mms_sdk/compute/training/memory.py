"""Devices whose memory a run does not fit into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mms_sdk.errors import TrainingFailed


@contextlib.contextmanager
def memory_told(batch_size: int, *, more: str = "") -> Iterator[None]:
    """Says what to change where a device has no memory left, which JAX tells by a status in the text of its error.

    Args:
        batch_size: Rows in a step, named in the message.
        more: What the message ends in.

    Raises:
        TrainingFailed: It has none.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TrainingFailed(
            f"a step fits into the memory of the devices; one with batch_size={batch_size} did not: {error}; lower "
            f"batch_size, cut it with accumulate=2 or more, keep less with remat='dots' or 'all', or divide the "
            f'parameters with mesh={{"data": -1, "fsdp": …}}{more}'
        ) from error
