"""Tar files of samples, written by the `webdataset` package, become what that package reads from them."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from make_clips import encode, frames
from PIL import Image

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources.webdataset import open_webdataset
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import DropDuplicates, DropUnreadable
from mms_sdk.schema.sources import WebDataset
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

# WebDataset leaves the files that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def png(number: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    """Written by WebDataset's own writer; what is bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(
                {
                    name: value if isinstance(value, bytes) or name == "__key__" else _encoded(name, value)
                    for name, value in sample.items()
                }
            )
    return path


def _encoded(name: str, value: Any) -> bytes:
    return (json.dumps(value) if name.endswith("json") else str(value)).encode()


def raw(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of any names, in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            told = tarfile.TarInfo(name)
            told.size = len(data)
            archive.addfile(told, io.BytesIO(data))
    return path


def by_webdataset(*paths: Path) -> dict[str, dict[str, Any]]:
    """What the package reads: for each sample the bytes of its files."""
    read = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    return {f"{Path(sample['__url__']).name}/{sample['__key__']}": sample for sample in read}


@pytest.fixture
def bring(tmp_path):
    (tmp_path / "job").mkdir()

    def bring(path, *clean, **fields):
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        spec = IngestSpec(source=WebDataset(path, **fields), clean=clean, split=Split(train=1, val=0, test=0))
        _, report = ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot(), report

    bring.rejects = lambda: {
        told["source"]: told["reason"]
        for told in map(json.loads, (tmp_path / "job" / "rejects.jsonl").read_text().splitlines())
    }
    return bring


def rejected(path: Path, **fields: Any) -> dict[str, str]:
    return {reject.source: reject.reason for reject in open_webdataset(WebDataset(path, **fields)).rejects}


# What samples become ----------------------------------------------------------------------------------------------


def test_samples_are_those_that_webdataset_reads(tmp_path, bring):
    paths = [
        shard(
            tmp_path / f"shards/train-{number:06}.tar",
            (
                {
                    "__key__": f"{at:04}",
                    "png": png(100 * number + at),
                    "cls": (7 * at) % 12,
                    "txt": f"caption {at} ü",
                    "json": {"weight": at / 4, "views": at, "good": at % 2 == 0, "by": f"user {at}", "box": [1, 2]},
                }
                for at in range(15)
            ),
        )
        for number in range(3)
    ]
    expected = by_webdataset(*paths)

    snapshot, report = bring(f"{tmp_path}/shards/train-{{000000..000002}}.tar")

    rows = np.arange(snapshot.rows)
    sources = [source.decode() for source in snapshot.gather("source", rows)]
    assert sources == sorted(expected)
    pictures = [np.asarray(Image.open(io.BytesIO(expected[source]["png"]))) for source in sources]
    np.testing.assert_array_equal(snapshot.values("image"), np.stack(pictures))
    label = snapshot.column("label")
    assert label.labels == tuple(map(str, range(12)))
    assert snapshot.values("label").tolist() == [int(expected[source]["cls"]) for source in sources]
    assert list(snapshot.gather("txt", rows)) == [expected[source]["txt"] for source in sources]
    fields = [json.loads(expected[source]["json"]) for source in sources]
    dtypes = {"weight": "float64", "views": "int64", "good": "bool"}
    for name, dtype in dtypes.items():
        assert snapshot.column(name).dtype == dtype
        assert snapshot.values(name).tolist() == [each[name] for each in fields]
    assert [text.decode() for text in snapshot.gather("by", rows)] == [each["by"] for each in fields]
    assert "left out: box, list" in report.notes
    snapshot.verify()


@pytest.mark.parametrize("path", ["shards", "shards/*.tar", "shards/a-{0..1}.tar", "**/a-*.tar", "s*/a-{0..1}.tar"])
def test_shards_are_named_by_a_folder_a_pattern_or_a_range(tmp_path, path):
    for number in range(2):
        shard(tmp_path / f"shards/a-{number}.tar", [{"__key__": "k", "png": png(number)}])
    found = open_webdataset(WebDataset(tmp_path / path))
    assert [entry.source.rpartition("shards/")[2] for entry in found.entries] == ["a-0.tar/k", "a-1.tar/k"]
    assert not found.labelled


def test_a_shard_of_a_range_that_is_not_there_is_told(tmp_path):
    shard(tmp_path / "a-0.tar", [{"__key__": "k", "png": png()}])
    with pytest.raises(InvalidRequest, match=r"every shard of .* is there; .*a-1\.tar is not"):
        open_webdataset(WebDataset(tmp_path / "a-{0..2}.tar"))


@pytest.mark.parametrize("path", ["{5..1}.tar", "{0..99999999999}.tar", "{0..9999}{0..9999}.tar"])
def test_a_range_of_no_or_too_many_shards_is_refused(path):
    with pytest.raises(InvalidRequest, match=r"100,000"):
        open_webdataset(WebDataset(path))


def test_recordings_clips_and_texts_are_samples_too(tmp_path):
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(100, np.int16), 8000, format="WAV")
    kinds = {}
    for name, data in {"wav": sound.getvalue(), "mkv": encode(frames(2)), "txt": b"hello"}.items():
        found = open_webdataset(WebDataset(shard(tmp_path / f"{name}.tar", [{"__key__": "k", name: data, "cls": 1}])))
        kinds[name] = type(found.taken).__name__
        assert found.entries[0].read().data == data
        assert [column.name for column in found.columns] == []
    assert kinds == {"wav": "AsRecordings", "mkv": "AsClips", "txt": "AsTexts"}


