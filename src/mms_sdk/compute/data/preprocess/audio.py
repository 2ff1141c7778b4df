"""Preprocessing steps for sound; `mms.audio`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mms_sdk.compute.data.kinds.audio import Sound
from mms_sdk.compute.data.preprocess.pipeline import register
from mms_sdk.errors import InvalidRequest
from mms_sdk.types import Array

if TYPE_CHECKING:
    import jax

_LEAST = 1e-10  # energy that silence counts as, so that its logarithm is a number


@register
@dataclass(frozen=True)
class Waveform:
    """One channel of sound at one rate and of one length, float32 of shape (frames,).

    Channels are averaged. Another rate is changed by a polyphase filter (`scipy.signal.resample_poly`, Kaiser window of
    5.0). What is longer keeps its beginning; what is shorter is followed by silence.

    Attributes:
        rate_hz: Frames in a second.
        seconds: Length.
    """

    name: ClassVar[str] = "audio.waveform"
    dtype: ClassVar[str] = "float32"
    rate_hz: int = 16_000
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.rate_hz < 1 or self.frames < 1:
            raise InvalidRequest(
                f"a waveform has a rate and at least one frame; got rate_hz={self.rate_hz}, seconds={self.seconds}"
            )

    @property
    def frames(self) -> int:
        """How many."""
        return round(self.rate_hz * self.seconds)

    def shape(self, _shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """(frames,)."""
        return (self.frames,)

    def on_row(self, row: Sound) -> Array:
        """float32, shape (frames,)."""
        ratio = Fraction(self.rate_hz) / Fraction(row.rate_hz).limit_denominator(1000)
        # A second more than is kept: the filter looks ahead by less.
        samples = row.samples[: math.ceil(row.rate_hz * (self.seconds + 1))].mean(1, dtype=np.float32)
        if ratio != 1 and len(samples):
            from scipy.signal import resample_poly

            samples = resample_poly(samples, ratio.numerator, ratio.denominator)
        out = np.zeros(self.frames, np.float32)
        kept = samples[: self.frames]
        out[: len(kept)] = kept
        return out


@register
@dataclass(frozen=True)
class LogMel:
    """Energies in bands that are as far apart as pitches sound, on the device: (batch, frames) to (batch, times, mels).

    Frames of `window` samples begin every `hop` samples, none past the end, and are weighted by a periodic Hann window.
    Their power spectrum is summed by `mels` triangles whose corners are evenly spaced on the HTK scale,
    2595 log10(1 + f / 700) (Young et al., The HTK Book 3.4, §5.4), with a height of 1, and the natural logarithm of at
    least 1e-10 is taken.

    Attributes:
        mels: Bands.
        window: Samples in a frame; the spectrum has as many points as the next power of two.
        hop: Samples from one frame to the next.
        rate_hz: Of the samples, as `Waveform` makes them.
        low_hz: Where the lowest band begins.
        high_hz: Where the highest ends; half of the rate if left out.
    """

    name: ClassVar[str] = "audio.log-mel"
    mels: int = 64
    window: int = 400
    hop: int = 160
    rate_hz: int = 16_000
    low_hz: float = 0.0
    high_hz: float | None = None

    def __post_init__(self) -> None:
        least = min(self.mels, self.window, self.hop, self.rate_hz)
        if least < 1 or not 0 <= self.low_hz < self._high <= self.rate_hz / 2:
            raise InvalidRequest(
                f"bands lie between 0 Hz and half the rate, and there is at least one; got mels={self.mels}, "
                f"window={self.window}, hop={self.hop}, {self.low_hz:g} to {self._high:g} Hz at {self.rate_hz} Hz"
            )
        empty = int((self.filters().sum(0) == 0).sum())
        if empty:
            raise InvalidRequest(
                f"every band has a frequency of the spectrum in it; {empty} of mels={self.mels} have none with "
                f"window={self.window}; use fewer bands or a longer window"
            )

    @property
    def _high(self) -> float:
        return self.rate_hz / 2 if self.high_hz is None else self.high_hz

    @property
    def _points(self) -> int:
        return 1 << (self.window - 1).bit_length()

    def filters(self) -> Array:
        """The triangles: float32, shape (frequencies, mels)."""
        corners = np.linspace(_mel(self.low_hz), _mel(self._high), self.mels + 2)
        corners = 700 * (10 ** (corners / 2595) - 1)
        at = np.linspace(0, self.rate_hz / 2, self._points // 2 + 1)[:, None]
        left, middle, right = corners[None, :-2], corners[None, 1:-1], corners[None, 2:]
        return np.clip(np.minimum((at - left) / (middle - left), (right - at) / (right - middle)), 0, None).astype("f4")

    def fit(self, _batches: Iterable[Array]) -> LogMel:
        """The step itself."""
        return self

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(times, mels)."""
        if len(shape) != 1 or shape[0] < self.window:
            raise InvalidRequest(
                f"LogMel takes one channel of at least a window of {self.window} samples; rows have shape {shape}; "
                f"begin preprocess with mms.audio.Waveform(seconds=…)"
            )
        return (1 + (shape[0] - self.window) // self.hop, self.mels)

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """float32, shape (batch, times, mels)."""
        import jax
        import jax.numpy as jnp

        times, _ = self.shape(batch.shape[1:])
        where = np.arange(times)[:, None] * self.hop + np.arange(self.window)[None]
        hann: Any = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        frames = batch[:, where] * hann.astype(np.float32)[None, None]
        spectrum = jnp.fft.rfft(frames, n=self._points)
        power = spectrum.real**2 + spectrum.imag**2
        # Accelerators would round to bfloat16, and quiet bands would vanish beside loud ones.
        energies = jnp.matmul(power, self.filters(), precision=jax.lax.Precision.HIGHEST)
        return jnp.log(jnp.maximum(energies, _LEAST))


def _mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)


__all__ = ["LogMel", "Waveform"]
