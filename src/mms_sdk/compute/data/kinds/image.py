"""Pictures: from the bytes of a file to an array, the same way everywhere.

A picture becomes uint8 of shape (height, width, channels), upright (EXIF orientation applied), first frame only,
16 bits scaled to 8, transparency laid over white, CMYK and palettes turned into the colours one sees.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from mms_sdk.compute.data.near_duplicates import picture_hash
from mms_sdk.errors import InvalidInput
from mms_sdk.types import Array

Color = Literal["gray", "rgb"]
CHANNELS: dict[Color, int] = {"gray": 1, "rgb": 3}
DEFAULT_MAX_PIXELS = 50_000_000

# Pillow warns of what it thinks large before we can say that it is too large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Formats whose decoders are widely fuzzed; Pillow knows dozens more that nobody's photographs use.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Modes that Pillow does not convert to all others.
_BETWEEN = {"La": "LA", "LAB": "RGB"}
_GRAY_MODES = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a picture is, once it was decoded.

    Attributes:
        size: (height, width), upright.
        gray: Whether it has no colours.
        notes: What had to be done to it, e.g. `animated: first of 3 frames`.
        hash: What it looks like, if that was asked for; None for a picture without structure.
    """

    size: tuple[int, int]
    gray: bool
    notes: tuple[str, ...] = ()
    hash: int | None = None


def inspect(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, hashed: bool = False) -> Facts:
    """Decodes a picture to see that it can be, and tells what it is.

    Args:
        data: The bytes of a file.
        max_pixels: Larger pictures are refused before they are decoded.
        hashed: Whether its perceptual hash is wanted.

    Raises:
        InvalidInput: It does not decode, or is too large.
    """
    image, notes = _open(data, max_pixels=max_pixels)
    looks = picture_hash(to_array(image, color="gray")) if hashed else None
    return Facts(size=(image.height, image.width), gray=_is_gray(image), notes=notes, hash=looks)


def size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a picture's file says it has, before it is turned upright; None if it is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # noqa: BLE001 - a decoder fed with garbage raises whatever it trips over
        return None


def decode(data: bytes, *, color: Color, max_pixels: int = DEFAULT_MAX_PIXELS) -> Array:
    """Decodes a picture.

    Args:
        data: The bytes of a file.
        color: Number of channels to come out: `gray` 1, `rgb` 3.
        max_pixels: Larger pictures are refused before they are decoded.

    Returns:
        uint8, shape (height, width, channels).

    Raises:
        InvalidInput: It does not decode, or is too large.
    """
    image, _ = _open(data, max_pixels=max_pixels)
    return to_array(image, color=color)


def to_array(image: Image.Image, *, color: Color) -> Array:
    """An opened picture as uint8 of shape (height, width, channels)."""
    if image.mode.startswith("I"):
        # 16 bits to 8: 65535 is 257 * 255, so this is exact rounding.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((np.clip(wide, 0, 65535) + 128) // 257).astype(np.uint8))
    image = image.convert(_BETWEEN.get(image.mode, image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("L" if color == "gray" else "RGB"))
    return array[:, :, None] if color == "gray" else array


def of_array(array: Array) -> Image.Image:
    """A uint8 array of shape (height, width, 1 or 3) as a picture."""
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def encode_png(array: Array) -> bytes:
    """A uint8 array of shape (height, width, 1 or 3) as the bytes of a PNG file."""
    out = io.BytesIO()
    of_array(array).save(out, "PNG")
    return out.getvalue()


def resize(array: Array, size: tuple[int, int]) -> Array:
    """Resizes uint8 of shape (height, width, channels) with an antialiased bilinear filter.

    Args:
        array: The picture.
        size: (height, width) wanted.

    Returns:
        uint8, shape (*size, channels).
    """
    if array.shape[:2] == tuple(size):
        return array
    image = of_array(array)
    out = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return out[:, :, None] if out.ndim == 2 else out


def shrink(array: Array, side: int) -> Array:
    """A picture no larger than `side` pixels either way, its aspect ratio kept; smaller ones stay as they are."""
    height, width = array.shape[:2]
    scale = min(1.0, side / max(height, width))
    return resize(array, (max(1, round(height * scale)), max(1, round(width * scale))))


def _open(data: bytes, *, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= max_pixels and image.mode != "F":
            notes = _notes(image)
            image.load()
            return ImageOps.exif_transpose(image), notes
        seen = f"{image.width:,}×{image.height:,} = {pixels:,} pixels, mode {image.mode}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        seen = str(error)
    except Exception as error:  # a decoder fed with garbage raises whatever it trips over
        reason = "it is empty" if not data else str(error).split("<_io.BytesIO")[0].strip()
        raise InvalidInput(
            f"this is not a readable picture ({reason}); MMS reads {', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        ) from error
    raise InvalidInput(
        f"a picture has at most {max_pixels:,} pixels of whole numbers; this one has {seen}; make it smaller, or raise "
        f"max_pixels"
    )


def _is_gray(image: Image.Image) -> bool:
    if image.mode != "P":
        return image.mode in _GRAY_MODES
    colours = np.reshape(image.getpalette() or [], (-1, 3))
    return bool((colours == colours[:, :1]).all())


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"animated: first of {frames} frames taken")
    if image.mode.startswith("I"):
        notes.append("16 bits scaled to 8")
    if image.mode == "CMYK":
        notes.append("CMYK converted")
    if image.has_transparency_data:
        notes.append("transparency laid over white")
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright by its EXIF orientation")
    return tuple(notes)
