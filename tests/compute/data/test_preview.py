"""What values look like: drawings that say what is there, sounds that are short, and words for what cannot be drawn."""

from __future__ import annotations

import base64
import io
import re
import warnings
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mms_sdk.compute.data import preview
from mms_sdk.compute.data.preview import Look, choose, looks
from mms_sdk.schema.dataset import Column

SOUND = Column(name="a", kind="audio", dtype="int16", shape=(None, 2), rate_hz=8000)
FILE = Column(name="a", kind="encoded-audio", dtype="uint8", shape=None)
SERIES = Column(name="s", kind="series", dtype="float64", shape=(None, 2))


def played(look: Any) -> tuple[Any, int]:
    """The samples of a sound, and their rate, as another library reads them."""
    found = re.search(r'src="data:audio/wav;base64,([^"]+)"', look.drawing)
    assert found is not None
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(found[1])), always_2d=True)
    return samples, rate


def points(look: Any) -> list[list[tuple[float, float]]]:
    """The points of each unbroken line of a drawing."""
    paths = re.findall(r"M([^M\"]*)", look.drawing)
    return [[tuple(map(float, point.removesuffix("h.1").split())) for point in path.split("L")] for path in paths]


def a_file(samples: Any, rate: int, form: str) -> bytes:
    """The bytes of a recording."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form)
    return out.getvalue()


def test_a_sound_is_played_as_it_is_in_one_channel() -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (8000, 2)).astype(np.int16)
    (look,) = looks(SOUND, [samples])
    heard, rate = played(look)
    assert (look.text, rate, heard.shape) == ("1.00 s, 8,000 Hz, 2 channels", 8000, (8000, 1))
    np.testing.assert_allclose(heard[:, 0], samples.mean(axis=1) / 32768, atol=2 / 32768)
    assert 'aria-label="waveform of 1.00 s, 8,000 Hz, 2 channels"' in look.drawing


def test_a_waveform_has_the_least_and_greatest_sample_of_each_moment() -> None:
    samples = np.zeros((6000, 1), np.int16)
    samples[3000] = 2**15 - 1
    samples[5999] = -(2**15)
    peaks = preview._peaks(preview._mono(samples))
    assert len(peaks) == 120
    assert [at for at, (_, high) in enumerate(peaks) if high > 0.99] == [60]
    assert [at for at, (low, _) in enumerate(peaks) if low < -0.99] == [119]


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_of_sound_are_encoded_anew_and_cut(form: str) -> None:
    seconds = np.arange(8 * 16000) / 16000
    data = a_file(0.5 * np.sin(2 * np.pi * 440 * seconds), 16000, form)
    (look,) = looks(FILE, [data])
    heard, rate = played(look)
    assert look.text.startswith("8.0")
    assert (rate, len(heard)) == (16000, 5 * 16000)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.05)
    assert "the first 5.0 s of 8.0" in look.drawing


def test_many_sounds_together_are_bounded_and_each_is_heard() -> None:
    found = looks(SOUND, [np.zeros((80_000, 2), np.int16)] * 100)
    assert all(100 < len(played(look)[0]) <= 2**22 // 200 for look in found[:3])
    assert sum(len(look.drawing) for look in found) < 8 * 2**20


def test_samples_that_are_no_numbers_or_too_loud_are_played_within_bounds() -> None:
    loud = Column(name="a", kind="audio", dtype="float32", shape=(None, 1), rate_hz=100)
    (look,) = looks(loud, [np.array([[np.nan], [np.inf], [-np.inf], [7.0], [1e38]], np.float32)])
    np.testing.assert_allclose(played(look)[0][:, 0], [0, 1, -1, 1, 1], atol=1e-4)


def test_what_does_not_decode_is_said_and_the_others_are_shown() -> None:
    good = a_file(np.zeros(100), 8000, "WAV")
    first, second, third, fourth = looks(FILE, [b"", good, b"RIFF" + b"\0" * 40, None])
    assert isinstance(second, Look)
    assert first.startswith("this is not a readable recording (")
    assert third.startswith("this is not a readable recording (")
    assert fourth is None
    picture = Column(name="p", kind="encoded-image", dtype="uint8", shape=None, color="rgb")
    out = io.BytesIO()
    Image.new("RGB", (4, 2)).save(out, "PNG")
    first, second = looks(picture, [out.getvalue(), out.getvalue()[:40]])
    assert (first.text, first.told) == ("4×2 rgb", True)
    assert second.startswith("this is not a readable picture")


def test_a_recording_without_a_sample_is_words() -> None:
    assert looks(SOUND, [np.zeros((0, 2), np.int16)]) == ["0 samples, int16"]


def test_a_series_is_a_line_for_each_channel_with_gaps_where_there_is_no_number() -> None:
    values = np.stack([np.arange(5.0), np.array([4.0, np.nan, 2.0, np.inf, 0.0])], axis=1)
    (look,) = looks(SERIES, [values])
    up, *down = points(look)
    assert [y for _, y in up] == [40.0, 30.0, 20.0, 10.0, 0.0]
    assert down == [[(0.0, 0.0)], [(100.0, 20.0)], [(200.0, 40.0)]]
    assert look.text == "float64 5×2, 0 to 4"


def test_a_spike_survives_whatever_the_length() -> None:
    values = np.zeros((100_000, 2))
    values[77_777, 0] = 5
    first, _ = points(looks(SERIES, [values])[0])
    assert len(first) == 120
    assert [round(x / 200, 2) for x, y in first if y == 0] == [0.78]


def test_odd_series_are_drawn_or_said_without_a_warning() -> None:
    odd = [
        np.empty((0, 2)),
        np.full((3, 2), np.nan),
        np.array([[1.7e308, -1.7e308]]),
        np.array([[3.0, 3.0], [3.0, 3.0]]),
        np.zeros((4, 9)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty, nothing, huge, flat, wide = looks(SERIES, odd)
    assert (empty, nothing) == ("float64 0×2", "float64 3×2")
    assert huge.text == "float64 1×2, -1.7e+308 to 1.7e+308"
    assert points(flat)[0] == [(0.0, 20.0), (200.0, 20.0)]
    assert "the first 4 of 9" in wide.drawing


def test_numbers_of_fixed_shape_are_one_line_and_missing_ones_none() -> None:
    vectors = np.ma.MaskedArray(np.arange(12.0).reshape(3, 4), np.zeros((3, 4), bool))
    vectors[1] = np.ma.masked
    column = Column(name="e", kind="embedding", dtype="float64", shape=(4,), nullable=True)
    first, second, third = looks(column, vectors)
    assert (len(points(first)), second, third.text) == (1, None, "float64 4, 8 to 11")


def test_words_are_words() -> None:
    text = Column(name="t", kind="text", dtype="uint8", shape=None)
    long = "ü" * 1000
    assert looks(text, [b"<b>", long.encode(), b"\xff", None]) == ["<b>", "ü" * 240 + "…", "�", None]
    (odd,) = looks(Column(name="v", kind="encoded-video", dtype="uint8", shape=None), [b"x" * 2048])
    assert str(odd).startswith("this is not a readable clip")
    names = Column(name="c", kind="category", dtype="int32", labels=("a", "b"), nullable=True)
    assert looks(names, np.ma.masked_equal(np.array([0, 1, 9], np.int32), 9)) == ["a", "b", None]
    assert looks(names.model_copy(update={"nullable": False}), np.array([-1, 2], np.int32)) == ["code -1", "code 2"]
    when = Column(name="w", kind="timestamp", dtype="int64", unit="s")
    assert looks(when, np.array([0])) == ["1970-01-01T00:00:00"]
    assert looks(when.model_copy(update={"unit": None}), np.array([7])) == [7]
    assert looks(Column(name="n", kind="number", dtype="float32"), np.array([0.1], np.float32)) == [0.1]


def test_rows_are_chosen_of_each_class_or_from_everywhere() -> None:
    codes = np.array([0, 0, 0, 1, 2, 2])
    assert choose(codes, np.arange(10, 16), classes=3, most=24).tolist() == [10, 11, 13, 14, 15]
    many = np.repeat(np.arange(100), 3)
    shown = choose(many, np.arange(300), classes=100, most=24)
    assert len(shown) == len({*many[shown]}) == 24
    assert (many[shown][0], many[shown][-1]) == (0, 99)
    assert choose(None, np.arange(100, 200), classes=0, most=3).tolist() == [100, 149, 199]
    assert choose(None, np.arange(2), classes=0, most=3).tolist() == [0, 1]
    assert choose(None, np.arange(0), classes=0, most=3).tolist() == []
    masked = np.ma.masked_equal(np.array([0, 9, 0]), 9)
    assert choose(masked, np.arange(3), classes=1, most=24).tolist() == [0, 2]
