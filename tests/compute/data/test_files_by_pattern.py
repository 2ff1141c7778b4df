"""Files by a pattern: which are found is compared with Python's own `glob`, and texts with what was written."""

from __future__ import annotations

import glob
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from make_clips import frames, write
from PIL import Image

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources.files import _reached, find_files, open_files
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import DropDuplicates, DropNearDuplicates, DropUnreadable
from mms_sdk.schema.sources import Files
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path, "PNG")


@pytest.fixture
def bring(tmp_path):
    (tmp_path / "job").mkdir()

    def bring(source, *clean):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        spec = IngestSpec(source=source, clean=clean, split=Split(train=1, val=0, test=0))
        _, report = ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: {
        told["source"]: told["reason"]
        for told in map(json.loads, (tmp_path / "job" / "rejects.jsonl").read_text().splitlines())
    }
    return bring


# Which files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "*.jpg", "**", "**/*", "**/*.jpg", "*/*.jpg", "**/b/*.jpg", "a/**/1.jpg", "a/**/b/**/*.jpg", "?/*",
        "[ab]/*", "[!a]/*", "a/**", "**/**/1.jpg", "a/b", "a", "nothing/*.jpg", "*.png", ".*", "**/.h*", "a/b/c/1.jpg",
        "a/[[]x].jpg",
    ],
)  # fmt: skip
def test_a_pattern_names_what_glob_finds(tmp_path, pattern):
    make(tmp_path, "1.jpg", "2.png", "a/1.jpg", "a/b/1.jpg", "a/b/c/1.jpg", "b/1.jpg", "b/b/2.jpg", "a/[x].jpg")
    make(tmp_path, ".hidden.jpg", "a/.hidden.jpg", ".git/1.jpg", "b/.x/b/1.jpg")

    _, found = find_files(f"{tmp_path}/{pattern}", [])

    if Path(tmp_path / pattern).is_dir():
        assert found
        return
    expected = [path for path in glob.glob(f"{tmp_path}/{pattern}", recursive=True) if os.path.isfile(path)]
    assert sorted(map(str, found)) == sorted(set(expected))


@given(
    parts=st.lists(st.sampled_from("abc"), min_size=1, max_size=6),
    pattern=st.lists(st.sampled_from(["a", "b", "*", "**", "?"]), min_size=1, max_size=6),
)
def test_what_a_pattern_reaches_is_what_trying_everything_finds(parts, pattern):
    def fits(left, right):
        if not right:
            return not left
        if right[0] == "**":
            return fits(left, right[1:]) or bool(left and fits(left[1:], right))
        return bool(left) and (right[0] in ("*", "?", left[0])) and fits(left[1:], right[1:])

    assert (len(pattern) in _reached(parts, pattern)) == fits(parts, pattern)


def test_many_stars_take_no_long_time():
    begin = time.monotonic()
    _reached(["a"] * 60, ["**", "a"] * 30 + ["b"])
    assert time.monotonic() - begin < 10  # else years


def test_names_begin_where_the_pattern_does_whatever_it_finds(tmp_path):
    make(tmp_path, "photos/a/b/1.jpg")
    assert [entry.source for entry in open_files(Files(f"{tmp_path}/photos/**/*.jpg")).entries] == ["a/b/1.jpg"]
    assert [entry.source for entry in open_files(Files(f"{tmp_path}/photos/a/*/1.jpg")).entries] == ["b/1.jpg"]
    assert [entry.source for entry in open_files(Files(tmp_path / "photos")).entries] == ["a/b/1.jpg"]
    assert [entry.source for entry in open_files(Files(tmp_path / "photos/a/b/1.jpg")).entries] == ["1.jpg"]


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path):
    make(tmp_path, "photos [1]/1.jpg")
    assert [entry.source for entry in open_files(Files(tmp_path / "photos [1]")).entries] == ["1.jpg"]


def test_links_and_clutter_are_what_they_are_in_folders(tmp_path):
    make(tmp_path, "in/a/1.jpg", "in/a/.DS_Store", "in/__MACOSX/a/1.jpg", "else/2.jpg")
    (tmp_path / "in/there").symlink_to(tmp_path / "else")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    (tmp_path / "in/broken.png").symlink_to("nowhere")

    found = open_files(Files(f"{tmp_path}/in/**/*.jpg"))

    assert [entry.source for entry in found.entries] == ["a/1.jpg", "there/2.jpg"]
    assert {reject.source for reject in found.rejects} == {"loop", "broken.jpg", "pipe.jpg"}


