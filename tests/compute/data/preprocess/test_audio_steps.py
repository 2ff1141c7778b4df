from __future__ import annotations

import json
import math
from typing import Any

import jax
import numpy as np
import pytest

from mms_sdk.compute.data.kinds.audio import Sound
from mms_sdk.compute.data.preprocess.audio import LogMel, Waveform
from mms_sdk.compute.data.preprocess.pipeline import from_json, to_json
from mms_sdk.errors import InvalidRequest

MELS = LogMel(mels=10, window=200, hop=80, rate_hz=8000, low_hz=60.0, high_hz=3800.0)


def sine(rate_hz: int, seconds: float, frequency_hz: float = 440.0) -> Any:
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * seconds)) / rate_hz).astype(np.float32)


def test_channels_are_averaged_and_the_length_is_that_asked_for() -> None:
    left, right = np.arange(10, dtype=np.float32) / 16, np.ones(10, np.float32)
    sound = Sound(np.stack([left, right], 1), 100.0)

    np.testing.assert_array_equal(Waveform(rate_hz=100, seconds=0.05).on_row(sound), (left + right)[:5] / 2)
    longer = Waveform(rate_hz=100, seconds=0.2).on_row(sound)
    np.testing.assert_array_equal(longer, np.concatenate([(left + right) / 2, np.zeros(10)]))
    assert longer.dtype == np.float32
    assert Waveform(rate_hz=100, seconds=0.2).shape(None) == (20,)


@pytest.mark.parametrize(("given_hz", "asked_hz"), [(8000, 16000), (44100, 16000), (16000, 11025), (22050, 8000)])
def test_a_tone_is_the_same_tone_at_another_rate(given_hz: int, asked_hz: int) -> None:
    found = Waveform(rate_hz=asked_hz, seconds=0.5).on_row(Sound(sine(given_hz, 0.6)[:, None], float(given_hz)))

    expected = sine(asked_hz, 0.5)
    middle = slice(len(expected) // 10, -len(expected) // 10)  # at its beginning a tone is a click
    np.testing.assert_allclose(found[middle], expected[middle], atol=5e-3)


def test_what_the_new_rate_cannot_carry_is_filtered_out() -> None:
    found = Waveform(rate_hz=8000, seconds=0.5).on_row(Sound(sine(32000, 0.5, 7000.0)[:, None], 32000.0))

    assert np.abs(found[400:-400]).max() < 0.02  # else it would come back as a tone of 1,000 Hz


def test_no_sample_at_all_is_silence() -> None:
    np.testing.assert_array_equal(
        Waveform(rate_hz=50).on_row(Sound(np.zeros((0, 2), np.float32), 8000.0)), np.zeros(50)
    )


def mel_energies(wave: Any, step: LogMel) -> Any:
    """The formula, written down a second time, number by number."""
    points = 256
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731
    low, high = mel(step.low_hz), mel(step.high_hz)
    corners = [700 * (10 ** ((low + (high - low) * n / (step.mels + 1)) / 2595) - 1) for n in range(step.mels + 2)]
    window = [0.5 * (1 - math.cos(2 * math.pi * n / step.window)) for n in range(step.window)]
    rows = []
    for begin in range(0, len(wave) - step.window + 1, step.hop):
        power = np.abs(np.fft.rfft(wave[begin : begin + step.window] * np.array(window), points)) ** 2
        row = []
        for left, middle, right in zip(corners, corners[1:], corners[2:], strict=False):
            total = 0.0
            for number, value in enumerate(power):
                hz = number * step.rate_hz / points
                if left < hz <= middle:
                    total += value * (hz - left) / (middle - left)
                elif middle < hz < right:
                    total += value * (right - hz) / (right - middle)
            row.append(math.log(max(total, 1e-10)))
        rows.append(row)
    return np.array(rows)


def test_bands_are_those_of_the_formula() -> None:
    wave = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    found = np.asarray(jax.jit(lambda batch: MELS.on_batch(batch, None))(wave[None]))[0]

    assert found.shape == MELS.shape((1000,)) == (11, 10)
    np.testing.assert_allclose(found, mel_energies(wave.astype(np.float64), MELS), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bands_are_those_of_another_library() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wave = np.random.default_rng(1).normal(size=16000).astype(np.float32)
    step = LogMel()
    filters = mel_filter_bank(257, 64, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
    theirs = spectrogram(
        wave,
        window_function(400, "hann", periodic=True),
        400,
        160,
        fft_length=512,
        power=2.0,
        center=False,
        mel_filters=filters,
        mel_floor=1e-10,
        log_mel="log",
    )

    np.testing.assert_allclose(step.filters(), filters, atol=1e-6)
    np.testing.assert_allclose(step.on_batch(wave[None], None)[0], theirs.T, atol=2e-3)  # type: ignore[arg-type]


def test_silence_is_finite() -> None:
    found = np.asarray(MELS.on_batch(np.zeros((2, 400), np.float32), None))  # type: ignore[arg-type]

    np.testing.assert_allclose(found, math.log(1e-10), rtol=1e-6)


@pytest.mark.parametrize("step", [Waveform(), Waveform(rate_hz=8000, seconds=2.5), LogMel(), MELS], ids=repr)
def test_a_step_is_the_same_after_a_trip_through_json(step: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(step)))) == step


def test_options_that_make_no_sound_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="a rate and at least one frame"):
        Waveform(rate_hz=0)
    with pytest.raises(InvalidRequest, match="bands lie between 0 Hz and half the rate"):
        LogMel(high_hz=9000.0)
    with pytest.raises(InvalidRequest, match="use fewer bands or a longer window"):
        LogMel(mels=128, window=128)
    with pytest.raises(InvalidRequest, match="at least a window of 400 samples; rows have shape"):
        LogMel().shape((399,))
