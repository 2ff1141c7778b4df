"""Clips written with PyAV: codecs that lose nothing, and those that people use."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np


def frames(count: int = 12, *, height: int = 32, width: int = 48, seed: int = 0) -> Any:
    """Noise: uint8, shape (count, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def encode(
    pictures: Sequence[Any],
    *,
    form: str = "matroska",
    codec: str = "ffv1",
    pixels: str = "bgr0",
    rate: int = 25,
    options: dict[str, str] | None = None,
) -> bytes:
    """The bytes of a file with these frames."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def write(path: Path, pictures: Sequence[Any], **how: Any) -> Path:
    """The same, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pictures, **how))
    return path