def test_a_clip_has_what_it_is_beside_and_fields_of_these_names_get_others(tmp_path, bring):
    fields = {"width": "broad", "label": "x", "source": "y", "id": 3, "video": 1}
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "mkv": encode(frames(4)), "cls": "run", "json": fields}])
    snapshot, _ = bring(path)
    assert snapshot.values("width").tolist() == [48]
    assert snapshot.values("frames").tolist() == [4]
    named = {column.title: column.name for column in snapshot.record.columns if column.title}
    assert named == {"width": "width_2", "label": "label_2", "source": "source_2", "id": "id_2", "video": "video_2"}
    assert snapshot.gather("width_2", np.arange(1)) == [b"broad"]
    assert snapshot.values("id_2").tolist() == [3]
    assert snapshot.column("label").labels == ("run",)


def test_of_several_pictures_one_is_named(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "left.png": png(1), "right.png": png(2)}])
    with pytest.raises(InvalidRequest, match=r"has \.left\.png, \.right\.png; name the one that is meant with part="):
        open_webdataset(WebDataset(path))
    found = open_webdataset(WebDataset(path, part="right.png"))
    assert found.entries[0].read().data == png(2)
    assert found.notes == ("left out: 1 × .left.png",)
    with pytest.raises(InvalidRequest, match=r"those in .* end with \.left\.png, \.right\.png; got 'up\.png'"):
        open_webdataset(WebDataset(path, part="up.png"))


def test_of_several_kinds_one_is_said(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "png": png(1), "mkv": encode(frames(2)), "txt": "hi"}])
    with pytest.raises(InvalidRequest, match="say which with kind="):
        open_webdataset(WebDataset(path))
    assert open_webdataset(WebDataset(path, kind="video")).entries[0].read().values == {"txt": "hi"}
    assert open_webdataset(WebDataset(path, kind="text")).entries[0].read().data == b"hi"
    with pytest.raises(InvalidRequest, match="one picture, recording, clip or text"):
        open_webdataset(WebDataset(path, kind="audio"))


def test_jpg_and_png_may_be_mixed(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "a", "png": png(1)}, {"__key__": "b", "PPM": b"P6 1 1 255\n123"}])
    assert len(open_webdataset(WebDataset(path)).entries) == 2


# Where the class stands -------------------------------------------------------------------------------------------


def test_classes_are_numbers_in_their_order_or_names(tmp_path):
    numbers = shard(tmp_path / "a.tar", ({"__key__": f"{at}", "png": png(at), "cls": at} for at in (10, 9, 2)))
    assert open_webdataset(WebDataset(numbers)).labels == ("2", "9", "10")
    names = shard(tmp_path / "b.tar", ({"__key__": f"{at}", "png": png(at), "cls": f" cat {at}\n"} for at in (10, 9)))
    assert open_webdataset(WebDataset(names)).labels == ("cat 10", "cat 9")


