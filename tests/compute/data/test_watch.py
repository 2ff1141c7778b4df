"""Watching a folder: whole files come in once, files on their way do not, and a round that fails is tried again."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.watch import Folder, Pace, Settling, watch
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.sources import CSV, JSONL, SQL, TFDS, AudioFolder, Files, ImageFolder, VideoFolder


def test_a_file_has_settled_once_size_and_time_stayed_for_so_long() -> None:
    one, two = Path("one"), Path("two")
    settling = Settling(settle_s=5)
    assert settling.look({one: (10, 1)}, at=100) == set()
    assert settling.look({one: (10, 1), two: (0, 1)}, at=104.9) == set()
    assert settling.look({one: (10, 1), two: (7, 1)}, at=105) == {one}  # two has grown
    assert settling.look({one: (10, 1), two: (7, 2)}, at=110) == {one}  # and was written to
    assert settling.look({one: (10, 1), two: (7, 2)}, at=115) == {one, two}
    assert settling.look({two: (7, 2)}, at=116) == {two}
    assert settling.look({one: (10, 1), two: (7, 2)}, at=117) == {two}  # one came again


def test_times_of_files_in_the_future_or_going_back_do_not_matter() -> None:
    one = Path("one")
    settling = Settling(settle_s=5)
    for at, time in ((0, 10**30), (1, 5), (2, -7)):
        assert settling.look({one: (1, time)}, at=at) == set()
    assert settling.look({one: (1, -7)}, at=7) == {one}


def test_the_pause_doubles_with_each_failure_up_to_five_minutes() -> None:
    pace = Pace(every_s=2, settle_s=0)
    assert [pace.pause_s(failures) for failures in (0, 1, 2, 7, 8, 10**9)] == [2, 4, 8, 256, 300, 300]
    assert Pace(every_s=3600).pause_s(5) == 3600
    for wrong in ({"every_s": 0}, {"every_s": float("nan")}, {"every_s": float("inf")}, {"settle_s": -1}):
        with pytest.raises(InvalidRequest, match="a folder is looked at every so many seconds"):
            Pace(**wrong)


@pytest.fixture
def opened(tmp_path):
    """Brings in nothing, and notes which files each round would have."""

    class Bring:
        def __init__(self):
            self.rounds = []
            self.meanwhile = lambda: None

        def __call__(self, open_):
            found = open_(tmp_path)
            if isinstance(found, Table):
                self.rounds.append(found.rows)
            else:
                self.rounds.append(sorted(entry.source for entry in found.entries))
            self.meanwhile()
            return "brought"

    return Bring()


def _put(folder: Path, *names: str, data: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data)


def test_a_round_brings_what_is_new_since_the_last(tmp_path, opened) -> None:
    source = tmp_path / "in"
    source.mkdir()
    folder = Folder(ImageFolder(source), settle_s=0)
    assert folder.round(opened) is None
    _put(source, "a/1", "a/2")
    assert folder.round(opened) == "brought"
    assert folder.round(opened) is None
    _put(source, "a/2", data="another")
    _put(source, "b/3")
    folder.round(opened)
    (source / "a/1").unlink()
    assert folder.round(opened) is None
    _put(source, "a/1")
    folder.round(opened)
    assert opened.rounds == [["a/1", "a/2"], ["a/2", "b/3"], ["a/1"]]


def test_files_that_are_on_their_way_by_name_are_left(tmp_path, opened) -> None:
    source = tmp_path / "in"
    _put(source, "a/.1.png.x8Yq", "a/2.png.part", "a/3.PNG.crdownload", "a/4.tmp", "a/5.partial.png")
    Folder(ImageFolder(source), settle_s=0).round(opened)
    assert opened.rounds == [["a/5.partial.png"]]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, opened) -> None:
    source = tmp_path / "in"
    _put(source, "a/1", "a/2")
    folder = Folder(AudioFolder(source), settle_s=0)
    opened.meanwhile = lambda: _put(source, "a/2", data="longer")
    folder.round(opened)
    opened.meanwhile = lambda: None
    folder.round(opened)
    assert opened.rounds == [["a/1", "a/2"], ["a/2"]]


def test_a_round_that_failed_brings_the_same_again(tmp_path, opened) -> None:
    source = tmp_path / "in"
    _put(source, "a/1")
    folder = Folder(ImageFolder(source), settle_s=0)

    def fail():
        raise DataError("it does not fit")

    opened.meanwhile = fail
    with pytest.raises(DataError):
        folder.round(opened)
    opened.meanwhile = lambda: None
    folder.round(opened)
    assert opened.rounds == [["a/1"], ["a/1"]]


def test_of_a_table_all_files_that_have_settled_are_opened(tmp_path, opened) -> None:
    source = tmp_path / "in"
    _put(source, "1.csv", "2.csv", data="x\n1\n")
    folder = Folder(CSV(source), settle_s=0)
    folder.round(opened)
    _put(source, "3.csv", data="x\n2.5\n")
    _put(source, "4.txt")
    folder.round(opened)
    assert folder.round(opened) is None
    assert opened.rounds == [2, 3]


@pytest.mark.parametrize("source", [lambda folder: VideoFolder(folder), lambda folder: Files(folder / "**" / "*.txt")])
def test_clips_and_files_by_a_pattern_are_watched(tmp_path, opened, source) -> None:
    _put(tmp_path / "in", "a/1.txt")
    folder = Folder(source(tmp_path / "in"), settle_s=0)
    folder.round(opened)
    _put(tmp_path / "in", "a/2.txt")
    folder.round(opened)
    assert [[Path(each).name for each in found] for found in opened.rounds] == [["1.txt"], ["2.txt"]]


@pytest.mark.parametrize("source", [SQL("sqlite:///x.db", "select 1"), TFDS("x")])
def test_what_is_no_folder_of_files_is_refused(source) -> None:
    with pytest.raises(InvalidRequest, match="what is watched is a folder of pictures or recordings"):
        Folder(source, settle_s=0).files()


def _watched(source, bring, *, rounds: int) -> list[str]:
    said, stop = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == rounds:
            stop.set()

    watch(source, bring, pace=Pace(every_s=0.01, settle_s=0), say=say, stop=stop)
    return said


def test_a_round_that_fails_is_told_and_tried_again(tmp_path, opened) -> None:
    source = tmp_path / "in"
    _put(source, "a/1")
    errors = iter([DataError("a picture does not fit"), OSError(28, "No space left on device")])

    def fail():
        if (error := next(errors, None)) is not None:
            raise error

    opened.meanwhile = fail
    assert _watched(ImageFolder(source), opened, rounds=3) == [
        "nothing came in this time: a picture does not fit; it is tried again in 0.02 s",
        "nothing came in this time: [Errno 28] No space left on device; it is tried again in 0.04 s",
        "brought",
    ]


def test_a_folder_without_a_file_that_can_come_in_says_what_it_waits_for(tmp_path, opened) -> None:
    source = tmp_path / "in"
    source.mkdir()
    said, stop = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 1:
            _put(source, "beside.png")
        if len(said) == 2:
            _put(source, "a/1.png")
        if len(said) == 3:
            stop.set()

    watch(ImageFolder(source), opened, pace=Pace(every_s=0.01, settle_s=0), say=say, stop=stop)
    rule = "waiting for files: an image folder holds one sub-folder of pictures for each class; no such file is in"
    assert said[0] == f"{rule} {source}"
    assert said[1].startswith(f"{rule} {source}; 1 left out, e.g. beside.png: it lies beside the class folders")
    assert said[2] == "brought"


def test_a_folder_that_goes_away_for_a_while_is_waited_for(tmp_path, opened) -> None:
    source, away = tmp_path / "in", tmp_path / "away"
    _put(source, "a/1")
    said = []

    def bring(open_):
        told = opened(open_)
        shutil.move(source, away)
        return told

    stop = threading.Event()

    def say(line):
        said.append(line)
        if line.startswith("nothing") and away.exists():
            shutil.move(away, source)
            os.utime(source / "a/1", (1, 1))  # so that there is something to bring
        if said.count("brought") == 2:
            stop.set()

    watch(ImageFolder(source), bring, pace=Pace(every_s=0.01, settle_s=0), say=say, stop=stop)
    assert said[0] == said[-1] == "brought"
    assert said[1].startswith(f"nothing came in this time: an image folder is a folder; {source} is not there")


def test_a_folder_that_was_never_there_and_what_no_waiting_mends_end_it(tmp_path, opened) -> None:
    with pytest.raises(InvalidRequest, match="is not there; check the path"):
        _watched(ImageFolder(tmp_path / "none"), opened, rounds=1)
    _put(tmp_path / "in", "a.jsonl", data="{}\n")

    def fail():
        raise InvalidRequest("a step is not for it")

    opened.meanwhile = fail
    with pytest.raises(InvalidRequest, match="a step is not for it"):
        _watched(JSONL(tmp_path / "in"), opened, rounds=1)
