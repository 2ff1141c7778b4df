"""Clips: from the bytes of a file to frames.

A frame becomes uint8 of shape (height, width, 3), upright, its colours as eight bits of red, green and blue. Frames are
numbered from 0 in the order in which they are shown; sound is not looked at.

Damage is what FFmpeg tells of: some of its decoders, of FFV1 among them, fill a damaged part in from another frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mms_sdk.errors import InvalidInput, InvalidRequest, MissingExtra
from mms_sdk.types import Array

DEFAULT_MAX_PIXELS = 50_000_000
DEFAULT_MAX_BYTES = 2**31

# What people's clips lie in. FFmpeg knows playlists besides, which name other files and addresses to be read.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg"
_NO_FRAME = "this clip has no frame"
_MAX_RATE_HZ = 1000  # a clip of more frames a second is a mistake, or made to keep us busy


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a clip is, once all of it was decoded.

    Attributes:
        codec: How its frames are coded, by FFmpeg's name.
        size: (height, width), upright.
        frames: How many.
        rate_hz: Frames in a second, on average.
        seconds: How long it is shown.
        notes: What is to be said about it.
    """

    codec: str
    size: tuple[int, int]
    frames: int
    rate_hz: float
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Seen:
    """What decoding a clip showed.

    Attributes:
        packets: Of its video, in the file.
        frames: In these.
        first_s: When the first of them is shown.
        last_s: When the last of them is.
        end_s: When the last packet ends, of sound too.
        size: (height, width) of all frames, upright.
        turned: Whether they are shown turned.
    """

    packets: int = 0
    frames: int = 0
    first_s: float = np.inf
    last_s: float = -np.inf
    end_s: float = -np.inf
    size: tuple[int, int] = (0, 0)
    turned: bool = False

    def see(self, frame: Any, at_s: float) -> None:
        """Looks at one more frame."""
        size = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
        if self.frames and size != self.size:
            raise InvalidInput(f"the frames of a clip have one size; from its frame {self.frames} on it differs")
        self.size, self.turned = size, bool(frame.rotation)
        self.first_s, self.last_s = min(self.first_s, at_s), max(self.last_s, at_s)
        self.frames += 1


def inspect(data: bytes, *, max_seconds: float, max_pixels: int = DEFAULT_MAX_PIXELS) -> Facts:
    """Decodes a clip, one frame at a time, to see that it can be, and tells what it is.

    Args:
        data: The bytes of a file: MP4, MOV, Matroska, WebM, AVI, MPEG or Ogg.
        max_seconds: Longer ones are refused.
        max_pixels: Clips with larger frames are refused before they are decoded.

    Raises:
        InvalidInput: It does not decode, is damaged or cut short, too long or too large.
    """
    with _opened(data, max_pixels=max_pixels) as (container, stream):
        _refuse_long((container.duration or 0) / 1e6, max_seconds)
        seen = _look(container, stream, max_seconds=max_seconds, max_pixels=max_pixels)
        if not seen.frames:
            raise InvalidInput(_NO_FRAME)
        _refuse_cut(container, stream, seen)
        several = seen.frames > 1 and seen.last_s > seen.first_s
        rate_hz = (seen.frames - 1) / (seen.last_s - seen.first_s) if several else _rate_of(stream)
        return Facts(
            codec=stream.codec_context.name,
            size=seen.size,
            frames=seen.frames,
            rate_hz=round(rate_hz, 6),
            seconds=round(seen.frames / rate_hz, 6),
            notes=("turned upright by its display matrix",) if seen.turned else (),
        )


