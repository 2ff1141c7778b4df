"""Folders of recordings become datasets; the samples are those that Python's own `wave` writes and reads."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.cleaning import DropDuplicates, DropOddSizes, DropUnreadable
from mms_sdk.schema.sources import AudioFolder
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)


def _wav(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def _noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-30_000, 30_000, (frames, channels)).astype(np.int16)


@pytest.fixture
def bring(tmp_path):
    (tmp_path / "job").mkdir()

    def bring(*clean, **fields):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "sounds"), "sounds")
        spec = IngestSpec(source=AudioFolder(tmp_path / "wav", **fields), clean=clean, split=ALL)
        _, report = ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: [json.loads(line) for line in (tmp_path / "job" / "rejects.jsonl").read_text().splitlines()]
    return bring


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_become_their_samples(tmp_path, bring, channels):
    written = {
        f"{name}/{at}.wav": _noise(100 * at, channels, at) for at, name in enumerate(["no", "yes", "no", "yes"], 0)
    }
    for name, samples in written.items():
        _wav(tmp_path / "wav" / name, samples)
    snapshot, report = bring()
    column = snapshot.column("audio")
    assert (column.kind, column.dtype, column.shape, column.rate_hz) == ("audio", "int16", (None, channels), 8000)
    sources = [source.decode() for source in snapshot.gather("source", np.arange(4))]
    assert sorted(sources) == sorted(written)
    for source, samples in zip(sources, snapshot.gather("audio", np.arange(4)), strict=True):
        np.testing.assert_array_equal(samples, written[source])
    assert snapshot.record.statistics["classes"] == {"no": 2, "yes": 2}
    assert "1 × no sample in it" in report.notes


@pytest.mark.parametrize("other", ["rate", "channels", "flac"])
def test_recordings_of_several_forms_stay_the_bytes_of_their_files(tmp_path, bring, other):
    _wav(tmp_path / "wav/a/1.wav", _noise(100))
    if other == "flac":
        soundfile.write(tmp_path / "wav/a/2.flac", _noise(100, seed=1), 8000)
    else:
        _wav(
            tmp_path / "wav/a/2.wav",
            _noise(100, 2 if other == "channels" else 1, 1),
            44100 if other == "rate" else 8000,
        )
    snapshot, _ = bring()
    assert snapshot.column("audio").kind == "encoded-audio"
    files = sorted((tmp_path / "wav/a").iterdir())
    assert snapshot.gather("audio", np.arange(2)) == [path.read_bytes() for path in files]


def test_what_does_not_decode_is_dropped_with_the_reason(tmp_path, bring):
    _wav(tmp_path / "wav/a/good.wav", _noise(4000))
    _wav(tmp_path / "wav/a/long.wav", _noise(40_000, seed=1))
    data = (tmp_path / "wav/a/good.wav").read_bytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, _noise(20_000, seed=2), 8000, format="FLAC")
    (tmp_path / "wav/a/cut.flac").write_bytes(buffer.getvalue()[:-20_000])
    (tmp_path / "wav/a/copy.wav").write_bytes(data)
    (tmp_path / "wav/a/empty.wav").write_bytes(b"")
    (tmp_path / "wav/a/text.wav").write_text("no sound")
    snapshot, report = bring(DropUnreadable(), DropDuplicates(), max_seconds=3)
    reasons = {each["source"]: each["reason"] for each in bring.rejects()}
    assert snapshot.rows == 1
    assert report.steps[0].dropped == 4
    assert "this one has 5.0 s; cut it, or raise max_seconds" in reasons["a/long.wav"]
    assert "it is empty" in reasons["a/empty.wav"]
    assert "not a readable recording" in reasons["a/text.wav"]
    assert reasons["a/cut.flac"]
    assert "the same bytes as" in (reasons.get("a/good.wav") or reasons["a/copy.wav"])


def test_one_unreadable_file_ends_an_ingest_that_does_not_drop_it(tmp_path, bring):
    _wav(tmp_path / "wav/a/good.wav", _noise(40))
    (tmp_path / "wav/a/text.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"every recording of a source decodes; 1 of 2 do not, e\.g\. a/text\.wav"):
        bring()


def test_later_recordings_have_the_form_of_the_first(tmp_path, bring):
    _wav(tmp_path / "wav/a/1.wav", _noise(40))
    bring()
    _wav(tmp_path / "wav/a/2.wav", _noise(40, seed=1), 16000)
    with pytest.raises(DataError, match=r"8000 Hz, 1 channels, int16; 1 do not, e\.g\. a/2\.wav: 16000 Hz"):
        bring()
    _wav(tmp_path / "wav/a/2.wav", _noise(50, seed=1))
    snapshot, report = bring()
    assert (snapshot.rows, report.already_present) == (2, 1)


def test_steps_for_pictures_are_refused(tmp_path, bring):
    _wav(tmp_path / "wav/a/1.wav", _noise(40))
    with pytest.raises(InvalidRequest, match="drop-odd-sizes is not for recordings"):
        bring(DropOddSizes())
