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
