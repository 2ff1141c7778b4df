"""Sound: from the bytes of a file to samples.

Sixteen-bit samples become int16, all others float32 in [-1, 1], of shape (frames, channels).
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mms_sdk.errors import InvalidInput, MissingExtra
from mms_sdk.types import Array

_BLOCK_FRAMES = 2**16
# Of a WAV file (Multimedia Programming Interface and Data Specifications 1.0, chapter 3, and mmreg.h).
_PCM, _FLOAT = 1, 3
_MAX_WAV_BYTES = 2**31


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


class Sound(NamedTuple):
    """A recording.

    Attributes:
        samples: float32 in [-1, 1], shape (frames, channels).
        rate_hz: Frames in a second.
    """

    samples: Array
    rate_hz: float


def sound(data: bytes, *, max_seconds: float = float("inf")) -> Sound:
    """A recording out of the bytes of its file.

    Args:
        data: WAV, FLAC, OGG, MP3 or whatever else libsndfile reads.
        max_seconds: Longer ones are refused before they are decoded.

    Raises:
        InvalidInput: It does not decode, or is too long.
    """
    with _opened(data) as file:
        seconds = file.frames / file.samplerate
        if seconds > max_seconds:
            raise InvalidInput(f"a recording is at most {max_seconds:g} s long; this one has {seconds:.1f} s; cut it")
        return Sound(file.read(dtype="float32", always_2d=True), float(file.samplerate))


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            yield file
    except soundfile.LibsndfileError as error:
        reason = "it is empty" if not data else error.error_string.strip().rstrip(".")
        raise InvalidInput(f"this is not a readable recording ({reason}); MMS reads WAV, FLAC, OGG and MP3") from error


def inspect(data: bytes, *, max_seconds: float) -> Facts:
    """Decodes a recording to see that it can be, in bounded memory, and tells what it is.

    Args:
        data: The bytes of a file: WAV, FLAC, OGG, MP3 or whatever else libsndfile reads.
        max_seconds: Longer ones are refused before they are decoded.

    Raises:
        InvalidInput: It does not decode, is cut short, or is too long.
    """
    with _opened(data) as file:
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


def encode_wav(samples: Array, *, rate_hz: int) -> bytes:
    """The bytes of a WAV file that holds samples as they are: the same samples, the same bytes.

    Args:
        samples: Whole numbers of up to 32 bits, or float32; shape (frames,) or (frames, channels).
        rate_hz: Frames in a second.

    Raises:
        InvalidInput: They do not fit.
    """
    form, narrowed = _PCM, samples
    if samples.dtype.kind == "f":
        form, narrowed = _FLOAT, samples.astype("<f4")
    elif samples.dtype.kind in "iu":
        sixteen = samples.size == 0 or (samples.min() >= -(2**15) and samples.max() < 2**15)
        narrowed = samples.astype("<i2" if sixteen else "<i4")
    data = narrowed.tobytes()
    if samples.dtype.kind not in "iuf" or not np.array_equal(narrowed, samples, equal_nan=form == _FLOAT):
        raise InvalidInput(f"samples are whole numbers of up to 32 bits or float32; these are {samples.dtype}")
    if len(data) > _MAX_WAV_BYTES:
        raise InvalidInput(f"a WAV file has at most {_MAX_WAV_BYTES:,} bytes of samples; these have {len(data):,}")
    channels = samples.shape[1] if samples.ndim == 2 else 1
    size = narrowed.itemsize
    if not (0 < channels * size < 2**16 and 0 < rate_hz * channels * size < 2**32):
        raise InvalidInput(
            f"a WAV file has at most 64 KiB a frame and 4 GiB a second; these are {channels:,} channels of "
            f"{rate_hz:,} frames a second; say another rate_hz="
        )
    described = struct.pack("<HHIIHH", form, channels, rate_hz, rate_hz * channels * size, channels * size, 8 * size)
    head = struct.pack("<4sI4s4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", len(described)) + described
    return head + struct.pack("<4sI", b"data", len(data)) + data


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the second: its library is not there
        raise MissingExtra("soundfile", extra="audio") from error
    return soundfile
