"""What a study looks like: drawings for notebooks, and the same as text."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from mms_sdk import drawings, html, told
from mms_sdk.client.tables import aligned
from mms_sdk.schema.tuning import Choice, LogUniform, Params, StudySpec

Outcome = tuple[Params, float | None]
"""The values of a trial, and the metric if it is complete."""

_COLORS = ("#e8710a", "#4c8bf5", "#9aa0a6")  # the best, the better half, the rest
_SHOWN = 10


class Drawing:
    """What is drawn in a notebook, and as text elsewhere."""

    def __init__(self, svg: str, text: str) -> None:
        self.svg = svg
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self.svg


class Importance(dict[str, float]):
    """Shares by name, the greatest first; shows itself as bars."""

    def __repr__(self) -> str:
        return aligned([{"name": name, "share": f"{share:.3f}"} for name, share in self.items()])

    def _repr_html_(self) -> str:
        return html.bars("importance", self.items())


def history(spec: StudySpec, outcomes: Sequence[Outcome]) -> Drawing:
    """The metric of each trial in order, and the best so far."""
    values = [float("nan") if value is None else value for _, value in outcomes]
    finite = [value for value in values if value == value]
    if not finite:
        return Drawing("", "no trial is complete yet")
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    best = _best_so_far(values, better=min if spec.direction == "minimize" else max)
    heights = [1 + round(7 * (value - low) / span) if value == value else 0 for value in values]
    said = f"{spec.metric} of {len(finite)} trials, from {told.number(low)} to {told.number(high)}, best {best[-1]:.6g}"
    ends = told.number(low), told.number(high)
    return Drawing(drawings.scatter(values, best, ends, said), f"{drawings.blocks(heights)}  {said}")


def parallel(spec: StudySpec, outcomes: Sequence[Outcome]) -> Drawing:
    """All complete trials across one axis for each name, and one for the metric; as text, the best ones in rows."""
    sign = 1 if spec.direction == "minimize" else -1
    done = sorted(((value, params) for params, value in outcomes if value is not None), key=lambda at: sign * at[0])
    if not done:
        return Drawing("", "no trial is complete yet")
    low, high = min(value for value, _ in done), max(value for value, _ in done)
    axes = [_axis(name, each) for name, each in spec.space.items()]
    axes.append((spec.metric, [(0, told.number(low)), (1, told.number(high))]))
    rows = []
    for at, (value, params) in enumerate(done):
        places = [_place(spec.space[name], params[name]) for name in spec.space]
        rows.append(
            ([*places, (value - low) / (high - low or 1.0)], _COLORS[0 if at == 0 else 1 + (2 * at > len(done))])
        )
    said = f"{len(done)} trials by {', '.join(spec.space)} and {spec.metric}"
    cells = [{**{name: told.cell(each) for name, each in params.items()}, spec.metric: value} for value, params in done]
    # The best is drawn last, over the others.
    return Drawing(drawings.parallel(axes, rows[::-1], said), aligned(cells[:_SHOWN]))


def _best_so_far(values: Sequence[float], *, better: Any) -> list[float]:
    best: list[float] = []
    for value in values:
        known = [each for each in (*best[-1:], value) if each == each]
        best.append(better(known) if known else float("nan"))
    return best


def _axis(name: str, asked: Any) -> tuple[str, list[tuple[float, str]]]:
    ends = asked.values if isinstance(asked, Choice) else (asked.low, asked.high)
    return name, [(_place(asked, value), told.cell(value)) for value in ends]


def _place(asked: Any, value: Any) -> float:
    if isinstance(asked, Choice):
        return asked.values.index(value) / max(1, len(asked.values) - 1)
    if isinstance(asked, LogUniform) or getattr(asked, "log", False):
        return log(value / asked.low) / log(asked.high / asked.low)
    return float((value - asked.low) / (asked.high - asked.low))
