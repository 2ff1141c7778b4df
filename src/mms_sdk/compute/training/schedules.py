"""Learning-rate schedules."""

from __future__ import annotations

from typing import Any


def warmup_cosine(peak: float, *, steps: int, warmup: float = 0.05, end: float = 0.0) -> Any:
    """A learning rate that rises linearly and then falls along half a cosine.

    Args:
        peak: Highest rate.
        steps: Optimiser steps in all; afterwards the rate stays at `end`.
        warmup: Share of the steps spent rising, in [0, 1).
        end: Rate at the end.

    Returns:
        An optax schedule, for e.g. `optax.adamw(mms.warmup_cosine(3e-3, steps=1000))`. Source: Loshchilov and Hutter,
        SGDR, 2017, section 3, with one cycle.
    """
    import optax

    rising = max(1, round(warmup * steps))
    return optax.warmup_cosine_decay_schedule(0.0, peak, rising, max(steps, rising + 1), end)
