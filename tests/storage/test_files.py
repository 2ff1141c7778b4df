from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mms_sdk.errors import NotWritable, StorageFull
from mms_sdk.storage import files

THREADS = 8


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_published_file_is_private_and_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    files.publish(tmp_path / "a.json", b"content")

    assert (tmp_path / "a.json").read_bytes() == b"content"
    assert mode(tmp_path / "a.json") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_of_many_that_publish_one_name_one_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    barrier = threading.Barrier(THREADS)

    def publish(number: int) -> bool:
        barrier.wait()
        try:
            files.publish(tmp_path / "a", bytes([number]) * 1000)
        except FileExistsError:
            return False
        return True

    for attempt in range(5):
        with ThreadPoolExecutor(THREADS) as pool:
            won = list(pool.map(publish, range(THREADS)))
        assert sum(won) == 1, attempt
        assert (tmp_path / "a").read_bytes() == bytes([won.index(True)]) * 1000
        (tmp_path / "a").unlink()
        assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_or_the_new_content_and_never_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "a"
    whole = {bytes([number]) * 10_000 for number in range(40)}
    files.replace(path, min(whole))
    seen: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for content in sorted(whole):
        files.replace(path, content)
    done.set()
    watcher.join()

    assert seen <= whole
    assert path.read_bytes() == max(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("create", [files.publish, files.replace])
@pytest.mark.parametrize("failing", ["fsync", "link", "replace"])
def test_a_write_that_fails_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: Callable[[Path, bytes], None], failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    needed = {files.publish: {"fsync", "link"}, files.replace: {"fsync", "replace"}}[create]
    if failing not in needed:
        create(tmp_path / "a", b"x")
        return

    with pytest.raises(StorageFull, match=r"no space left while writing .*Free space there"):
        create(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [files.publish, files.replace])
def test_bytes_are_on_disk_before_the_name_appears_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: Callable[[Path, bytes], None]
) -> None:
    told: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def seen_fsync(handle: int) -> None:
        told.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "bytes")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", lambda *names: (told.append("name"), link(*names)))
    monkeypatch.setattr(os, "replace", lambda *names: (told.append("name"), replace(*names)))

    create(tmp_path / "a", b"x")

    assert told == ["bytes", "name", "folder"]


def test_every_folder_that_is_made_is_private_and_folders_that_were_there_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)

    made = files.make_folder(tmp_path / "shared" / "a" / "b" / "c")

    assert [mode(folder) for folder in (made, made.parent, made.parents[1])] == [0o700] * 3
    assert mode(tmp_path / "shared") == 0o755
    assert files.make_folder(made) == made


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_as_such_with_the_next_step(code: int) -> None:
    with pytest.raises(StorageFull) as caught, files.writing(Path("there")):
        raise OSError(code, os.strerror(code))

    assert "there" in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "Free space" in caught.value.message


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP]
)
def test_a_place_that_cannot_be_written_is_told_as_such_with_the_next_step(code: int) -> None:
    with pytest.raises(NotWritable) as caught, files.writing(Path("there")):
        raise OSError(code, os.strerror(code))

    assert "there" in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "use another workspace folder" in caught.value.message


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(OSError, match="Input/output") as caught, files.writing(Path("there")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert type(caught.value) is OSError


def test_only_what_publishing_leaves_behind_is_taken_for_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(os, "link", killed)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(InterruptedError):
        files.publish(tmp_path / "workspace.json", b"x")

    (left,) = tmp_path.iterdir()
    assert files.is_draft(left)
    assert not any(files.is_draft(Path(name)) for name in ("workspace.json", ".hidden", "photos", ".git", ".a.1.b"))