def test_a_class_may_stand_in_a_field_or_another_file(tmp_path):
    samples = [{"__key__": f"{at}", "png": png(at), "json": {"kind": at % 2}, "species.txt": "oak"} for at in range(4)]
    path = shard(tmp_path / "a.tar", samples)
    found = open_webdataset(WebDataset(path, label="kind"))
    assert [entry.label for entry in found.entries] == ["0", "1", "0", "1"]
    assert [column.name for column in found.columns] == ["species_txt"]
    found = open_webdataset(WebDataset(path, label=".species.txt"))
    assert [entry.label for entry in found.entries] == ["oak"] * 4
    with pytest.raises(NothingToIngest, match=r"4 left out, e\.g\. .*the field 'colour' of its \.json has 'None'"):
        open_webdataset(WebDataset(path, label="colour"))
    with pytest.raises(InvalidRequest, match=r"a class stands in .* got 'colour'"):
        open_webdataset(WebDataset(shard(tmp_path / "b.tar", [{"__key__": "k", "png": png()}]), label="colour"))


@pytest.mark.parametrize("value", [None, True, 1.5, [1], {}, "", " ", "x" * 256])
def test_what_is_no_class_leaves_its_sample_out(tmp_path, value):
    path = shard(
        tmp_path / "a.tar",
        [{"__key__": "bad", "png": png(), "json": {"c": value}}, {"__key__": "good", "png": png(1), "json": {"c": 1}}],
    )
    assert "a class is a whole number or a name" in rejected(path, label="c")["a.tar/bad"]


# What stands beside -----------------------------------------------------------------------------------------------


def test_values_that_some_lack_are_nullable(tmp_path, bring):
    path = shard(
        tmp_path / "a.tar",
        [
            {"__key__": "a", "png": png(1), "json": {"n": 1, "t": "x", "f": None}, "txt": "hi"},
            {"__key__": "b", "png": png(2), "json": {"f": 2}},
            {"__key__": "c", "png": png(3)},
        ],
    )
    snapshot, _ = bring(path)
    rows = np.arange(3)
    assert snapshot.gather("n", rows).tolist() == [1, None, None]
    assert snapshot.gather("f", rows).tolist() == [None, 2, None]
    assert list(snapshot.gather("t", rows)) == [b"x", None, None]
    assert list(snapshot.gather("txt", rows)) == [b"hi", None, None]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([1, 2.5], "float64"),
        ([True, False], "bool"),
        ([2**62, 1], "int64"),
        (["a", "b"], "uint8"),
        ([2**62, 0.5], None),
        ([1, "a"], None),
        ([True, 1], None),
        ([[1], [2]], None),
        ([None, None], None),
        ([2**64, 1], None),
    ],
)
def test_a_field_has_the_type_that_loses_nothing_or_is_left_out_and_told(tmp_path, values, dtype):
    path = shard(
        tmp_path / "a.tar",
        ({"__key__": f"{at}", "png": png(at), "json": {"v": each}} for at, each in enumerate(values)),
    )
    found = open_webdataset(WebDataset(path))
    if dtype is None:
        assert found.columns == ()
        assert found.notes[0].startswith("left out: v, ")
    else:
        assert found.columns[0].dtype == dtype
        assert [entry.read().values["v"] for entry in found.entries] == values


def test_numbers_in_files_of_their_own_are_columns(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "png": png(), "cls": 1, "index": 12, "count": "x", "cls2": 3}])
    found = open_webdataset(WebDataset(path))
    assert found.entries[0].read().values == {"index": 12, "count": "x", "cls2": 3}


def test_a_file_and_a_field_of_one_name_are_two_columns(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "png": png(), "txt": "file", "json": {"txt": "field"}}])
    assert open_webdataset(WebDataset(path)).entries[0].read().values == {"txt": "file", "json_txt": "field"}


def test_pickles_are_never_loaded(tmp_path, bring):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    evil = pickle.dumps(Evil())
    array = io.BytesIO()
    np.save(array, np.array([Evil()], object), allow_pickle=True)
    path = shard(
        tmp_path / "a.tar", [{"__key__": "k", "png": png(), "pyd": evil, "pth": evil, "npy": array.getvalue()}]
    )
    _, report = bring(path)
    assert not (tmp_path / "ran").exists()
    assert set(report.notes) == {
        "left out: 1 × .npy",
        "left out: 1 × .pth, which runs code where it is loaded",
        "left out: 1 × .pyd, which runs code where it is loaded",
    }


