"""Which of several processes the others wait for, where each step waits for all of them.

All take as long as the slowest, so that how long a step takes tells nothing. But who comes late to where they meet
waits there least. A device that itself is slow does its part of the step while the others wait, and its process waits
with them: that is not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from mms_sdk.schema.rank import Beat, HoldsUp

_LEAST = 0.1
"""Of a step, by which one waits less for steps than the others usually do before it is told: two cores shared by two
processes part them by some hundredths."""


def late_of(beats: Sequence[Beat]) -> dict[int, HoldsUp]:
    """Those that come late, by rank, and what they do meanwhile.

    Args:
        beats: What the processes of a training said last; of those that train, two at least.
    """
    steady = [each for each in beats if each.step_s and each.phase == "training"]
    found: dict[int, HoldsUp] = {}
    for each in steady:
        others = [other for other in steady if other.rank != each.rank]
        if not others or each.step_wait > median(other.step_wait for other in others) - _LEAST:
            continue
        more_data = each.input_wait - median(other.input_wait for other in others)
        more_code = _code(each) - median(_code(other) for other in others)
        found[each.rank] = "data" if more_data > more_code else "host"
    return found


def _code(beat: Beat) -> float:
    # What is left of its time: no wait for data, and none for steps.
    return max(0.0, 1.0 - beat.input_wait - beat.step_wait)
