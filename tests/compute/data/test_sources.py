from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.compute.data.sources.folders import list_folder, printable
from mms_sdk.errors import InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import ImageFolder


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def listed(root: Path, *, labelled: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """Labels by source, and reasons by what was left out."""
    entries, rejects = list_folder(ImageFolder(root), labelled=labelled)
    assert [entry.source for entry in entries] == sorted(entry.source for entry in entries)
    return {entry.source: entry.label for entry in entries}, {reject.source: reject.reason for reject in rejects}


def test_the_sub_folder_is_the_class_and_deeper_folders_belong_to_it(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "cat/deep/er/2.png", "dog/1.png")

    assert listed(tmp_path) == ({"cat/1.png": "cat", "cat/deep/er/2.png": "cat", "dog/1.png": "dog"}, {})


def test_files_of_one_name_in_two_classes_are_two(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "dog/1.png")

    assert listed(tmp_path)[0] == {"cat/1.png": "cat", "dog/1.png": "dog"}


def test_a_file_beside_the_class_folders_is_left_out_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "readme.txt")

    assert listed(tmp_path) == ({"cat/1.png": "cat"}, {"readme.txt": "it lies beside the class folders, not in one"})


def test_without_classes_every_file_counts(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "a/2.png")

    assert listed(tmp_path, labelled=False) == ({"1.png": "", "a/2.png": ""}, {})


def test_what_operating_systems_and_notebooks_put_into_folders_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/._1.png")
    make(tmp_path, "__MACOSX/cat/1.png", ".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png")

    assert listed(tmp_path) == ({"cat/1.png": "cat"}, {})


@pytest.mark.parametrize("names", [(), ("cat/.DS_Store",)])
def test_a_folder_without_a_file_has_nothing_to_ingest(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    (tmp_path / "empty class").mkdir()

    with pytest.raises(NothingToIngest, match="one sub-folder of pictures for each class; no such file is in"):
        list_folder(ImageFolder(tmp_path))


def test_a_folder_with_pictures_and_no_classes_is_told_what_was_left_out(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png")

    with pytest.raises(NothingToIngest, match=r"2 left out, e\.g\. 1\.png: it lies beside the class folders"):
        list_folder(ImageFolder(tmp_path))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "file")

    with pytest.raises(InvalidRequest, match=r"an image folder is a folder; .*file is a file; check the path"):
        list_folder(ImageFolder(tmp_path / "file"))
    with pytest.raises(InvalidRequest, match="is not there; check the path"):
        list_folder(ImageFolder(tmp_path / "absent"))


@pytest.mark.parametrize(
    "name", ["ü é.png", "new\nline.png", "tab\t.png", "日本語.png", "quo'te\".png", "a\\b.png", "-rf"]
)
def test_any_name_is_kept_and_leads_back_to_its_file(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"clässe/{name}")

    (entry,), _ = list_folder(ImageFolder(tmp_path))

    assert entry.source == f"clässe/{name}".replace("\\", "\\\\")
    assert entry.label == "clässe"
    assert entry.path.read_text() == f"clässe/{name}"


def test_names_that_are_not_utf_8_are_kept_apart_and_storable(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/cat"
    os.mkdir(folder)
    names = [b"\xff.png", b"\xfe.png", b"\\xff.png", b"ok.png"]
    for name in names:
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)

    entries, _ = list_folder(ImageFolder(tmp_path))

    assert len({entry.source for entry in entries}) == 4
    assert {entry.path.read_bytes() for entry in entries} == set(names)
    assert "cat/\\xff.png" in {entry.source for entry in entries}
    for entry in entries:
        entry.source.encode("utf-8")


@given(one=st.binary(min_size=1, max_size=6), other=st.binary(min_size=1, max_size=6))
def test_different_names_stay_different_and_are_text(one: bytes, other: bytes) -> None:
    said = [printable(os.fsdecode(name)) for name in (one, other)]

    assert (said[0] == said[1]) == (one == other)
    assert all(text.encode("utf-8") for text in said)


# Links ----------------------------------------------------------------------------------------------------------


def test_a_link_to_a_picture_is_that_picture(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/1.png", "photos/cat/0.png")
    (tmp_path / "photos" / "cat" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")

    entries, rejects = list_folder(ImageFolder(tmp_path / "photos"))

    assert [entry.path.read_text() for entry in entries] == ["photos/cat/0.png", "elsewhere/1.png"]
    assert rejects == []


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/1.png", "photos/cat/0.png")
    for name in ("dog", "eel"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere")

    found, left_out = listed(tmp_path / "photos")

    assert found == {"cat/0.png": "cat", "dog/1.png": "dog"}
    assert left_out == {"eel": "the folder was read already, under another name"}


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "../cat", "../dog", "/"])
def test_a_link_to_a_part_of_the_folder_or_to_one_around_it_is_left_out(tmp_path: Path, target: str) -> None:
    root = tmp_path / "a" / "photos"
    make(root, "cat/1.png", "dog/2.png")
    make(tmp_path, "a/private.png")
    (root / "cat" / "loop").symlink_to(target)

    found, left_out = listed(root)

    assert found == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert left_out == {"cat/loop": "the link leads to a part of this folder, or to one around it"}


@pytest.mark.parametrize("link", ["aaa", "zzz"])
def test_a_link_to_a_class_never_takes_its_pictures_away(tmp_path: Path, link: str) -> None:
    make(tmp_path, "roses/1.png")
    (tmp_path / link).symlink_to("roses")

    assert listed(tmp_path)[0] == {"roses/1.png": "roses"}


def test_links_that_lead_nowhere_or_in_a_circle_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "broken.png").symlink_to("absent.png")
    (tmp_path / "cat" / "itself.png").symlink_to("itself.png")
    (tmp_path / "cat" / "there.png").symlink_to("back.png")
    (tmp_path / "cat" / "back.png").symlink_to("there.png")

    found, left_out = listed(tmp_path)

    assert found == {"cat/1.png": "cat"}
    assert set(left_out) == {f"cat/{name}.png" for name in ("broken", "itself", "there", "back")}
    assert "broken link" in left_out["cat/broken.png"]


def test_what_is_neither_file_nor_folder_is_left_out_and_never_opened(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # opening it would wait for ever

    found, left_out = listed(tmp_path)

    assert found == {"cat/1.png": "cat"}
    assert "neither a file nor a folder" in left_out["cat/pipe.png"]


def test_a_folder_that_cannot_be_listed_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "cat/1.png", "dog/1.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    _, rejects = list_folder(ImageFolder(tmp_path))

    assert rejects == [Reject(source="dog", reason="the folder cannot be listed: Permission denied")]


def test_the_order_is_that_of_names_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"{label}/{number}.png" for label in "cab" for number in (3, 1, 2)))
    expected = listed(tmp_path)
    scandir = os.scandir

    monkeypatch.setattr(os, "scandir", lambda path: iter(sorted(scandir(path), key=lambda entry: entry.inode())[::-1]))

    assert listed(tmp_path) == expected