@pytest.mark.parametrize("data", [b"{", b"[1]", b"NaN", b"\xff", b'{"a": NaN}', b"[" * 10_000, b""])
def test_json_that_is_none_leaves_its_sample_out(tmp_path, data):
    path = shard(
        tmp_path / "a.tar", [{"__key__": "bad", "png": png(), "json": data}, {"__key__": "good", "png": png(1)}]
    )
    assert "its .json is" in rejected(path)["a.tar/bad"]


def test_fields_without_end_are_refused(tmp_path):
    samples = ({"__key__": f"{at}", "png": png(), "json": {f"f{at}-{n}": n for n in range(99)}} for at in range(20))
    with pytest.raises(DataError, match="at most 1,000 values beside"):
        open_webdataset(WebDataset(shard(tmp_path / "a.tar", samples)))


# Bad shards -------------------------------------------------------------------------------------------------------


def test_a_key_in_two_places_and_a_file_there_twice_leave_their_samples_out(tmp_path):
    path = raw(
        tmp_path / "a.tar",
        [
            ("a.png", png(1)),
            ("b.png", png(2)),
            ("a.cls", b"1"),
            ("c.png", png(3)),
            ("c.PNG", png(4)),
            ("d.png", png(5)),
        ],
    )
    found = open_webdataset(WebDataset(path))
    assert [entry.source for entry in found.entries] == ["a.tar/b", "a.tar/d"]
    assert {reject.source: reject.reason for reject in found.rejects} == {
        "a.tar/a": "its key stands in two places of its shard",
        "a.tar/c": "two of its files end with .png",
    }