def decode(
    data: bytes,
    *,
    begin: int = 0,
    frames: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Array:
    """The frames of a clip, or a stretch of them. Those before the stretch are decoded, and not kept.

    Args:
        data: The bytes of a file.
        begin: Number of the first frame.
        frames: How many; None for all to the end. Where the clip ends sooner, as many as there are.
        max_bytes: How much memory they may take; while they are put together it is twice as much.
        max_pixels: Clips with larger frames are refused before they are decoded.

    Returns:
        uint8, shape (frames, height, width, 3).

    Raises:
        InvalidInput: It does not decode.
        InvalidRequest: There is no such stretch, or it takes more memory than it may.
    """
    if begin < 0 or (frames is not None and frames < 1):
        raise InvalidRequest(f"a stretch has at least one frame, from frame 0 on; got begin={begin}, frames={frames}")
    taken: list[Array] = []
    room = max_bytes
    with _opened(data, max_pixels=max_pixels) as (container, stream):
        for frame in islice(container.decode(stream), begin, None if frames is None else begin + frames):
            room -= frame.height * frame.width * 3
            if room < 0:
                raise InvalidRequest(
                    f"frames that are decoded at once take at most {max_bytes:,} bytes; frame {begin + len(taken)} "
                    f"is beyond; take a stretch with begin= and frames=, or raise max_bytes"
                )
            taken.append(_to_array(frame))
    if not taken and not begin:
        raise InvalidInput(_NO_FRAME)
    if not taken:
        raise InvalidRequest(f"a stretch begins within the clip; it has no frame {begin}")
    return np.stack(taken)


def poster(data: bytes) -> Array:
    """The frame that stands for a clip where it cannot be played: its first.

    Returns:
        uint8, shape (height, width, 3).

    Raises:
        InvalidInput: It does not decode.
    """
    first: Array = decode(data, frames=1)[0]
    return first


@contextmanager
def _opened(data: bytes, *, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    av = _av()
    # To know a codec's facts FFmpeg may decode a frame; a bound that is not ours leaves it to us to say what is wrong.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", "max_pixels": str(4 * max_pixels)}
    try:
        with av.open(io.BytesIO(data), options=options) as container:
            if not container.streams.video:
                raise InvalidInput("this is no clip: there is no video in it")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise InvalidInput("this clip is coded in a way that FFmpeg does not know")
            _refuse_large(context.height, context.width, max_pixels)
            context.thread_count = 1  # clips are decoded side by side
            context.options = {"err_detect": "crccheck+explode", "max_pixels": str(max_pixels)}
            yield container, stream
    except InvalidRequest:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as error:
        reason = "it is empty" if not data else getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.error.ArgumentError):  # so FFmpeg says it too where it meets a larger frame
            reason = f"nothing that FFmpeg knows, or frames of more than {max_pixels:,} pixels"
        raise InvalidInput(
            f"this is not a readable clip ({reason}); MMS reads MP4, MOV, Matroska, WebM, AVI, MPEG and Ogg"
        ) from error


def _look(container: Any, stream: Any, *, max_seconds: float, max_pixels: int) -> _Seen:
    seen = _Seen()
    for packet in container.demux():
        seen.end_s = max(seen.end_s, _end_s(packet))
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            raise InvalidInput(f"this clip is damaged or cut short after its frame {seen.frames}")
        seen.packets += bool(packet.size)
        for frame in packet.decode():
            if frame.is_corrupt:
                raise InvalidInput(f"this clip is damaged: its frame {seen.frames} does not decode")
            _refuse_large(frame.height, frame.width, max_pixels)
            seen.see(frame, frame.time if frame.time is not None else seen.frames / _rate_of(stream))
            _refuse_long(max(seen.last_s - seen.first_s, seen.frames / _MAX_RATE_HZ), max_seconds)
    return seen


def _refuse_large(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise InvalidInput(
            f"a frame has at most {max_pixels:,} pixels; those of this clip have {width:,}×{height:,}; make it "
            f"smaller, or raise max_pixels"
        )


def _refuse_long(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise InvalidInput(
            f"a clip is at most {max_seconds:g} s long, with at most {_MAX_RATE_HZ:,} frames a second; this one is "
            f"longer; cut it, or raise max_seconds"
        )


def _refuse_cut(container: Any, stream: Any, seen: _Seen) -> None:
    if seen.packets < stream.frames:
        raise InvalidInput(f"this clip is cut short: it says {stream.frames:,} frames and has {seen.packets:,}")
    says_s = ((container.start_time or 0) + (container.duration or 0)) / 1e6
    if says_s - seen.end_s > 1.5 / _rate_of(stream):
        raise InvalidInput(
            f"this clip is cut short: it says that it ends at {says_s:.2f} s, and does at {seen.end_s:.2f} s"
        )


def _end_s(packet: Any) -> float:
    if packet.pts is None or packet.time_base is None:
        return -np.inf
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _rate_of(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _to_array(frame: Any) -> Array:
    array: Array = frame.to_ndarray(format="rgb24")
    return np.rot90(array, round(frame.rotation / 90)) if frame.rotation else array


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="video") from error
    return av
