"""What single values look like: each kind as a drawing for a notebook and as a few words for a terminal.

How a kind looks is its line in `_LOOKS`, at the end. What is played or drawn is encoded anew, so nothing else of a file
is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mms_sdk import drawings, told
from mms_sdk.compute.data.kinds import audio, image, video
from mms_sdk.compute.data.kinds.tabular import told_values
from mms_sdk.errors import InvalidInput, MissingExtra
from mms_sdk.schema.dataset import Column
from mms_sdk.types import Array, Rows

PICTURE_PIXELS = 128
TEXT_SIGNS = 240
_POINTS = 120  # of a line; more would be drawn over one another
_LINES = 4
_SOUND_SECONDS = 5.0
_SOUND_BYTES = 2**22  # of all sounds of a preview together


@dataclass(frozen=True, kw_only=True)
class Look:
    """A drawing of one value, and what it is in a few words.

    Attributes:
        text: In words.
        drawing: As HTML.
        told: Whether the words stand below the drawing too.
    """

    text: str
    drawing: str
    told: bool = True

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.drawing


def looks(column: Column, values: Any, *, caption: Callable[[int], str] = lambda _: "") -> list[Any]:
    """What some values of a column look like: a `Look` where there is something to draw, else words or a number.

    Args:
        column: The column.
        values: As `OpenSnapshot.gather` returns them.
        caption: What a picture is called for those who do not see it, by its place among the values.

    Returns:
        One for each value; None where there is none.
    """
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ndarray) else [value is None for value in values]
    if column.kind not in _LOOKS and not column.shape:
        return told_values(column, values)
    found: list[Any] = []
    for at, (value, gone) in enumerate(zip(values, masked, strict=True)):
        if np.all(gone):
            found.append(None)
            continue
        try:
            found.append(_LOOKS.get(column.kind, _numbers)(column, value, caption(at), len(values)))
        except (InvalidInput, MissingExtra) as error:
            found.append(error.message)
    return found


def _picture(column: Column, value: Any, caption: str, _: int) -> Look:
    array = image.decode(value, color=column.color or "rgb") if isinstance(value, bytes) else value
    text = f"{array.shape[1]}×{array.shape[0]} {'gray' if array.shape[2] == 1 else 'rgb'}"
    png = image.encode_png(image.shrink(array, PICTURE_PIXELS))
    pixels = min(PICTURE_PIXELS, max(64, array.shape[1]))
    drawing = drawings.picture(png, caption or text, pixels=pixels)
    return Look(text=text, drawing=drawing, told=column.varies)


def _clip(column: Column, value: bytes, caption: str, count: int) -> Look:
    look = _picture(column, video.poster(value), caption, count)
    return Look(text=f"{look.text}, {told.size(len(value))}", drawing=look.drawing, told=True)


def _sound(column: Column, value: Any, _: str, count: int) -> Look | str:
    if isinstance(value, bytes):
        samples, rate, seconds = audio.beginning(value, seconds=_SOUND_SECONDS)
    else:
        samples, rate = value.reshape(len(value), prod(value.shape[1:])), column.rate_hz or 0.0
        seconds = len(value) / rate if rate else 0.0
    if not rate or not len(samples):
        return f"{told.counted(len(samples), 'sample')}, {samples.dtype}"
    text = f"{seconds:.2f} s, {rate:,g} Hz, {told.counted(samples.shape[1], 'channel')}"
    mono = _mono(samples)
    frames = max(1, min(int(rate * _SOUND_SECONDS), _SOUND_BYTES // (2 * count)))
    heard = f"the first {frames / rate:.1f} s of {text}" if frames < seconds * rate - 1 else text
    played = drawings.sound(_wav(mono[:frames], rate), heard)
    return Look(text=text, drawing=f"{drawings.wave(_peaks(mono[:frames]), f'waveform of {heard}')}{played}")


def _mono(samples: Array) -> Array:
    scale = 1 / 32768 if samples.dtype == np.int16 else 1.0
    mixed: Array = np.nan_to_num(samples.astype(np.float32), posinf=1, neginf=-1).mean(axis=1) * scale
    return np.clip(mixed, -1, 1)


def _wav(mono: Array, rate: float) -> bytes:
    return audio.encode_wav((mono * 32767).astype("<i2"), rate_hz=max(1, round(rate)))


def _peaks(mono: Array) -> list[tuple[float, float]]:
    pieces = np.array_split(mono, min(_POINTS, len(mono)))
    return [(float(piece.min()), float(piece.max())) for piece in pieces]


def _numbers(column: Column, value: Any, _: str, __: int) -> Look | str:
    items = np.asarray(value)
    text = f"{items.dtype} {'×'.join(map(str, items.shape))}"
    if column.rate_hz and items.ndim:
        text = f"{len(items) / column.rate_hz:.2f} s, {text}"
    wide = items.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return text
    ends = f"{finite.min():.4g} to {finite.max():.4g}"
    channels = wide.reshape(len(wide), -1).T if column.varies and wide.ndim > 1 else wide.reshape(1, -1)
    shown = [_thinned(np.where(np.isfinite(each), each, np.nan)) for each in channels[:_LINES]]
    more = f", the first {_LINES} of {len(channels)}" if len(channels) > _LINES else ""
    return Look(text=f"{text}, {ends}", drawing=drawings.lines(shown, f"{text}, {ends}{more}"))


def _thinned(values: Array) -> list[float]:
    # Of each stretch the least and the greatest, in their order, so that no spike is lost.
    if len(values) <= _POINTS:
        return [float(value) for value in values]
    found: list[float] = []
    for piece in np.array_split(values, _POINTS // 2):
        if np.isnan(piece).all():
            found += [float("nan")] * 2
        else:
            ends = sorted((int(np.nanargmin(piece)), int(np.nanargmax(piece))))
            found += [float(piece[at]) for at in ends]
    return found


def _text(_: Column, value: bytes, __: str, ___: int) -> str:
    # Four bytes are the most that UTF-8 takes for a sign.
    text = value[: 4 * TEXT_SIGNS].decode("utf-8", "replace")
    short = len(text) <= TEXT_SIGNS and len(value) <= 4 * TEXT_SIGNS
    return text if short else f"{text[:TEXT_SIGNS]}…"


def _bytes(_: Column, value: bytes, __: str, ___: int) -> str:
    return told.size(len(value))


def choose(codes: Array | None, rows: Sequence[int] | Array, *, classes: int, most: int) -> Rows:
    """Rows that show what there is: some of each class, or, without classes, some from everywhere.

    Args:
        codes: Of the classes of `rows`; None if they have none.
        rows: Row numbers, ascending.
        classes: How many classes there are.
        most: How many rows.
    """
    numbers = np.asarray(rows, np.int64)
    if codes is None or not classes:
        return numbers[_spread(len(numbers), most)]
    of_each = 2 if 2 * classes <= most else 1
    shown = _spread(classes, most // of_each).tolist()
    return np.concatenate([numbers[np.flatnonzero(np.ma.filled(codes == code, False))[:of_each]] for code in shown])


def _spread(count: int, most: int) -> Rows:
    return np.linspace(0, max(0, count - 1), min(most, count)).astype(np.int64)


_LOOKS: dict[str, Callable[[Column, Any, str, int], Look | str]] = {
    "image": _picture,
    "encoded-image": _picture,
    "audio": _sound,
    "encoded-audio": _sound,
    "encoded-video": _clip,
    "bytes": _bytes,
    "text": _text,
}
