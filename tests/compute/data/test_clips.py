"""Folders of clips become datasets: the bytes of the files, and beside them what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from make_clips import encode, frames, write

from mms_sdk.compute.data import ingest as ingesting
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.kinds import video
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.cleaning import DropDuplicates, DropOddSizes, DropUnreadable
from mms_sdk.schema.sources import VideoFolder
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)


@pytest.fixture
def bring(tmp_path):
    (tmp_path / "job").mkdir()

    def bring(*clean, **fields):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "clips"), "clips")
        spec = IngestSpec(source=VideoFolder(tmp_path / "in", **fields), clean=clean, split=ALL)
        _, report = ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: [json.loads(line) for line in (tmp_path / "job" / "rejects.jsonl").read_text().splitlines()]
    return bring


def test_clips_stay_the_bytes_of_their_files_with_what_they_are_beside(tmp_path, bring):
    written = {
        "run/1.mkv": frames(10, seed=1),
        "run/2.mkv": frames(5, height=64, seed=2),
        "walk/3.avi": frames(20, seed=3),
    }
    for name, pictures in written.items():
        form = "avi" if name.endswith("avi") else "matroska"
        write(tmp_path / "in" / name, pictures, form=form, rate=10 if name == "walk/3.avi" else 25)

    snapshot, _ = bring()

    assert (snapshot.column("video").kind, snapshot.column("video").shape) == ("encoded-video", None)
    rows = np.arange(3)
    sources = [source.decode() for source in snapshot.gather("source", rows)]
    assert sources == sorted(written)
    for source, data in zip(sources, snapshot.gather("video", rows), strict=True):
        assert data == (tmp_path / "in" / source).read_bytes()
        np.testing.assert_array_equal(video.decode(data), written[source])
    assert snapshot.values("frames").tolist() == [10, 5, 20]
    assert snapshot.values("rate_hz").tolist() == [25, 25, 10]
    assert snapshot.values("seconds").tolist() == [0.4, 0.2, 2.0]
    assert snapshot.values("height").tolist() == [32, 64, 32]
    assert snapshot.values("width").tolist() == [48, 48, 48]
    assert snapshot.record.statistics["classes"] == {"run": 2, "walk": 1}
    snapshot.verify()


def test_what_does_not_decode_is_dropped_with_the_reason(tmp_path, bring):
    good = write(tmp_path / "in/a/good.mkv", frames()).read_bytes()
    write(tmp_path / "in/a/long.mkv", frames(50))
    write(tmp_path / "in/a/wide.mkv", frames(1, width=400))
    (tmp_path / "in/a/copy.mkv").write_bytes(good)
    (tmp_path / "in/a/cut.mkv").write_bytes(good[: len(good) // 2])
    (tmp_path / "in/a/empty.mkv").write_bytes(b"")
    (tmp_path / "in/a/text.mp4").write_text("no clip")

    snapshot, report = bring(DropUnreadable(), DropDuplicates(), max_seconds=1, max_pixels=4000)

    reasons = {each["source"]: each["reason"] for each in bring.rejects()}
    assert snapshot.rows == 1
    assert [step.dropped for step in report.steps] == [5, 1]
    assert "at most 1 s long" in reasons["a/long.mkv"]
    assert "at most 4,000 pixels; those of this clip have 400×32" in reasons["a/wide.mkv"]
    assert "cut short" in reasons["a/cut.mkv"]
    assert "it is empty" in reasons["a/empty.mkv"]
    assert "not a readable clip" in reasons["a/text.mp4"]
    assert "the same bytes as a/copy.mkv" in reasons["a/good.mkv"]


def test_one_unreadable_clip_ends_an_ingest_that_does_not_drop_it(tmp_path, bring):
    write(tmp_path / "in/a/good.mkv", frames())
    (tmp_path / "in/a/text.mp4").write_text("no clip")
    with pytest.raises(DataError, match=r"every clip of a source decodes; 1 of 2 do not, e\.g\. a/text\.mp4"):
        bring()


def test_a_folder_that_has_grown_brings_what_is_new(tmp_path, bring):
    write(tmp_path / "in/a/1.mkv", frames())
    bring()
    write(tmp_path / "in/b/2.mkv", frames(seed=1))
    snapshot, report = bring()
    assert (snapshot.rows, report.already_present) == (2, 1)
    assert snapshot.column("label").labels == ("a", "b")


def test_large_clips_are_written_a_few_at_a_time(tmp_path, bring, monkeypatch):
    size = len(encode(frames()))
    monkeypatch.setattr(ingesting, "_WINDOW_BYTES", 2 * size + size // 2)
    batches = []
    for number in range(7):
        write(tmp_path / f"in/a/{number}.mkv", frames(seed=number))
    windows = ingesting._windows

    def seen(items, **how):
        for window in windows(items, **how):
            batches.append(len(window))
            yield window

    monkeypatch.setattr(ingesting, "_windows", seen)
    snapshot, _ = bring()
    assert snapshot.rows == 7
    assert max(batches[1:]) == 2


def test_steps_for_pictures_are_refused(tmp_path, bring):
    write(tmp_path / "in/a/1.mkv", frames())
    with pytest.raises(InvalidRequest, match="drop-odd-sizes is not for clips"):
        bring(DropOddSizes())


def test_a_folder_that_is_none_is_refused(tmp_path, bring):
    with pytest.raises(InvalidRequest, match=r"a video folder is a folder; .* is not there"):
        bring()