def test_names_that_are_not_utf_8_are_kept_apart(tmp_path):
    for name in (b"\xff.txt", b"\\xff.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    found = open_files(Files(f"{tmp_path}/*.txt"))
    assert {entry.source: entry.read().data for entry in found.entries} == {
        "\\xff.txt": b"\xff.txt",
        "\\\\xff.txt": b"\\xff.txt",
    }


@pytest.mark.parametrize("path", ["nothing", "nothing/*.jpg", "*.gif", "in/**/x.jpg"])
def test_a_pattern_that_names_nothing_is_told(tmp_path, path):
    make(tmp_path, "in/1.jpg")
    with pytest.raises(NothingToIngest, match=r"at least one file; .* names none; check the path"):
        open_files(Files(f"{tmp_path}/{path}"))


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InvalidRequest, match="neither file nor folder"):
        open_files(Files(tmp_path / "pipe.jpg"))


def test_a_file_larger_than_a_sample_may_be_is_never_read(tmp_path, bring, monkeypatch):
    picture(tmp_path / "in/1.png")
    with (tmp_path / "in/2.png").open("wb") as file:
        file.truncate(2**40)  # takes no room
    bring(Files(tmp_path / "in"), DropUnreadable())
    assert "at most 1,073,741,824 bytes; this one has 1,099,511,627,776" in bring.rejects()["2.png"]


# What they are ----------------------------------------------------------------------------------------------------


def test_pictures_recordings_clips_and_texts_are_known_by_their_names(tmp_path):
    make(tmp_path, "a.JPG", "b.wav", "c.mkv", "d.txt")
    kinds = {
        name: type(open_files(Files(tmp_path / name)).taken).__name__ for name in ("a.JPG", "b.wav", "c.mkv", "d.txt")
    }
    assert kinds == {"a.JPG": "AsPictures", "b.wav": "AsRecordings", "c.mkv": "AsClips", "d.txt": "AsTexts"}
    with pytest.raises(InvalidRequest, match=r"of one kind; .* are \{'image': 1, .*narrow the pattern"):
        open_files(Files(tmp_path))


def test_files_of_unknown_names_are_left_out_unless_their_kind_is_said(tmp_path, bring):
    picture(tmp_path / "in/1.png")
    picture(tmp_path / "in/2", 9)
    snapshot, report = bring(Files(tmp_path / "in"))
    assert snapshot.rows == 1
    assert "say kind=" in bring.rejects()["2"]
    assert "1 × left out, e.g. 2: its name does not end as one that MMS knows" in report.notes[0]
    snapshot, _ = bring(Files(tmp_path / "in", kind="image"))
    assert snapshot.rows == 2


def test_recordings_and_clips_become_what_they_become_in_folders(tmp_path, bring):
    sound = np.arange(-400, 400, dtype=np.int16)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/1.wav", sound, 8000)
    write(tmp_path / "in/2.mkv", frames(6))
    snapshot, _ = bring(Files(f"{tmp_path}/in/*.wav"))
    np.testing.assert_array_equal(snapshot.gather("audio", np.arange(1))[0][:, 0], sound)
    assert [column.name for column in snapshot.record.columns] == ["audio", "source", "id", "split"]


def test_clips_by_a_pattern_have_what_they_are_beside(tmp_path, bring):
    write(tmp_path / "in/2.mkv", frames(6))
    snapshot, _ = bring(Files(f"{tmp_path}/in/*.mkv"))
    assert snapshot.values("frames").tolist() == [6]


def test_texts_are_kept_as_utf_8(tmp_path, bring):
    texts = {"ham/1.txt": "grün\r\n", "ham/2.txt": "", "spam/3.txt": "日本\0語", "spam/4.txt": "\ufeffmark"}
    for name, written in texts.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(written.encode())
    snapshot, report = bring(Files(f"{tmp_path}/in/**/*.txt", label="folder"))
    rows = np.arange(4)
    sources = [source.decode() for source in snapshot.gather("source", rows)]
    assert [text.decode() for text in snapshot.gather("text", rows)] == [
        texts[source].removeprefix("\ufeff") for source in sources
    ]
    assert snapshot.column("label").labels == ("ham", "spam")
    assert set(report.notes) == {"1 × no character in it", "1 × byte order mark left out"}


def test_texts_in_another_encoding_say_so(tmp_path, bring):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"every text of a source decodes; 1 of 1.*no text in utf-8: invalid start byte"
    ):
        bring(Files(tmp_path / "in"))
    snapshot, _ = bring(Files(tmp_path / "in", encoding="latin-1"))
    assert snapshot.gather("text", np.arange(1)) == ["grün".encode()]


