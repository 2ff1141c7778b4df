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
    axes: Sequence[tuple[str, str, str]], rows: Sequence[tuple[Sequence[float], str]], told: str, *, height: int = 160
) -> str:
    """One upright axis for each name and one line for each row across them.

    Args:
        axes: Names, and what stands at the bottom and at the top.
        rows: Places on the axes, from 0 at the bottom to 1, and the colour of the line.
        told: In words what is seen.
        height: Of the axes.
    """
    step, top = 130, 34  # room for the names and the numbers above
    width = step * max(1, len(axes) - 1)
    marks = []
    for at, (name, low, high) in enumerate(axes):
        anchor = "start" if at == 0 else "end" if at == len(axes) - 1 else "middle"
        marks.append(f'<path d="M{at * step} {top}V{top + height}" stroke="currentColor" stroke-opacity=".4"/>')
        for y, text, weight in ((12, name, 600), (top - 6, high, 400), (top + height + 14, low, 400)):
            marks.append(
                f'<text x="{at * step}" y="{y}" text-anchor="{anchor}" font-size="11" font-weight="{weight}" '
                f'fill="currentColor">{escape(text)}</text>'
            )
    drawn = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="'
        + " ".join(f"{at * step},{top + height * (1 - place):.1f}" for at, place in enumerate(places))
        + '"/>'
        for places, color in rows
    )
    return _drawing("".join(marks) + drawn, told, width, top + height + 20)


def scatter(values: Sequence[float], best: Sequence[float], told: str, *, width: int = 360, height: int = 120) -> str:
    """One point for each finite number in order, nothing for NaN, and the best so far as a line of steps."""
    finite = [value for value in values if value == value]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, so that the span of the largest numbers there are is a number too.
    span, step = (high / 2 - low / 2) or 1.0, width / max(1, len(values) - 1)

    def up(value: float) -> float:
        return height - (value / 2 - low / 2) / span * height

    points = "".join(
        f'<circle cx="{at * step:.1f}" cy="{up(value):.1f}" r="2.5" fill="#4c8bf5"/>'
        for at, value in enumerate(values)
        if value == value
    )
    known = [(at * step, up(value)) for at, value in enumerate(best) if value == value]
    path = "".join(f"H{x:.1f}V{y:.1f}" for x, y in known[1:])
    line = f'<path d="M{known[0][0]:.1f} {known[0][1]:.1f}{path}" fill="none" stroke="#e8710a"/>' if known else ""
    return _drawing(line + points, told, width, height)


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
