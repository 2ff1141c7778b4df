"""Pictures of every sort, made without the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG, as its specification numbers them


def noise(height: int, width: int, channels: int = 3, *, seed: int = 0) -> np.ndarray:
    """Random uint8 of shape (height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def png(samples: np.ndarray, color_type: int, *, bits: int = 8, chunks: Mapping[bytes, bytes] | None = None) -> bytes:
    """A PNG file by the letter of its specification (W3C, second edition), unfiltered.

    Args:
        samples: Whole numbers of shape (height, width, channels).
        color_type: One of the five.
        bits: Of each sample; below 8 for one channel only.
        chunks: What else stands before the picture, e.g. `PLTE` and `tRNS`.
    """
    height, width, _ = samples.shape
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in samples]
    elif bits == 8:
        lines = [row.astype(np.uint8).tobytes() for row in samples]
    else:
        lines = []
        for row in samples[:, :, 0]:
            split = (row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
            lines.append(np.packbits(split.reshape(-1)).tobytes())
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(b"".join(b"\0" + line for line in lines), 1)}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in {**parts, b"IEND": b""}.items())


def huge_png(side: int) -> bytes:
    """A white square of so many pixels a side and one bit each, in a few kilobytes."""
    line = b"\0" + b"\xff" * (-(-side // 8))
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(line * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, GRAY, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file of that kind."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write(path: Path, data: bytes | np.ndarray) -> Path:
    """Puts a picture into a folder that may not be there yet; an array becomes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else saved(data))
    return path


def write_classes(root: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (6, 5), seed: int = 0) -> None:
    """A folder of pictures by class, every one another."""
    for number, (label, count) in enumerate(sorted(counts.items())):
        for index in range(count):
            write(root / label / f"{index:03d}.png", noise(*size, seed=seed + 1000 * number + index))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
