"""What holds for every store: subclass `StoreConformance` and give it a store.

```python
class TestMyStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path):
        return MyStore(tmp_path)
```
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import pickle
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from mms_sdk.storage.stores.base import Store

_LARGE = bytes(range(256)) * 2**18  # 64 MiB: more than a store asks for or sends at a time
_CLOCKS_DIFFER_S = 3600.0


class StoreConformance:
    """Tests of the rules of `Store`, on an empty one that the fixture `store` gives."""

    def test_it_is_a_store(self, store: Store) -> None:
        """All calls are there."""
        assert isinstance(store, Store)

    @pytest.mark.parametrize("data", [b"", b"x", bytes(1000)], ids=["empty", "one", "zeros"])
    def test_what_was_written_is_read(self, store: Store, data: bytes) -> None:
        """By `create`, `replace` and `upload` alike."""
        store.create("a/created.json", data)
        store.replace("a/replaced.json", data)
        for key in ("a/created.json", "a/replaced.json"):
            assert store.read(key) == data
            assert store.stat(key).bytes == len(data)
            assert store.sha256(key) == hashlib.sha256(data).hexdigest()
            with store.open(key) as file:
                assert file.read() == data

    def test_a_large_file_is_copied_there_and_back(self, store: Store, tmp_path: Path) -> None:
        """In pieces, of which none is lost or comes twice."""
        source = tmp_path / "large"
        source.write_bytes(_LARGE)
        store.upload("deep/down/large", source)
        assert store.stat("deep/down/large").bytes == len(_LARGE)
        assert store.sha256("deep/down/large") == hashlib.sha256(_LARGE).hexdigest()
        with store.open("deep/down/large") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == _LARGE
        store.download("deep/down/large", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == _LARGE
        with pytest.raises(FileNotFoundError):
            store.download("deep/down/none", tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_a_file_is_created_once(self, store: Store) -> None:
        """And stays as it was."""
        store.create("a", b"first")
        with pytest.raises(FileExistsError):
            store.create("a", b"second")
        assert store.read("a") == b"first"
        store.delete("a")
        store.create("a", b"third")
        assert store.read("a") == b"third"

    def test_of_many_threads_that_create_a_file_one_does(self, store: Store) -> None:
        """And its bytes are there."""
        for turn in range(10):
            with ThreadPoolExecutor(16) as pool:
                won = list(pool.map(_won, [(store, f"race/{turn}", b"%d" % number) for number in range(16)]))
            assert won.count(True) == 1
            assert store.read(f"race/{turn}") == b"%d" % won.index(True)

    def test_of_many_processes_that_create_a_file_one_does(self, store: Store) -> None:
        """Each with a copy of the store that came by pickle."""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(4, mp_context=spawn) as pool:
            won = list(pool.map(_won_of, [(store, 25, b"%d" % number) for number in range(4)]))
        for turn, winners in enumerate(zip(*won, strict=True)):
            assert winners.count(True) == 1
            assert store.read(f"race/{turn}") == b"%d" % winners.index(True)

    def test_a_file_is_replaced(self, store: Store) -> None:
        """Whether it was there or not."""
        store.replace("a", b"first")
        store.replace("a", b"second, and longer")
        assert store.read("a") == b"second, and longer"

    def test_what_is_not_there_is_said_to_be_not_there(self, store: Store) -> None:
        """By every call that reads, and by none that removes or lists."""
        store.create("a/b", b"x")
        for key in ("b", "a/c", "c/d/e"):
            for call in (store.read, store.stat, store.sha256, store.open):
                with pytest.raises(FileNotFoundError):
                    call(key)
            store.delete(key)
        assert store.names("c") == [] == store.walk("c")

    def test_names_and_files_are_listed(self, store: Store) -> None:
        """Sorted, and none that only begins alike."""
        for key in ("a/b/2", "a/b/1", "a/bc/1", "ab", "a/c"):
            store.create(key, key.encode())
        assert store.names("") == ["a", "ab"]
        assert store.names("a") == ["b", "bc", "c"]
        assert _files(store, "a/b") == {"1": 5, "2": 5}
        assert _files(store, "") == {"a/b/1": 5, "a/b/2": 5, "a/bc/1": 6, "a/c": 3, "ab": 2}

    def test_more_names_than_one_answer_holds_are_listed(self, store: Store) -> None:
        """S3 lists a thousand at a time."""
        keys = [f"many/{number:04d}" for number in range(1100)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.replace(key, b""), keys))
        assert store.names("many") == [key.removeprefix("many/") for key in keys]
        assert len(_files(store, "")) == 1100
        store.remove("many", first="0000")
        assert store.walk("") == [] or set(_files(store, "")) == set()

    def test_a_store_below_is_the_same_place(self, store: Store) -> None:
        """And so is one that came by pickle."""
        below = store.below("a").below("b")
        below.create("c", b"x")
        assert store.read("a/b/c") == b"x"
        assert pickle.loads(pickle.dumps(below)).read("c") == b"x"
        assert below.names("") == ["c"]
        assert below.url.startswith(store.url)

    def test_a_draft_is_kept(self, store: Store) -> None:
        """With everything in it, under its name."""
        draft = store.draft("parts/1")
        assert not list(draft.iterdir())
        (draft / "data" / "c").mkdir(parents=True)
        (draft / "data" / "c" / "0").write_bytes(b"chunk")
        (draft / "MANIFEST.json").write_bytes(b"{}")
        store.keep(draft, "parts/1", last="MANIFEST.json")
        assert _files(store, "parts/1") == {"MANIFEST.json": 2, "data/c/0": 5}
        assert store.read("parts/1/data/c/0") == b"chunk"
        with store.open("parts/1/data/c/0") as file:
            assert file.read() == b"chunk"

    def test_a_copy_that_is_forgotten_is_fetched_anew(self, store: Store) -> None:
        """And where `open` gives the file itself, nothing is forgotten."""
        store.create("a/b", b"as written")
        with store.open("a/b") as file:
            opened = Path(f"/proc/self/fd/{file.fileno()}").resolve()
        if not store.local:
            opened.write_bytes(b"damaged")
        for key in ("b", "b", "none"):
            assert store.below("a").forget(key) is not store.local
        with store.open("a/b") as file:
            assert file.read() == b"as written"

    def test_a_folder_is_removed(self, store: Store) -> None:
        """With everything in it and nothing beside it."""
        for key in ("a/b/1", "a/b/deep/2", "a/bc"):
            store.create(key, b"x")
        with store.open("a/b/1") as file:
            store.remove("a/b", first="1")
            assert file.read() == b"x"  # whoever reads, reads on
        assert set(_files(store, "")) == {"a/bc"}
        with pytest.raises(FileNotFoundError):
            store.open("a/b/1")

    def test_a_file_says_when_it_was_written(self, store: Store) -> None:
        """By a clock that is about right."""
        store.create("a", b"x")
        assert abs(store.stat("a").modified - time.time()) < _CLOCKS_DIFFER_S
        assert [each.modified for each in store.walk("")] == [pytest.approx(store.stat("a").modified, abs=1)]

    def test_nothing_is_left_to_sweep_after_work_that_ended(self, store: Store) -> None:
        """And nothing of anybody's is swept."""
        store.create("a", b"x")
        store.replace("b", b"x")
        draft = store.draft("c")
        (draft / "last").write_bytes(b"x")
        store.keep(draft, "c", last="last")
        assert store.sweep(time.time() + _CLOCKS_DIFFER_S) == 0
        assert set(_files(store, "")) == {"a", "b", "c/last"}


def _files(store: Store, folder: str) -> dict[str, int]:
    return {each.key: each.bytes for each in store.walk(folder) if not each.key.endswith("/")}


def _won(asked: tuple[Store, str, bytes]) -> bool:
    store, key, data = asked
    try:
        store.create(key, data)
    except FileExistsError:
        return False
    return True


def _won_of(asked: tuple[Store, int, bytes]) -> list[bool]:
    store, turns, data = asked
    return [_won((store, f"race/{turn}", data)) for turn in range(turns)]
