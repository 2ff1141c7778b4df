"""What is read from a store that is far, when this machine's copies of it, or the objects themselves, are damaged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_datasets import COLUMNS, IMAGE, SOURCE, add, content_of

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import parts
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Reader
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.remote import RemoteStore

FLIPS = 60
CONTENTS = (content_of(13, seed=1), content_of(9, seed=2))
Harm = Callable[[Path], object]


def of_profile(profile: str) -> tuple[Column, ...]:
    packed = (column.model_copy(update={"profile": profile}) for column in (IMAGE, SOURCE))
    image, source = packed
    return (image, COLUMNS[1], source, COLUMNS[3])


@pytest.fixture
def far(far_store: Store, many_chunks: None, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Two parts of many chunks, of which this machine has copies."""
    return filled(far_store, "raw")


def filled(store: Store, profile: str) -> Dataset:
    dataset = Dataset.create(store.below("flowers"), "flowers")
    for content in CONTENTS:
        add(dataset, content, columns=of_profile(profile))
    return dataset


def copies_of(dataset: Dataset) -> list[Path]:
    assert isinstance(dataset.store, RemoteStore)
    _, (_, copies, _, prefix) = dataset.store.__reduce__()
    return sorted(path for path in (copies / "files" / prefix / "parts").rglob("*") if path.is_file())


def read_right(snapshot: OpenSnapshot) -> None:
    """Every row of every column, and that each is as it was written."""
    everything = np.random.default_rng(0).permutation(snapshot.rows)
    for name in ("image", "label", "split"):
        expected = np.concatenate([content[name] for content in CONTENTS])
        np.testing.assert_array_equal(snapshot.gather(name, everything), expected[everything])
    sources = [source for content in CONTENTS for source in content["source"]]
    assert snapshot.gather("source", everything) == [sources[row] for row in everything]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("profile", ["raw", "blosc", "zstd"])
@pytest.mark.usefixtures("many_chunks")
def test_a_flipped_bit_in_a_copy_is_never_read_and_the_copy_is_made_anew(
    far_store: Store, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 5 * 144)
    dataset = filled(far_store, profile)
    read_right(dataset.snapshot())
    copies = copies_of(dataset)
    right = {path: path.read_bytes() for path in copies}
    rng = random.Random(0)
    for _ in range(FLIPS):
        path = rng.choices(copies, [len(right[path]) for path in copies])[0]
        # A shard ends with Zarr's index of it, which reading rows does not need.
        content = (
            len(right[path]) // 164 * 148 if path.match("image/c/*/0/0/0") and profile == "raw" else len(right[path])
        )
        flip(path, rng.randrange(8 * content))
        read_right(dataset.snapshot())
        assert path.name == "zarr.json" or path.read_bytes() == right[path]  # that of the group itself is not read
        path.write_bytes(right[path])
    print(f"{FLIPS} flipped bits in copies, {profile}: none read, each fetched anew")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
    ids=["vanished", "empty", "cut short", "zeros"],
)
@pytest.mark.parametrize("profile", ["raw", "zstd"])
@pytest.mark.usefixtures("many_chunks")
def test_copies_that_are_not_what_they_were_are_fetched_anew(far_store: Store, profile: str, harm: Harm) -> None:
    dataset = filled(far_store, profile)
    read_right(dataset.snapshot())
    for path in copies_of(dataset):
        harm(path)
    read_right(dataset.snapshot())
    read_right(dataset.snapshot())


def test_rows_that_rot_under_an_open_reader_are_right_all_the_same(far: Dataset) -> None:
    snapshot = far.snapshot()
    label = far.snapshot().values("label")
    snapshot.gather("image", [0, 14])  # mapped now
    for path in copies_of(far):
        if path.match("image/c/*/0/0/0"):
            with path.open("r+b") as file:  # within the mapped file, not in place of it
                file.seek(3)
                byte = file.read(1)
                file.seek(3)
                file.write(bytes([byte[0] ^ 8]))
                file.seek(148 + 3)
                file.write(b"\0\0\0\0")
    batches = Reader(snapshot, columns=["image", "label"], batch_size=4, seed=1).epoch()
    seen = [row for batch in batches for row in batch.columns["image"]]
    assert len(seen) >= len(label)
    read_right(snapshot)


@pytest.mark.parametrize("profile", ["raw", "blosc", "zstd"])
@pytest.mark.usefixtures("many_chunks")
def test_an_object_that_is_damaged_itself_is_named_after_it_was_fetched_twice(
    far_store: Store, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = filled(far_store, profile)
    read_right(dataset.snapshot())
    fetched: Counter[str] = Counter()
    download = RemoteStore.download

    def counted(self: RemoteStore, key: str, file: Path) -> None:
        fetched[key.rpartition("parts/")[2]] += 1
        download(self, key, file)

    monkeypatch.setattr(RemoteStore, "download", counted)
    objects = [
        each.key for each in dataset.store.walk("parts") if each.bytes and not each.key.endswith("data.zarr/zarr.json")
    ]
    for key in objects:
        right = dataset.store.read(f"parts/{key}")
        wrong = bytearray(right)
        wrong[min(5, len(wrong) - 1)] ^= 4
        dataset.store.replace(f"parts/{key}", bytes(wrong))
        assert dataset.store.forget(f"parts/{key}")
        fetched.clear()
        with pytest.raises(Damaged, match=r"it was fetched anew, so that it is .* itself that is damaged") as caught:
            read_right(dataset.snapshot())
        assert dataset.store.below(f"parts/{key}").url in caught.value.message
        assert max(fetched.values()) <= 2
        dataset.store.replace(f"parts/{key}", right)
        read_right(dataset.snapshot())  # once it is mended, no copy of what it was is in the way
