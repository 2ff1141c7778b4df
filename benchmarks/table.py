"""What a measurement reports, how it is printed, and how two things are compared.

Always in the same run, in turns, by the median of the ratios: other work on the machine slows everything it meets, and
what stands side by side meets the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement beside its peer or limit.

    Attributes:
        what: What was measured.
        mms: What MMS did, with its unit.
        beside: The peer or limit, and what it did.
        ratio: MMS over the peer, more is better; or what was used over the limit, less is better; NaN if there is none.
        target: What the ratio should be, e.g. `>= 0.90`; empty for a row that only informs.
    """

    what: str
    mms: str
    beside: str
    ratio: float
    target: str = ""

    @property
    def met(self) -> str:
        """Whether the target was reached."""
        if not self.target:
            return ""
        sign, _, number = self.target.partition(" ")
        reached = self.ratio >= float(number) if sign == ">=" else self.ratio <= float(number)
        return "yes" if reached else "NO"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        ratio = "–" if math.isnan(self.ratio) else f"{self.ratio:.2f}"
        return (self.what, self.mms, self.beside, ratio, self.target or "–", self.met or "–")

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "ratio": None if math.isnan(self.ratio) else self.ratio, "met": self.met}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Row:
        """What `told` said."""
        ratio = math.nan if told["ratio"] is None else told["ratio"]
        return cls(what=told["what"], mms=told["mms"], beside=told["beside"], ratio=ratio, target=told["target"])


def not_measured(what: str, needs: str) -> Row:
    """A row that says what its measurement lacks, and how that is installed."""
    return Row(what=what, mms="not measured", beside=f"needs: {needs}", ratio=math.nan)


HEAD = ("what", "MMS", "peer or limit", "ratio", "target", "met?")


def plain(rows: Sequence[Row]) -> str:
    """The rows as a table for a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each run returned in each round; every second round is run backwards."""
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            seen[name].append(runs[name]())
    return seen


def speedup(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median over the rounds of the peer's time over ours: above 1 we are faster."""
    return median(theirs / mine for mine, theirs in zip(ours, peer, strict=True))
