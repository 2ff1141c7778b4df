"""Which parts of an input a score rests on, found by hiding one part after another.

Occlusion sensitivity (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, section 4.2):
the drop of a score when a part is replaced by something that says nothing. It asks the model as it is served, so it
works for every model, needs no gradient, and compiles nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mms_sdk.types import Array

MAX_PARTS = 64
"""Parts that an input is cut into at most: 8 by 8 of a picture, so many stretches of anything else."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An input cut into parts.

    Attributes:
        number: The part that each position is in, from 0; shape (height, width) of a picture, else that of the input.
        hidden: The input with each part hidden, shape (parts, *input shape).
        baseline: What a part is replaced by, in words.
    """

    number: Array
    hidden: Array
    baseline: str

    def saliency(self, score: float, scores: Array) -> Array:
        """How much of a score each position holds: what it falls by when the position's part is hidden.

        Args:
            score: Of the whole input.
            scores: With each part hidden, shape (parts,).

        Returns:
            float32 of the shape of `number`; below 0 where hiding a part raises the score.
        """
        return (np.float32(score) - np.asarray(scores, np.float32))[self.number]


def cut(row: Array, *, picture: bool) -> Parts:
    """Cuts a prepared input into parts and hides each.

    Args:
        row: As the device takes it; of a picture (height, width, channels).
        picture: Parts are rectangles, and hidden by the picture's mean colour. Others are stretches of the flat input,
            such as a token, a column or a while of a recording, and hidden by 0.
    """
    if picture:
        side = int(np.sqrt(MAX_PARTS))
        down, across = (_stretches(length, side) for length in row.shape[:2])
        number = down[:, None] * (across.max() + 1) + across[None, :]
        blank: Any = np.rint(row.mean((0, 1))).astype(row.dtype)
        spread = number[..., None]
    else:
        number = _stretches(row.size, MAX_PARTS).reshape(row.shape)
        blank, spread = row.dtype.type(0), number
    hidden = np.stack([np.where(spread == part, blank, row) for part in range(int(number.max()) + 1)])
    return Parts(number=number, hidden=hidden, baseline="the picture's mean colour" if picture else "0")


def as_png(row: Array, saliency: Array) -> bytes:
    """The picture in gray, with what speaks for the score in red and what speaks against it in blue."""
    gray = row.mean(2)
    strength = saliency / max(float(np.abs(saliency).max()), 1e-12)
    shown = np.stack([gray] * 3, axis=2) * (1 - np.abs(strength)[..., None])
    shown[..., 0] += 255 * np.maximum(strength, 0)
    shown[..., 2] += 255 * np.maximum(-strength, 0)
    out = io.BytesIO()
    Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _stretches(length: int, most: int) -> Array:
    parts = min(length, most)
    return np.arange(length) * parts // max(1, length)