def test_half_a_character_is_no_text(tmp_path, bring):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.txt").write_bytes(rb"\ud800")
    with pytest.raises(DataError, match="surrogates not allowed"):
        bring(Files(tmp_path / "in", encoding="unicode_escape"))


@pytest.mark.parametrize("encoding", ["rot13", "zlib", "base64", "nonsense", "", "a\0b"])
def test_what_is_no_encoding_of_text_is_refused(encoding):
    with pytest.raises(InvalidRequest, match=r"an encoding is one of text|null"):
        Files("x", encoding=encoding)


def test_steps_that_suit_the_kind_apply(tmp_path, bring):
    for name, shade in (("a", 0), ("b", 0), ("c", 255)):
        picture(tmp_path / f"in/{name}.png", shade)
    snapshot, report = bring(Files(tmp_path / "in"), DropDuplicates(), DropNearDuplicates())
    assert (snapshot.rows, report.steps[0].dropped) == (2, 1)
    make(tmp_path, "texts/1.txt")
    with pytest.raises(InvalidRequest, match="drop-near-duplicates is not for texts"):
        bring(Files(tmp_path / "texts"), DropNearDuplicates())


# Where the class stands -------------------------------------------------------------------------------------------


def placed(source: Files) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    found = open_files(source)
    rejects = {reject.source: reject.reason for reject in found.rejects}
    return {entry.source: (entry.label, entry.split) for entry in found.entries}, rejects


def test_the_class_is_the_folder_that_a_file_lies_in(tmp_path):
    make(tmp_path, "in/x/cat/1.jpg", "in/y/cat/1.jpg", "in/y/dog/2.jpg", "in/3.jpg")
    assert placed(Files(f"{tmp_path}/in/**/*.jpg", label="folder"))[0] == {
        "x/cat/1.jpg": ("cat", ""),
        "y/cat/1.jpg": ("cat", ""),
        "y/dog/2.jpg": ("dog", ""),
        "3.jpg": ("in", ""),
    }


def test_the_class_is_a_group_of_the_name(tmp_path):
    make(tmp_path, "cat_1.jpg", "dog_2.jpg", "3.jpg", "_4.jpg")
    assert placed(Files(f"{tmp_path}/*.jpg", label=r"^(?P<label>[^_]*)_")) == (
        {"cat_1.jpg": ("cat", ""), "dog_2.jpg": ("dog", "")},
        dict.fromkeys(("3.jpg", "_4.jpg"), "its path does not fit label='^(?P<label>[^_]*)_'"),
    )


def test_the_split_is_a_group_of_the_path(tmp_path, bring):
    for number, name in enumerate(["train/a/1.png", "train/b/2.png", "valid/a/3.png", "test/b/4.png", "night/b/5.png"]):
        picture(tmp_path / "in" / name, number)
    snapshot, _ = bring(Files(tmp_path / "in", label="^(?P<split>[^/]+)/(?P<label>[^/]+)/"))
    assert snapshot.record.splits == {"train": 2, "val": 1, "test": 1}
    assert snapshot.record.statistics["classes"] == {"a": 2, "b": 2}
    assert "its split 'night' is none of train, val" in bring.rejects()["night/b/5.png"]


def test_a_split_without_a_class_will_do(tmp_path):
    make(tmp_path, "train/1.jpg", "dev/2.jpg")
    found = open_files(Files(tmp_path, label="^(?P<split>[a-z]+)/"))
    assert not found.labelled
    assert [(entry.source, entry.split) for entry in found.entries] == [("dev/2.jpg", "val"), ("train/1.jpg", "train")]


@pytest.mark.parametrize(
    "label",
    ["fodler", "(", "(.*)", "(?P<label>a)(?P<label>b)", "(?P<kind>a)", "(?=a)(?P<label>a)", r"(?P<label>a)\1", ""],
)
def test_what_names_no_class_is_refused(label):
    with pytest.raises(InvalidRequest, match=r"a class is that of the 'folder', or"):
        Files("x", label=label)


def test_no_expression_takes_a_name_for_ever(tmp_path):
    make(tmp_path, "a" * 200 + ".jpg")
    begin = time.monotonic()
    with pytest.raises(NothingToIngest, match="does not fit"):
        open_files(Files(tmp_path, label="^(?P<label>(?:(?:a+)+)+)$"))
    assert time.monotonic() - begin < 10  # else years


def test_it_survives_the_wire():
    for source in (Files("a/*.jpg", label="^(?P<label>x)"), Files("b", kind="text", encoding="latin-1")):
        spec = IngestSpec(source=source)
        assert IngestSpec.model_validate_json(spec.model_dump_json()).source == source