def test_names_that_lead_out_links_and_devices_are_left_out_and_nothing_is_written(tmp_path):
    path = tmp_path / "in" / "a.tar"
    raw(path, [("../evil.png", png()), ("/etc/evil.png", png()), ("a/../../evil.png", png()), ("./good.png", png(1))])
    with tarfile.open(path, "a") as archive:
        for name, kind in [("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("disk.png", tarfile.BLKTYPE)]:
            told = tarfile.TarInfo(name)
            told.type, told.linkname = kind, "/etc/passwd"
            archive.addfile(told)
    before = sorted(tmp_path.rglob("*"))
    found = open_webdataset(WebDataset(path))
    assert [entry.source for entry in found.entries] == ["a.tar/good"]
    assert {reject.source.removeprefix("a.tar/"): reject.reason for reject in found.rejects} == {
        "../evil.png": "its name leads out of the tar file",
        "/etc/evil.png": "its name leads out of the tar file",
        "a/../../evil.png": "its name leads out of the tar file",
        "soft.png": "it is a link",
        "hard.png": "it is a link",
        "disk.png": "it is a device",
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_names_without_an_ending_are_told_and_clutter_is_passed_over(tmp_path):
    names = ["a.png", "readme", ".hidden", "__MACOSX/._a.png", ".DS_Store", "__meta__", "__i__/b.png"]
    assert set(rejected(raw(tmp_path / "a.tar", [(name, png()) for name in names]))) == {
        "a.tar/readme",
        "a.tar/.hidden",
    }


def test_keys_are_divided_as_webdataset_divides_them(tmp_path):
    names = ["a.b.c.png", "d.e/f.png", "d.e/g/h.x.txt", "ü.png"]
    path = raw(tmp_path / "a.tar", [(name, png(at)) for at, name in enumerate(names)])
    found = open_webdataset(WebDataset(path, kind="image"))
    told = {entry.source for entry in found.entries} | {reject.source for reject in found.rejects}
    assert told == set(by_webdataset(path))


@pytest.mark.parametrize("name", ["a/" * 20000 + "x", "a." * 3000])
def test_a_name_longer_than_any_path_is_told_at_once(tmp_path, name):
    path = raw(tmp_path / "a.tar", [(name, b"x"), ("b.png", png())])
    began = time.monotonic()
    assert "at most 4,096 bytes" in next(iter(rejected(path).values()))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("path", ["s/{0..1}/x.tar", "s*/{0..1}/x.tar", "s/{0..1}/*.tar"])
def test_shards_of_one_name_in_numbered_folders_are_kept_apart(tmp_path, path):
    for number in range(2):
        shard(tmp_path / f"s/{number}/x.tar", [{"__key__": "k", "png": png(number)}])
    found = open_webdataset(WebDataset(tmp_path / path))
    assert [entry.source.removeprefix("s/") for entry in found.entries] == ["0/x.tar/k", "1/x.tar/k"]


def test_names_that_are_not_utf_8_are_kept_apart(tmp_path):
    path = raw(tmp_path / "a.tar", [("\udcff.png", png(1)), ("\\xff.png", png(2))])
    found = {entry.source: entry.read().data for entry in open_webdataset(WebDataset(path)).entries}
    assert found == {"a.tar/\\xff": png(1), "a.tar/\\\\xff": png(2)}


def test_of_a_shard_that_is_cut_short_what_is_whole_comes_in(tmp_path, bring):
    path = shard(tmp_path / "in/a.tar", ({"__key__": f"{at}", "png": png(at), "cls": at} for at in range(5)))
    path.write_bytes(path.read_bytes()[: 512 * 2 * 4 * 2 + 700])
    shard(tmp_path / "in/b.tar", [{"__key__": "k", "png": png(9), "cls": 9}])
    snapshot, report = bring(tmp_path / "in")
    sources = {source.decode() for source in snapshot.gather("source", np.arange(snapshot.rows))}
    reasons = bring.rejects()
    assert "b.tar/k" in sources
    assert "cut short" in reasons["a.tar"]
    lost = next(name for name in reasons if name != "a.tar")
    assert "it may lack files" in reasons[lost]
    assert sources == {"b.tar/k", *(f"a.tar/{at}" for at in range(int(lost[-1])))}
    assert any("left out, e.g. a.tar: it is cut short" in note for note in report.notes)


def test_compressed_shards_are_told_with_the_next_step(tmp_path):
    path = shard(tmp_path / "in/a.tar.gz", [{"__key__": "k", "png": png()}])
    with pytest.raises(
        NothingToIngest, match=r"compressed by gzip, and samples are read in place; decompress it first"
    ):
        open_webdataset(WebDataset(path))


def test_other_files_in_a_folder_are_told(tmp_path):
    shard(tmp_path / "a.tar", [{"__key__": "k", "png": png()}])
    (tmp_path / "readme.md").write_text("hello")
    assert rejected(tmp_path) == {"readme.md": "its name does not end with .tar"}


def test_a_sample_without_its_picture_is_told(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "a", "png": png()}, {"__key__": "b", "json": {"a": 1}}])
    assert rejected(path) == {"a.tar/b": "it has no file that ends with .png, only .json"}


def test_what_does_not_decode_is_dropped_with_the_reason(tmp_path, bring):
    path = shard(
        tmp_path / "a.tar",
        [{"__key__": "a", "png": png()}, {"__key__": "b", "png": b"no"}, {"__key__": "c", "png": png()}],
    )
    with pytest.raises(DataError, match=r"every picture of a source decodes; 1 of 3 do not, e\.g\. a\.tar/b"):
        bring(path)
    snapshot, report = bring(path, DropUnreadable(), DropDuplicates())
    assert (snapshot.rows, [step.dropped for step in report.steps]) == (1, [1, 1])
    assert "not a readable picture" in bring.rejects()["a.tar/b"]


def test_a_shard_that_changes_meanwhile_is_told(tmp_path):
    path = shard(tmp_path / "a.tar", [{"__key__": "k", "png": png()}])
    entry = open_webdataset(WebDataset(path)).entries[0]
    shard(path, [{"__key__": "k", "png": png(1)}])
    os.utime(path, (1, 1))
    with pytest.raises(InvalidRequest, match=r"a\.tar changed since it was looked through"):
        entry.read()


def test_the_same_again_brings_nothing_and_more_shards_bring_theirs(tmp_path, bring):
    for number in range(2):
        shard(tmp_path / f"in/{number}.tar", ({"__key__": f"{at}", "png": png(at), "cls": at} for at in range(3)))
        snapshot, report = bring(tmp_path / "in")
        assert (snapshot.rows, report.kept, report.already_present) == (3 * number + 3, 3, 3 * number)
    assert bring(tmp_path / "in")[1].kept == 0


@pytest.mark.parametrize("path", ["nothing.tar", "*.tar", "empty"])
def test_where_nothing_is_found_it_is_told(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToIngest, match=r"at least one sample; .* has none; check the path"):
        open_webdataset(WebDataset(tmp_path / path))
