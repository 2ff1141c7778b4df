from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_datasets import TOLD, ingested
from make_pictures import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, huge_png, noise, png, saved, write, write_classes
from PIL import Image

from mms_sdk.compute.data import bring
from mms_sdk.compute.data import ingest as module
from mms_sdk.compute.data.kinds import image
from mms_sdk.errors import DataError, MmsError, NothingToIngest, NotWritable, SnapshotConflict, StorageFull
from mms_sdk.schema.cleaning import DropDuplicates, DropOddSizes, DropUnreadable
from mms_sdk.schema.specs import Split
from mms_sdk.storage import files, parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import rename_columns, write_column
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.writing import Writing

CLEAN = (DropUnreadable(), DropDuplicates(), DropOddSizes())
ALL_TRAIN = Split(train=1.0, val=0.0, test=0.0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten cats and ten dogs of one size."""
    write_classes(tmp_path / "photos", {"cat": 10, "dog": 10})
    return tmp_path / "photos"


def sources(snapshot: OpenSnapshot) -> list[str]:
    return [source.decode() for source in snapshot.gather("source", np.arange(snapshot.rows))]


def by_source(snapshot: OpenSnapshot, column: str) -> dict[str, Any]:
    return dict(zip(sources(snapshot), snapshot.gather(column, np.arange(snapshot.rows)), strict=True))


def split_by_id(snapshot: OpenSnapshot) -> dict[bytes, int]:
    ids = (row.tobytes() for row in snapshot.values("id"))
    return dict(zip(ids, snapshot.values("split").tolist(), strict=True))


def rejects(root: Path) -> dict[str, str]:
    """What the job wrote about every file that was left out."""
    lines = (root / "job" / "rejects.jsonl").read_text().splitlines()
    return {told["source"]: told["reason"] for told in map(json.loads, lines)}


def assert_nothing_came_in(root: Path) -> None:
    assert not list((root / "flowers").glob("snapshots/*"))
    assert not list((root / "flowers").glob("parts/*"))


# What comes in ----------------------------------------------------------------------------------------------------


def test_a_folder_becomes_rows_with_pixels_label_source_id_and_split(tmp_path: Path, photos: Path) -> None:
    dataset, record, report = ingested(tmp_path, photos)
    snapshot = dataset.snapshot()

    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    assert sources(snapshot) == [path.relative_to(photos).as_posix() for path in paths]
    np.testing.assert_array_equal(
        snapshot.values("image"), [noise(6, 5, seed=1000 * label + row) for label in (0, 1) for row in range(10)]
    )
    assert snapshot.column("label").labels == ("cat", "dog")
    assert snapshot.values("label").tolist() == [0] * 10 + [1] * 10
    digests = [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]
    assert [row.tobytes() for row in snapshot.values("id")] == digests
    assert (
        record.splits
        == {"train": 16, "val": 2, "test": 2}
        == dict(Counter(("train", "val", "test")[code] for code in snapshot.values("split")))
    )
    assert record.statistics == {"classes": {"cat": 10, "dog": 10}}
    assert (report.found, report.kept, report.already_present, report.dropped) == (20, 20, 0, 0)
    assert record.provenance["ingest"]["source"]["path"] == str(photos)
    assert rejects(tmp_path) == {}


def test_columns_of_a_new_dataset_lie_as_was_asked_for_and_keep_what_they_hold(tmp_path: Path, photos: Path) -> None:
    plain, _, _ = ingested(tmp_path / "plain", photos)
    dense, record, _ = ingested(tmp_path / "dense", photos, profile="zstd")
    assert {column.name: column.profile for column in record.columns} == {
        **dict.fromkeys(("image", "label", "source", "split"), "zstd"),
        "id": "raw",
    }
    for name in ("image", "label", "id", "split"):
        np.testing.assert_array_equal(dense.snapshot().values(name), plain.snapshot().values(name))
    write_classes(photos, {"fox": 10})
    _, record, _ = ingested(tmp_path / "dense", photos, profile="raw")
    assert record.column("image").profile == "zstd"  # one dataset, one layout


def test_where_bytes_cost_time_columns_of_a_new_dataset_are_compressed(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "local", False)
    _, record, _ = ingested(tmp_path, photos)
    assert record.column("image").profile == record.column("label").profile == "blosc"


def test_progress_is_told_for_both_passes_to_their_end(tmp_path: Path, photos: Path) -> None:
    ingested(tmp_path, photos)

    for what in ("files checked", "pictures stored"):
        done = [progress.done for progress in TOLD if progress.what == what]
        assert done == sorted(done)
        assert done[-1] == 20
    assert {progress.total for progress in TOLD} == {20}


def test_pictures_of_many_sizes_are_kept_as_the_bytes_of_their_files(tmp_path: Path) -> None:
    for number, size in enumerate([(6, 5), (5, 6), (1, 1), (30, 2)] * 3):
        write(tmp_path / "photos" / "cat" / f"{number}.png", noise(*size, seed=number))

    snapshot = ingested(tmp_path, tmp_path / "photos")[0].snapshot()

    assert snapshot.column("image").shape is None
    for source, data in by_source(snapshot, "image").items():
        assert data == (tmp_path / "photos" / source).read_bytes()


def test_large_pictures_of_one_size_are_kept_as_the_bytes_of_their_files(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "photos" / "cat" / f"{number}.jpg", saved(noise(300, 300, seed=number), "JPEG"))

    snapshot = ingested(tmp_path, tmp_path / "photos")[0].snapshot()

    assert snapshot.column("image").kind == "encoded-image"
    for source, data in by_source(snapshot, "image").items():
        assert data == (tmp_path / "photos" / source).read_bytes()


@pytest.mark.parametrize(
    ("channels", "color", "expected"),
    [((1, 1), "auto", "gray"), ((1, 3), "auto", "rgb"), ((3, 3), "gray", "gray"), ((1, 1), "rgb", "rgb")],
)
def test_channels_are_those_that_all_pictures_need_or_that_were_asked_for(
    tmp_path: Path, channels: tuple[int, int], color: str, expected: str
) -> None:
    for number in range(6):
        write(tmp_path / "photos" / "cat" / f"{number}.png", noise(6, 12, channels[number % 2], seed=number))

    snapshot = ingested(tmp_path, tmp_path / "photos", color=color)[0].snapshot()

    assert snapshot.column("image").color == expected
    assert snapshot.column("image").shape == (6, 12, 1 if expected == "gray" else 3)


def test_pictures_of_every_sort_come_in_side_by_side(tmp_path: Path) -> None:
    colours, alpha, levels = noise(6, 5), noise(6, 5, 1, seed=1), noise(6, 5, 1, seed=2)
    share = alpha / 255
    deep = np.random.default_rng(3).integers(0, 65536, (6, 5, 1))
    inks = noise(6, 5, 4, seed=4)
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = noise(1, 256, seed=5)[0]
    expected = {
        "rgb.png": (saved(colours), colours),
        "gray.png": (saved(levels), levels.repeat(3, 2)),
        "bits.png": (png(levels % 2, GRAY, bits=1), levels.repeat(3, 2) % 2 * 255),
        "deep.png": (png(deep, GRAY, bits=16), np.rint(deep / 257).repeat(3, 2)),
        "palette.png": (png(levels, PALETTE, chunks={b"PLTE": palette.tobytes()}), palette[levels[:, :, 0]]),
        "rgba.png": (png(np.concatenate([colours, alpha], 2), RGBA), np.rint(colours * share + 255 * (1 - share))),
        "la.png": (
            png(np.concatenate([levels, alpha], 2), GRAY_ALPHA),
            np.rint(levels * share + 255 * (1 - share)).repeat(3, 2),
        ),
        "cmyk.tif": (
            saved(Image.frombytes("CMYK", (5, 6), inks.tobytes()), "TIFF"),
            (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255,
        ),
        "turned.png": (saved(colours, exif=turned), None),
        "turned back.png": (saved(colours.transpose(1, 0, 2)[::-1], exif=turned), colours),
        "frames.gif": (saved(Image.fromarray(levels[:, :, 0]), "GIF"), levels.repeat(3, 2)),
        "key.png": (
            png(colours, RGB, chunks={b"tRNS": colours[0, 0].astype(">u2").tobytes()}),
            np.where((colours == colours[0, 0]).all(2, keepdims=True), 255, colours),
        ),
    }
    for name, (data, _) in expected.items():
        write(tmp_path / "photos" / "cat" / name, data)

    dataset, _, report = ingested(tmp_path, tmp_path / "photos", clean=(DropOddSizes(min_share=0.6),))
    found = by_source(dataset.snapshot(), "image")

    assert rejects(tmp_path).keys() == {"cat/turned.png"}  # upright, it is six wide and five high
    assert found.keys() == {f"cat/{name}" for name, (_, pixels) in expected.items() if pixels is not None}
    for source, pixels in found.items():
        np.testing.assert_allclose(pixels.astype(float), expected[source[4:]][1], atol=1, err_msg=source)
    assert set(report.notes) >= {"1 × 16 bits scaled to 8", "1 × CMYK converted", "3 × transparency laid over white"}


def test_names_of_every_sort_come_in_and_are_told_apart(tmp_path: Path) -> None:
    names = ["sp ace.png", "new\nline.png", "ünï 日本.png", "same.png"]
    for number, name in enumerate(names):
        write(tmp_path / "photos" / "a class" / name, noise(6, 5, seed=number))
    write(tmp_path / "photos" / "dog" / "same.png", noise(6, 5, seed=10))
    odd = os.fsencode(tmp_path / "photos" / "dog") + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).write_bytes(saved(noise(6, 5, seed=11)))

    found = by_source(ingested(tmp_path, tmp_path / "photos", split=ALL_TRAIN)[0].snapshot(), "image")

    assert found.keys() == {*(f"a class/{name}" for name in names), "dog/same.png", "dog/\\xff\\xfe.png"}
    np.testing.assert_array_equal(found["a class/same.png"], noise(6, 5, seed=3))
    np.testing.assert_array_equal(found["dog/same.png"], noise(6, 5, seed=10))
    np.testing.assert_array_equal(found["dog/\\xff\\xfe.png"], noise(6, 5, seed=11))


# What is left out or refused ---------------------------------------------------------------------------------------


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()

    with pytest.raises(NothingToIngest, match="no such file is in"):
        ingested(tmp_path, tmp_path / "photos")
    assert_nothing_came_in(tmp_path)


def test_a_picture_in_two_classes_is_noted_in_the_source_and_against_the_dataset(tmp_path: Path, photos: Path) -> None:
    cats = sorted((photos / "cat").iterdir())
    shutil.copy(cats[3], photos / "dog" / "same.png")
    _, _, report = ingested(tmp_path, photos, clean=CLEAN)
    assert any(
        note.startswith(f"1 × the same picture in two classes, e.g. dog/same.png: it is cat/{cats[3].name} too")
        for note in report.notes
    )

    shutil.move(cats[0], photos / "dog" / "moved.png")
    _, _, report = ingested(tmp_path, photos, clean=CLEAN)
    assert any("2 × the same picture in two classes" in note and "as 'cat'" in note for note in report.notes)


def test_a_dataset_whose_columns_were_changed_takes_no_more_pictures_and_says_why(tmp_path: Path, photos: Path) -> None:
    dataset, _, _ = ingested(tmp_path, photos)
    rename_columns(dataset, {"label": "species"}, of=dataset.snapshot())
    write(photos / "cat" / "new.png", noise(6, 5, seed=999))

    with pytest.raises(
        DataError, match=r"brings the columns \['image', 'label', .* flowers@2 has \['image', 'species'"
    ):
        ingested(tmp_path, photos)
    assert dataset.snapshots() == [1, 2]


def test_pictures_come_into_a_dataset_whose_labels_were_corrected(tmp_path: Path, photos: Path) -> None:
    dataset, first, _ = ingested(tmp_path, photos)
    label = dataset.snapshot().column("label")
    write_column(dataset, label, lambda rows: 1 - rows["label"], inputs=["label"], of=dataset.snapshot())
    write(photos / "cat" / "new.png", noise(6, 5, seed=999))

    _, grown, report = ingested(tmp_path, photos)

    assert (grown.number, grown.rows, report.kept, report.already_present) == (3, first.rows + 1, 1, 20)
    labels = by_source(dataset.snapshot(), "label")
    assert labels.pop("cat/new.png") == 0
    assert labels == {source: int(source.startswith("cat")) for source in labels}


def test_one_class_comes_in_with_a_note(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", {"cat": 5})

    _, _, report = ingested(tmp_path, tmp_path / "photos")

    assert any("only one class, 'cat'; a classifier needs at least two" in note for note in report.notes)


def test_a_class_with_one_picture_is_refused_with_its_name(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", {"cat": 5, "dog": 1})

    with pytest.raises(DataError, match=r"class 'dog' has 1 in all; add rows to it, remove it, or split into"):
        ingested(tmp_path, tmp_path / "photos")
    assert_nothing_came_in(tmp_path)


BAD = {
    "renamed.png": (b"this is text", "not a readable picture"),
    "empty.png": (b"", "it is empty"),
    "cut.jpg": (saved(noise(40, 40), "JPEG")[:900], "not a readable picture"),
    "huge.png": (huge_png(12_000), "at most 50,000,000 pixels"),
    "floats.tif": (saved(Image.fromarray(np.ones((6, 5), np.float32)), "TIFF"), "mode F"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_decode_is_dropped_with_the_reason_or_stops_the_ingest(
    tmp_path: Path, photos: Path, name: str
) -> None:
    data, reason = BAD[name]
    write(photos / "dog" / name, data)

    with pytest.raises(DataError, match=rf"dog/{name}: .*drop such files with clean=\[mms\.drop_unreadable\(\)\]"):
        ingested(tmp_path, photos)
    assert_nothing_came_in(tmp_path)

    dataset, _, report = ingested(tmp_path, photos, clean=CLEAN)
    assert dataset.snapshot().rows == 20
    assert report.steps[0].dropped == 1
    assert report.steps[0].examples[0].source == f"dog/{name}"
    assert reason in rejects(tmp_path)[f"dog/{name}"]


def test_a_file_that_may_not_be_read_is_dropped_with_the_reason(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "003.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    dataset, _, _ = ingested(tmp_path, photos, clean=CLEAN)

    assert dataset.snapshot().rows == 18
    assert rejects(tmp_path) == dict.fromkeys(
        ("cat/003.png", "dog/003.png"), "the file cannot be read: Permission denied"
    )


def test_where_no_file_is_usable_the_reasons_are_told(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "cat" / "1.png", b"text")
    write(tmp_path / "photos" / "cat" / "2.png", b"")

    with pytest.raises(NothingToIngest, match=r"all 2 were left out: cat/1\.png: .*; cat/2\.png: "):
        ingested(tmp_path, tmp_path / "photos", clean=CLEAN)
    assert_nothing_came_in(tmp_path)


def test_links_in_circles_broken_ones_and_pipes_are_left_out_and_the_rest_comes_in(
    tmp_path: Path, photos: Path
) -> None:
    (photos / "cat" / "loop").symlink_to("..")
    (photos / "dog" / "broken.png").symlink_to("absent.png")
    (photos / "dog" / "itself.png").symlink_to("itself.png")
    os.mkfifo(photos / "dog" / "pipe.png")

    dataset, _, report = ingested(tmp_path, photos)

    assert dataset.snapshot().rows == 20
    assert rejects(tmp_path).keys() == {"cat/loop", "dog/broken.png", "dog/itself.png", "dog/pipe.png"}
    assert any("4 × left out" in note for note in report.notes)


def change(path: Path) -> None:
    path.write_bytes(saved(noise(6, 5, seed=77)))


@pytest.mark.parametrize("harm", [change, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_changes_while_it_is_ingested_stops_the_ingest_and_leaves_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    place = module.place

    def placed_and_harmed(*arguments: Any, **named: Any) -> Any:  # it comes between the two passes
        harm(photos / "dog" / "005.png")
        return place(*arguments, **named)

    monkeypatch.setattr(module, "place", placed_and_harmed)

    with pytest.raises(DataError, match=r"dog/005\.png .*run the ingest again"):
        ingested(tmp_path, photos)
    assert_nothing_came_in(tmp_path)


# Ingesting again ---------------------------------------------------------------------------------------------------


def test_the_same_folder_again_adds_nothing_and_is_recorded(tmp_path: Path, photos: Path) -> None:
    _, first, _ = ingested(tmp_path, photos, clean=CLEAN)
    dataset, second, report = ingested(tmp_path, photos, clean=CLEAN)

    assert (first.number, second.number) == (1, 2)
    assert second.parts == first.parts
    assert second.splits == first.splits
    assert (report.found, report.kept, report.already_present) == (20, 0, 20)
    assert dataset.snapshot().rows == 20


def test_a_grown_folder_adds_what_grew_and_old_rows_stay_where_they_are(tmp_path: Path, photos: Path) -> None:
    dataset, first, _ = ingested(tmp_path, photos)
    before = split_by_id(dataset.snapshot())
    write_classes(photos / "..", {"photos/cat": 30}, seed=50_000)  # replaces the ten cats, and brings twenty more
    write(photos / "eel" / "1.png", noise(6, 5, seed=90_001))
    write(photos / "eel" / "2.png", noise(6, 5, seed=90_002))
    write(photos / "eel" / "3.png", noise(6, 5, seed=90_003))

    _, second, report = ingested(tmp_path, photos)
    snapshot = dataset.snapshot()

    assert (report.kept, report.already_present) == (33, 10)
    assert second.parts[:1] == first.parts
    assert snapshot.rows == 53
    after = split_by_id(snapshot)
    assert {content: after[content] for content in before} == before
    assert snapshot.column("label").labels == ("cat", "dog", "eel")
    assert second.statistics == {"classes": {"cat": 40, "dog": 10, "eel": 3}}
    labels, splits = snapshot.values("label"), snapshot.values("split")
    for code, (train, val, test) in enumerate([(32, 4, 4), (8, 1, 1), (1, 1, 1)]):
        assert np.bincount(splits[labels == code], minlength=3).tolist() == [train, val, test]
    assert dict(dataset.record(1)) == dict(first)


def test_a_class_that_sorts_before_the_old_ones_does_not_change_their_codes(tmp_path: Path, photos: Path) -> None:
    dataset, _, _ = ingested(tmp_path, photos)
    write_classes(tmp_path / "more", {"ant": 3, "dog": 3}, seed=9_000)

    ingested(tmp_path, tmp_path / "more")
    snapshot = dataset.snapshot()

    assert snapshot.column("label").labels == ("cat", "dog", "ant")
    assert np.bincount(snapshot.values("label")).tolist() == [10, 13, 3]
    assert dataset.snapshot(1).column("label").labels == ("cat", "dog")


def test_where_a_picture_goes_depends_on_its_content_only(tmp_path: Path, photos: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    shuffled = tmp_path / "shuffled"
    order = np.random.default_rng(0).permutation(20)
    for number, path in zip(order, sorted(photos.glob("*/*")), strict=True):
        target = shuffled / path.parent.name / f"{number:02d}-renamed.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    one, two = (ingested(tmp_path / name, folder)[0] for name, folder in (("one", photos), ("two", shuffled)))

    assert split_by_id(two.snapshot()) == split_by_id(one.snapshot())


def test_copies_are_dropped_within_a_folder_and_across_ingests(tmp_path: Path, photos: Path) -> None:
    shutil.copyfile(photos / "cat" / "000.png", photos / "dog" / "copy.png")

    dataset, _, report = ingested(tmp_path, photos, clean=CLEAN)
    assert [step.dropped for step in report.steps] == [0, 1, 0]
    assert rejects(tmp_path) == {"dog/copy.png": "the same bytes as cat/000.png"}

    more = tmp_path / "more"
    shutil.copytree(photos / "cat", more / "other name")
    write(more / "other name" / "new.png", noise(6, 5, seed=4242))
    _, _, report = ingested(tmp_path, more, clean=CLEAN, split=ALL_TRAIN)
    assert dataset.snapshot().rows == 21
    assert report.steps[1].dropped == 10
    assert "in the dataset already" in rejects(tmp_path)["other name/000.png"]


def test_pictures_of_another_size_than_the_dataset_are_refused_or_dropped(tmp_path: Path, photos: Path) -> None:
    dataset, _, _ = ingested(tmp_path, photos)
    write(photos / "cat" / "odd.png", noise(7, 7))

    with pytest.raises(DataError, match=r"those in the dataset, 5×6; 1 do not, e\.g\. cat/odd\.png; drop them"):
        ingested(tmp_path, photos)
    assert dataset.snapshots() == [1]
    ingested(tmp_path, photos, clean=CLEAN)
    assert dataset.snapshot().rows == 20
    assert "7×7" in rejects(tmp_path)["cat/odd.png"]


def test_colours_that_a_grey_dataset_cannot_keep_are_told(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "photos" / "cat" / f"{number}.png", noise(6, 12, 1, seed=number))
    ingested(tmp_path, tmp_path / "photos")
    for number in range(3, 5):
        write(tmp_path / "photos" / "cat" / f"{number}.png", noise(6, 12, 3, seed=number))

    with pytest.raises(DataError, match=r"it holds 'gray', asked for is 'rgb'; leave color= out, or ingest"):
        ingested(tmp_path, tmp_path / "photos", color="rgb")
    dataset, _, report = ingested(tmp_path, tmp_path / "photos")

    assert "2 × colours turned into grey" in report.notes
    assert dataset.snapshot().values("image").shape == (5, 6, 12, 1)


# Others at the same time -------------------------------------------------------------------------------------------


def test_an_ingest_that_another_one_overtook_looks_again_and_loses_and_doubles_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingested(tmp_path, photos)
    write_classes(tmp_path / "more", {"ant": 5, "cat": 5}, seed=7_000)
    write_classes(tmp_path / "overtaking", {"bee": 5, "cat": 5}, seed=80_000)
    shutil.copytree(tmp_path / "more" / "ant", tmp_path / "overtaking" / "ant")  # both bring the same ants
    commit = Dataset.commit

    def overtaken(dataset: Dataset, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Dataset, "commit", commit)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "flowers").symlink_to(tmp_path / "flowers")
        ingested(tmp_path / "elsewhere", tmp_path / "overtaking")
        return commit(dataset, *arguments, **named)

    monkeypatch.setattr(Dataset, "commit", overtaken)
    dataset, record, report = ingested(tmp_path, tmp_path / "more")
    snapshot = dataset.snapshot()

    assert record.number == 3
    assert (report.kept, report.already_present) == (5, 5)
    assert len(set(sources(snapshot))) == len(sources(snapshot)) - 10  # two folders bring a cat of each name
    assert len({row.tobytes() for row in snapshot.values("id")}) == snapshot.rows == 40
    assert snapshot.column("label").labels == ("cat", "dog", "ant", "bee")
    assert {label: int(count) for label, count in record.statistics["classes"].items()} == {
        "cat": 20,
        "dog": 10,
        "ant": 5,
        "bee": 5,
    }
    assert len(list((dataset.store.folder / "parts").iterdir())) == 3  # the part that lost is gone


def test_an_ingest_that_is_overtaken_again_and_again_gives_up_and_leaves_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _, _ = ingested(tmp_path, photos)
    write(photos / "cat" / "new.png", noise(6, 5, seed=1234))
    commit, tried = Dataset.commit, []

    def overtaken(dataset: Dataset, change: Addition, **named: Any) -> Any:
        tried.append(1)
        commit(dataset, Addition(parts=(), columns=change.columns), base=dataset.record(), rebase=True)
        return commit(dataset, change, **named)

    monkeypatch.setattr(Dataset, "commit", overtaken)
    with pytest.raises(SnapshotConflict):
        ingested(tmp_path, photos)

    assert len(tried) == 5
    assert dataset.record().rows == 20
    assert len(list((dataset.store.folder / "parts").iterdir())) == 1
    assert not list((dataset.store.folder / "writing").iterdir())


def test_a_killed_ingest_goes_on_after_the_parts_it_had_sealed(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bring, "PART_BYTES", 1)  # a part a batch
    monkeypatch.setattr(module, "_WINDOW", 4)
    seal, brought = Writing._seal, []

    def killed(writing: Writing, written: Any) -> None:
        if written.key.startswith(f"{12:012}-"):
            raise KeyboardInterrupt  # which nobody handles, like a kill
        seal(writing, written)

    monkeypatch.setattr(Writing, "_seal", killed)
    with pytest.raises(KeyboardInterrupt):
        ingested(tmp_path, photos)
    monkeypatch.setattr(Writing, "_seal", seal)
    decode = image.decode
    monkeypatch.setattr(image, "decode", lambda data, **named: brought.append(1) or decode(data, **named))
    dataset, record, _ = ingested(tmp_path, photos)

    assert len(brought) == 20 - 3 * 4
    assert (record.number, record.rows, len(record.parts)) == (1, 20, 5)
    straight, _, _ = ingested(tmp_path / "straight", photos)
    for name in ("image", "label", "id", "split"):
        np.testing.assert_array_equal(dataset.snapshot().values(name), straight.snapshot().values(name))
    assert record.splits == straight.record().splits
    assert record.statistics == straight.record().statistics
    assert not list((dataset.store.folder / "writing").iterdir())


def test_rows_that_were_chosen_before_somebody_committed_are_not_brought_in_behind(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = bring.begin

    def overtaken(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(bring, "begin", begin)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "flowers").symlink_to(tmp_path / "flowers")
        ingested(tmp_path / "elsewhere", photos)
        return begin(*arguments, **named)

    monkeypatch.setattr(bring, "begin", overtaken)
    _, record, report = ingested(tmp_path, photos)
    assert (record.rows, report.already_present) == (20, 20)


@pytest.mark.parametrize("other", ["finishes", "gives up"])
def test_the_same_ingest_twice_at_once_brings_each_row_once(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(bring, "PART_BYTES", 1)
    monkeypatch.setattr(module, "_WINDOW", 4)
    seal, commit, seen = Writing._seal, Writing.commit, []

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("gone")

    def beside(writing: Writing, written: Any) -> None:
        if not seen:
            seen.append(written.key)
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "flowers").symlink_to(tmp_path / "flowers")
            monkeypatch.setattr(Writing, "commit", commit if other == "finishes" else fails)
            with contextlib.suppress(OSError):
                ingested(tmp_path / "elsewhere", photos)
            monkeypatch.setattr(Writing, "commit", commit)
        seal(writing, written)

    monkeypatch.setattr(Writing, "_seal", beside)
    dataset, record, _ = ingested(tmp_path, photos)
    assert record.rows == 20
    assert len({row.tobytes() for row in dataset.snapshot().values("id")}) == 20
    assert dataset.snapshot().verify() > 0


def test_parts_of_a_killed_ingest_of_something_else_are_not_taken(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bring, "PART_BYTES", 1)
    monkeypatch.setattr(module, "_WINDOW", 4)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for change in (
        lambda: write(photos / "cat" / "00.png", noise(6, 5, seed=4321)),  # another picture of the same name
        lambda: (photos / "dog").rename(photos / "wolf"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "commit", killed)
            with pytest.raises(KeyboardInterrupt):
                ingested(tmp_path, photos)
        change()
    dataset, record, _ = ingested(tmp_path, photos, split=ALL_TRAIN)
    straight, _, _ = ingested(tmp_path / "straight", photos, split=ALL_TRAIN)
    for name in ("image", "label", "id", "split"):
        np.testing.assert_array_equal(dataset.snapshot().values(name), straight.snapshot().values(name))
    assert record.column("label").labels == ("cat", "wolf")
    assert len(list((dataset.store.folder / "writing").iterdir())) == 2  # garbage in two days


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, lambda: OSError(errno.ENOSPC, "full")])
def test_an_error_after_the_commit_does_not_take_the_committed_part_away(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    commit = Dataset.commit

    def interrupted(dataset: Dataset, *arguments: Any, **named: Any) -> Any:
        commit(dataset, *arguments, **named)
        raise error()

    monkeypatch.setattr(Dataset, "commit", interrupted)
    with pytest.raises((KeyboardInterrupt, MemoryError, OSError)):
        ingested(tmp_path, photos)
    monkeypatch.setattr(Dataset, "commit", commit)

    dataset, _, report = ingested(tmp_path, photos)
    assert dataset.snapshot().verify() > 0
    assert report.already_present == 20


# Disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (errno.ENOSPC, StorageFull, "Free space there"),
        (errno.EDQUOT, StorageFull, "Free space there"),
        (errno.EROFS, NotWritable, "another workspace folder"),
        (errno.EACCES, NotWritable, "give this user write permission"),
    ],
)
@pytest.mark.parametrize(
    "owner", [(files, "fsync_folder"), (files, "fsync_tree"), (os, "link"), (parts, "_chunk_file")]
)
def test_a_disk_that_refuses_in_the_middle_leaves_no_snapshot_and_says_what_to_do(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: tuple[Any, str],
    code: int,
    kind: type[MmsError],
    advice: str,
) -> None:
    dataset, _, _ = ingested(tmp_path, photos)
    write(photos / "cat" / "new.png", noise(6, 5, seed=1234))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(*owner, refuse)
        with pytest.raises(kind) as caught:
            ingested(tmp_path, photos)

    assert os.strerror(code) in caught.value.message
    assert advice in caught.value.message
    assert dataset.snapshots() == [1]
    assert dataset.snapshot().verify() > 0
    assert len(list((dataset.store.folder / "parts").iterdir())) == 1
    assert ingested(tmp_path, photos)[1].number == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 600 KiB."""
    if shutil.which("mount") is None:
        pytest.skip("needs the program `mount`, to have a disk that gets full")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip(f"needs the right to mount a tmpfs, to have a disk that gets full ({told.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("before", [0, 1])
def test_a_disk_that_gets_full_keeps_what_was_committed_and_takes_more_once_there_is_room(
    tmp_path: Path, small_disk: Path, before: int
) -> None:
    write_classes(tmp_path / "few", {"cat": 3, "dog": 3}, size=(96, 96))
    write_classes(tmp_path / "many", {"cat": 20, "dog": 20}, size=(96, 96), seed=5_000)  # a megabyte as pixels
    for _ in range(before):
        ingested(small_disk, tmp_path / "few")

    with pytest.raises(StorageFull, match=r"no space left while writing .*Free space there"):
        ingested(small_disk, tmp_path / "many")

    dataset = Dataset.open(LocalStore(small_disk / "flowers"), "flowers")
    assert len(dataset.snapshots()) == len(list((dataset.store.folder / "parts").iterdir())) == before
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    dataset, record, _ = ingested(small_disk, tmp_path / "many")
    assert record.number == before + 1
    assert dataset.snapshot().rows == 40 + 6 * before
    assert dataset.snapshot().verify() > 0


def test_a_place_that_is_read_only_is_told_as_such(tmp_path: Path, photos: Path, small_disk: Path) -> None:
    dataset, _, _ = ingested(small_disk, photos)
    write(photos / "cat" / "new.png", noise(6, 5, seed=1234))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.raises(NotWritable, match=r"Read-only file system; give this user write permission"):
        ingested(small_disk, photos)

    assert dataset.snapshots() == [1]
    assert dataset.snapshot().verify() > 0


def test_an_addition_without_parts_is_a_snapshot_of_the_same_rows(tmp_path: Path, photos: Path) -> None:
    dataset, record, _ = ingested(tmp_path, photos)

    again = dataset.commit(Addition(parts=(), columns=record.columns), base=record, rebase=False)

    np.testing.assert_array_equal(dataset.snapshot(again.number).values("image"), dataset.snapshot(1).values("image"))


def test_decoding_an_encoded_row_gives_what_decoding_the_file_gives(tmp_path: Path) -> None:
    for number, size in enumerate([(6, 5), (5, 6), (9, 9)]):
        write(tmp_path / "photos" / "cat" / f"{number}.png", noise(*size, seed=number))

    snapshot = ingested(tmp_path, tmp_path / "photos")[0].snapshot()

    for source, data in by_source(snapshot, "image").items():
        pixels = np.asarray(Image.open(tmp_path / "photos" / source))
        np.testing.assert_array_equal(image.decode(data, color="rgb"), pixels)
