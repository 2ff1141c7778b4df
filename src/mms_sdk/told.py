"""Numbers as people read them, and text from outside as a terminal may show it."""

from __future__ import annotations

import math


def size(count: int) -> str:
    """Bytes in the unit that suits them: `812 bytes`, `1.2 KiB`, `3.4 GiB`."""
    if count < 1024:
        return counted(count, "byte")
    power = min(5, (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:,.1f} {'KMGTP'[power - 1]}iB"


def duration(seconds: float) -> str:
    """Time in the two units that suit it: `0.4 s`, `12 s`, `3 min 20 s`, `5 h 7 min`, `2 d 4 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole, names = round(seconds), ("s", "min", "h", "d")
    parts = [whole % 60, whole // 60 % 60, whole // 3600 % 24, whole // 86400]
    first = max((at for at, part in enumerate(parts) if part), default=0)
    return " ".join(f"{parts[at]} {names[at]}" for at in range(first, max(-1, first - 2), -1))


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 part`, `1,412 parts`, `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def number(value: float) -> str:
    """A number in at most six significant digits; whole ones in full."""
    if isinstance(value, int) or (math.isfinite(value) and value == round(value) and abs(value) < 1e6):
        return f"{int(value):,}"
    return f"{value:.6g}"


def cell(value: object) -> str:
    """A value in a table: a long fraction in six digits, and a dash for none."""
    if value is None:
        return "–"
    text = str(value)
    return f"{value:.6g}" if isinstance(value, float) and len(text) > 9 else text


def on_one_line(text: str) -> str:
    """A text in which nothing moves a terminal's cursor: line ends and escape sequences are spelled out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def on_its_lines(text: str) -> str:
    """A text in which nothing but line ends moves a terminal's cursor."""
    return "\n".join(map(on_one_line, text.split("\n")))
