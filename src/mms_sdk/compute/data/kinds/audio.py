"""Sound: from the bytes of a file to samples.

Sixteen-bit samples become int16, all others float32 in [-1, 1], of shape (frames, channels).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from mms_sdk.errors import InvalidInput, MissingExtra
from mms_sdk.types import Array

_BLOCK_FRAMES = 2**16


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recording is, once it was decoded.

    Attributes:
        rate_hz: Frames in a second.
        channels: Samples in a frame.
        frames: How many.
        dtype: Of its samples, `int16` or `float32`.
        plain: Whether the file holds the samples as they are, so that decoding takes no more room.
        notes: What is to be said about it.
    """

    rate_hz: int
    channels: int
    frames: int
    dtype: str
    plain: bool
    notes: tuple[str, ...] = ()


def inspect(data: bytes, *, max_seconds: float) -> Facts:
    """Decodes a recording to see that it can be, in bounded memory, and tells what it is.

    Args:
        data: The bytes of a file: WAV, FLAC, OGG, MP3 or whatever else libsndfile reads.
        max_seconds: Longer ones are refused before they are decoded.

    Raises:
        InvalidInput: It does not decode, is cut short, or is too long.
    """
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            seconds = file.frames / file.samplerate
            if seconds > max_seconds:
                raise InvalidInput(
                    f"a recording is at most {max_seconds:g} s long; this one has {seconds:.1f} s; cut it, or raise "
                    f"max_seconds"
                )
            read = sum(len(block) for block in file.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True))
            found = Facts(
                rate_hz=file.samplerate,
                channels=file.channels,
                frames=file.frames,
                dtype="int16" if file.subtype == "PCM_16" else "float32",
                plain=file.format in ("WAV", "WAVEX") and file.subtype in ("PCM_16", "FLOAT"),
                notes=() if file.frames else ("no sample in it",),
            )
    except soundfile.LibsndfileError as error:
        reason = "it is empty" if not data else error.error_string.strip().rstrip(".")
        raise InvalidInput(f"this is not a readable recording ({reason}); MMS reads WAV, FLAC, OGG and MP3") from error
    if read != found.frames:
        raise InvalidInput(f"this recording is cut short: it says {found.frames:,} frames and has {read:,}")
    return found


def decode(data: bytes, *, dtype: str) -> Array:
    """The samples of a recording that was inspected.

    Returns:
        Shape (frames, channels).
    """
    samples: Array = _soundfile().read(io.BytesIO(data), dtype=dtype, always_2d=True)[0]
    return samples


def beginning(data: bytes, *, seconds: float) -> tuple[Array, float, float]:
    """The first seconds of a recording.

    Returns:
        Its samples, float32, of shape (frames, channels); frames in a second; and how many seconds all of it has.

    Raises:
        InvalidInput: It does not decode.
    """
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = float(file.samplerate)
            samples: Array = file.read(int(seconds * rate), dtype="float32", always_2d=True)
            return samples, rate, file.frames / rate
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise InvalidInput(f"this is not a readable recording ({reason}); look at the file it came from") from error


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the second: its library is not there
        raise MissingExtra("soundfile", extra="audio") from error
    return soundfile
