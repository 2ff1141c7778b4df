"""Small drawings for notebooks, as SVG, and the same as a line of text for terminals.

Lines have the colour of the text around them, so that they are seen on a light page and on a dark one. A drawing says
in words what it shows, for those who do not see it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby

WIDTH, HEIGHT = 200, 40
_BLOCKS = "▁▂▃▄▅▆▇█"


def blocks(counts: Sequence[int]) -> str:
    """A histogram as one line of text; a bin that holds nothing is blank."""
    top = max(counts, default=0)
    return "".join(_BLOCKS[min(7, 8 * count // top)] if count else " " for count in counts)


def histogram(counts: Sequence[int], told: str, *, width: int = 96, height: int = 24) -> str:
    """A bar for each bin, as high as its share of the fullest."""
    top, step = max(counts, default=0), width / max(1, len(counts))
    bars = "".join(
        f'<rect x="{at * step:.1f}" y="{height - _high(count, top, height):.1f}" width="{max(1, step - 1):.1f}" '
        f'height="{_high(count, top, height):.1f}" fill="#4c8bf5"/>'
        for at, count in enumerate(counts)
        if count
    )
    ground = f'<path d="M0 {height - 0.5}H{width}" stroke="currentColor" stroke-opacity=".4"/>'
    return _drawing(bars + ground, told, width, height)


def lines(series: Sequence[Sequence[float]], told: str, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """One line for each series of finite numbers, on a common scale; a gap where there is NaN."""
    finite = [value for values in series for value in values if value == value]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, so that the span of the largest numbers there are is a number too.
    span = high / 2 - low / 2
    drawn = []
    for values in series:
        step = width / max(1, len(values) - 1)
        heights = [height - (value / 2 - low / 2) / span * height if span else height / 2 for value in values]
        marks = [f"{at * step:.1f} {high:.1f}" if high == high else "" for at, high in enumerate(heights)]
        runs = [list(run) for there, run in groupby(marks, bool) if there]
        path = "".join(f"M{'L'.join(run)}" if len(run) > 1 else f"M{run[0]}h.1" for run in runs)
        drawn.append(f'<path d="{path}" fill="none" stroke="currentColor" stroke-linecap="round"/>')
    return _drawing("".join(drawn), told, width, height)


def parallel(
    axes: Sequence[tuple[str, Sequence[tuple[float, str]]]],
    rows: Sequence[tuple[Sequence[float], str]],
    told: str,
    *,
    height: int = 160,
) -> str:
    """One upright axis for each name and one line for each row across them.

    Args:
        axes: Names, and what is written at which place, from 0 at the bottom to 1.
        rows: Places on the axes, and the colour of the line.
        told: In words what is seen.
        height: Of the axes.
    """
    step, top = 130, 34  # room for the names, and for what stands at the top
    width = step * max(1, len(axes) - 1)
    drawn = []
    for at, (name, marks) in enumerate(axes):
        x, anchor = at * step, "start" if at == 0 else "end" if at == len(axes) - 1 else "middle"
        drawn.append(f'<path d="M{x} {top}V{top + height}" stroke="currentColor" stroke-opacity=".4"/>')
        drawn.append(_text(x, 12, name, anchor, weight=600))
        for place, text in marks:
            y = top + height * (1 - place) + (-6 if place == 1 else 14 if place == 0 else 4)
            drawn.append(_text(x, y, text, anchor) if place in (0, 1) else _text(x + 5, y, text, "start"))
    for places, color in rows:
        points = " ".join(f"{at * step},{top + height * (1 - place):.1f}" for at, place in enumerate(places))
        drawn.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{points}"/>')
    return _drawing("".join(drawn), told, width, top + height + 20)


def scatter(
    values: Sequence[float], best: Sequence[float], ends: tuple[str, str], told: str, *, height: int = 120
) -> str:
    """One point for each finite number in order, nothing for NaN, and the best so far as a line of steps.

    Args:
        values: The numbers.
        best: Of each and all before it.
        ends: The least and the greatest, as they are written.
        told: In words what is seen.
        height: Of the span of the numbers.
    """
    finite = [value for value in values if value == value]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    left, radius, width = 70, 2.5, 360  # room for the ends
    # Halved, so that the span of the largest numbers there are is a number too.
    span, step = (high / 2 - low / 2) or 1.0, width / max(1, len(values) - 1)

    def placed(numbers: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (left + at * step, radius + height - (value / 2 - low / 2) / span * height)
            for at, value in enumerate(numbers)
            if value == value
        ]

    points = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="#4c8bf5"/>' for x, y in placed(values))
    (x, y), *later = placed(best) or [(0.0, 0.0)]
    path = "".join(f"H{x:.1f}V{y:.1f}" for x, y in later)
    line = f'<path d="M{x:.1f} {y:.1f}{path}" fill="none" stroke="#e8710a"/>'
    numbers = _text(left - 8, height + 5, ends[0], "end") + _text(left - 8, 9, ends[1], "end")
    return _drawing(numbers + line + points, told, left + width + 5, height + 5)


def _text(x: float, y: float, text: str, anchor: str, *, weight: int = 400) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="11" font-weight="{weight}" '
        f'fill="currentColor">{escape(text)}</text>'
    )


def reliability(bins: Sequence[tuple[float, float]], told: str, *, side: int = 160) -> str:
    """A bar for each bin as high as the share of right answers, and the line where that equals the confidence.

    Args:
        bins: Mean confidence and share, in [0, 1], of each bin in order; NaN for both where it holds nothing.
        told: In words what is seen.
        side: Of the drawing.
    """
    left, step = 34, side / max(1, len(bins))
    bars = "".join(
        f'<rect x="{left + at * step:.1f}" y="{side - share * side:.1f}" width="{max(1, step - 1):.1f}" '
        f'height="{share * side:.1f}" fill="#4c8bf5" fill-opacity=".6"/>'
        f'<circle cx="{left + sure * side:.1f}" cy="{side - share * side:.1f}" r="2.5" fill="#e8710a"/>'
        for at, (sure, share) in enumerate(bins)
        if share == share
    )
    axes = f'<path d="M{left} 0V{side}H{left + side}" fill="none" stroke="currentColor" stroke-opacity=".4"/>'
    line = f'<path d="M{left} {side}L{left + side} 0" stroke="currentColor" stroke-dasharray="3 3"/>'
    numbers = _text(left - 6, 9, "1", "end") + _text(left - 6, side, "0", "end")
    below = _text(left, side + 14, "0", "start") + _text(left + side, side + 14, "1", "end")
    name = _text(left + side / 2, side + 14, "confidence", "middle")
    return _drawing(bars + axes + line + numbers + below + name, told, left + side + 4, side + 18)


def wave(peaks: Sequence[tuple[float, float]], told: str, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The outline of a sound: for each moment the least and greatest sample, in [-1, 1]."""
    step, half = width / max(1, len(peaks)), height / 2
    above = [f"{(at + 0.5) * step:.1f} {half - high * half - 0.25:.1f}" for at, (_, high) in enumerate(peaks)]
    below = [f"{(at + 0.5) * step:.1f} {half - low * half + 0.25:.1f}" for at, (low, _) in enumerate(peaks)]
    outline = f'<path d="M{"L".join([*above, *reversed(below)])}Z" fill="currentColor"/>' if peaks else ""
    return _drawing(outline, told, width, height)


def picture(png: bytes, told: str, *, pixels: int = 64) -> str:
    """A PNG picture, drawn with hard pixels."""
    return (
        f'<img alt="{escape(told)}" width="{pixels}" style="image-rendering:pixelated;margin:0;max-width:none" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def sound(wav: bytes, told: str, *, width: int = WIDTH) -> str:
    """A WAV file that is played when a person asks for it."""
    return (
        f'<audio controls preload="metadata" aria-label="{escape(told)}" style="width:{width}px;height:32px" '
        f'src="data:audio/wav;base64,{base64.b64encode(wav).decode()}"></audio>'
    )


def _high(count: int, top: int, height: int) -> float:
    return max(1.0, (height - 1) * count / top)


def _drawing(body: str, told: str, width: int, height: int) -> str:
    return (
        f'<svg role="img" aria-label="{escape(told)}" viewBox="-1 -1 {width + 2} {height + 2}" width="{width + 2}" '
        f'height="{height + 2}" style="display:block">{body}</svg>'
    )
