"""Drawing rows with replacement: what comes at a position is a pure function of (weights, seed, epoch, position)."""

from __future__ import annotations

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.types import Array, Rows

_A_COUNT = 4  # numbers of 64 bits that Philox makes at each count (Salmon et al. 2011)


class Draws:
    """Draws places in proportion to their weights, by a counter-based generator: any stretch without what is before it.

    Args:
        weights: At least 0, not all 0, shape (places,).
        seed: Chooses the draws.
    """

    def __init__(self, weights: Array, *, seed: int) -> None:
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise InvalidRequest(
                f"weights of rows are finite, at least 0 and not all 0; got {weights.min()} to {weights.max()}; "
                f"give 0 to rows that never come"
            )
        self._ends = np.cumsum(weights, dtype=np.float64)
        self._seed = seed

    def at(self, start: int, stop: int, *, epoch: int) -> Rows:
        """The places drawn at positions from `start` to before `stop`, int64."""
        skipped = start % _A_COUNT
        key = np.random.SeedSequence([self._seed & 2**63 - 1, epoch]).generate_state(2, np.uint64)
        bits = np.random.Philox(key=key).advance(start // _A_COUNT)
        uniform = np.random.Generator(bits).random(stop - start + skipped)[skipped:]
        found = np.searchsorted(self._ends, uniform * self._ends[-1], side="right").astype(np.int64)
        # A product may be rounded up to the last end.
        drawn: Rows = np.minimum(found, np.searchsorted(self._ends, self._ends[-1]))
        return drawn
