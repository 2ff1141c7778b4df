"""When a training that runs is taken for one that hangs, and which of its processes is slower than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mms_sdk.compute.monitoring.late import late_of
from mms_sdk.schema.rank import Beat, Rank


@dataclass(frozen=True, kw_only=True)
class HangAlarm:
    """Alarm when no step comes.

    Never while any process compiles, evaluates or saves: those take as long as they take, and the others wait for it.

    Attributes:
        times: So many usual steps without a new one.
        at_least_s: And so many seconds: other work on the machine, or a slow disk, may hold tiny steps up for long.
        first_s: Seconds without a first step, which waits for data.
    """

    times: float = 20.0
    at_least_s: float = 120.0
    first_s: float = 3600.0

    def reason(self, beats: Sequence[Beat], *, now: float) -> str | None:
        """Why it seems to hang, in words; None if it does not.

        Args:
            beats: What its processes said last.
            now: The time, in seconds since 1970.
        """
        if any(each.phase not in ("starting", "training") for each in beats):
            return None
        for each in beats:
            took, limit = now - each.at, self._limit_s(each)
            if took > limit:
                usual = f", which usually take {each.step_s:.3g} s" if each.step_s else ""
                return f"process {each.rank} has taken no step for {took:.0f} s{usual}; it is at step {each.step:,}"
        return None

    def _limit_s(self, beat: Beat) -> float:
        return self.first_s if beat.phase == "starting" else max(self.at_least_s, self.times * beat.step_s)


def ranks_of(beats: Sequence[Beat], *, now: float) -> list[Rank]:
    """How each process gets on beside the others."""
    known = [each.step_s for each in beats if each.step_s]
    middle = median(known) if known else 0.0
    late = late_of(beats)
    return [
        Rank(
            rank=each.rank,
            step=each.step,
            phase=each.phase,
            since_s=max(0.0, now - each.at),
            step_s=each.step_s,
            ratio=each.step_s / middle if each.step_s else None,
            input_wait=each.input_wait,
            step_wait=each.step_wait,
            holds_up=late.get(each.rank),
        )
        for each in beats
    ]
