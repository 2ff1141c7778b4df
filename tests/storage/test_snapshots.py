from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, SPLIT, add, content_of

from mms_sdk.errors import ColumnNotFound, Damaged, InvalidRequest, SnapshotNotFound, SplitNotFound
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import parts
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

SIZES = (13, 1, 0, 22)
FLIPS = 200


def filled(folder: Path) -> Dataset:
    """Four parts, each of several shards and chunks."""
    dataset = Dataset.create(LocalStore(folder / "flowers"), "flowers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHARD_BYTES", 5 * 148)
        patch.setattr(parts, "CHUNK_BYTES", 64)
        for number, rows in enumerate(SIZES):
            add(dataset, content_of(rows, seed=number))
    return dataset


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return filled(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def everything() -> dict[str, np.ndarray]:
    contents = [content_of(rows, seed=number) for number, rows in enumerate(SIZES)]
    joined = {name: np.concatenate([content[name] for content in contents]) for name in ("image", "label", "split")}
    return {**joined, "source": np.array([text for content in contents for text in content["source"]], object)}


def read_everything(snapshot: OpenSnapshot) -> None:
    for column in COLUMNS:
        if column.shape is not None:
            snapshot.values(column.name)
        else:
            snapshot.gather(column.name, np.arange(snapshot.rows))


@contextmanager
def flipped(path: Path, byte: int, bit: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(byte)
        before = file.read(1)
        file.seek(byte)
        file.write(bytes([before[0] ^ 1 << bit]))
    yield
    with path.open("r+b") as file:
        file.seek(byte)
        file.write(before)


def damage(read: Callable[[], object]) -> str:
    """What reading says of damage; nothing if it goes well."""
    try:
        read()
    except Damaged as error:
        return error.message
    return ""


def damage_of_flips(sizes: dict[Path, int], read: Callable[[], object]) -> list[tuple[Path, str]]:
    """What is said of each of many flipped bits, one at a time."""
    told = []
    for path, byte, bit in sample(sizes, FLIPS):
        with flipped(path, byte, bit):
            told.append((path, damage(read)))
    return told


def sizes_of(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_size for path in paths}


def sample(sizes: dict[Path, int], count: int) -> list[tuple[Path, int, int]]:
    """Random bits of files, each byte of all of them as likely as any other."""
    rng = np.random.default_rng(0)
    paths, ends = list(sizes), np.cumsum(list(sizes.values()))
    chosen = []
    for at in rng.choice(ends[-1], size=count, replace=False):
        number = int(np.searchsorted(ends, at, side="right"))
        chosen.append((paths[number], int(at - ends[number] + sizes[paths[number]]), int(rng.integers(8))))
    return chosen


def part_files(dataset: Dataset) -> list[Path]:
    return sorted(path for path in (dataset.store.folder / "parts").rglob("*") if path.is_file())


# Reading --------------------------------------------------------------------------------------------------------


def test_whole_columns_are_the_parts_one_after_another(flowers: Dataset, everything: dict[str, np.ndarray]) -> None:
    snapshot = flowers.snapshot()

    for name in ("image", "label", "split"):
        np.testing.assert_array_equal(snapshot.values(name), everything[name])


@given(rows=st.lists(st.integers(0, sum(SIZES) - 1), max_size=50))
@settings(max_examples=50)
def test_gathering_rows_of_many_parts_is_indexing_their_concatenation(
    flowers: Dataset, everything: dict[str, np.ndarray], rows: list[int]
) -> None:
    snapshot = flowers.snapshot()
    wanted = np.array(rows, np.int64)

    for name in ("image", "label"):
        np.testing.assert_array_equal(snapshot.gather(name, wanted), everything[name][wanted])
    assert snapshot.gather("source", wanted) == everything["source"][wanted].tolist()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_earlier_snapshot_holds_the_rows_it_held(
    flowers: Dataset, everything: dict[str, np.ndarray], number: int
) -> None:
    snapshot = flowers.snapshot(number)

    rows = sum(SIZES[:number])
    assert snapshot.rows == rows
    assert snapshot.ref == f"flowers@{number}"
    np.testing.assert_array_equal(snapshot.values("image"), everything["image"][:rows])


def test_the_rows_of_a_split_are_those_with_its_code(flowers: Dataset, everything: dict[str, np.ndarray]) -> None:
    snapshot = flowers.snapshot()

    for code, name in enumerate(("train", "val", "test")):
        np.testing.assert_array_equal(snapshot.split_rows(name), np.flatnonzero(everything["split"] == code))
    np.testing.assert_array_equal(snapshot.split_rows(None), np.arange(sum(SIZES)))


def test_a_gathered_batch_may_be_written_to_without_touching_the_dataset(flowers: Dataset) -> None:
    snapshot = flowers.snapshot()
    rows = np.arange(4)
    before = snapshot.gather("image", rows).copy()

    snapshot.gather("image", rows)[:] = 0

    np.testing.assert_array_equal(snapshot.gather("image", rows), before)


def test_threads_reading_at_once_see_the_same_rows(flowers: Dataset, everything: dict[str, np.ndarray]) -> None:
    snapshot = flowers.snapshot()
    orders = [np.random.default_rng(seed).permutation(snapshot.rows) for seed in range(16)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rows: (snapshot.gather("image", rows), snapshot.gather("source", rows)), orders))

    for rows, (images, sources) in zip(orders, found, strict=True):
        np.testing.assert_array_equal(images, everything["image"][rows])
        assert sources == everything["source"][rows].tolist()


@pytest.mark.parametrize("rows", [[-1], [sum(SIZES)], [0, 1, 2**40]])
def test_row_numbers_outside_the_snapshot_are_refused(flowers: Dataset, rows: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="row numbers of flowers@4 are 0 to 35"):
        flowers.snapshot().gather("image", np.array(rows))


def test_names_that_do_not_exist_are_answered_with_those_that_do(flowers: Dataset) -> None:
    snapshot = flowers.snapshot()

    with pytest.raises(ColumnNotFound, match=r"no column 'audio'; it has \['image', 'label', 'source', 'split'\]"):
        snapshot.values("audio")
    with pytest.raises(SplitNotFound, match="its splits are"):
        snapshot.split_rows("holdout")
    with pytest.raises(SnapshotNotFound, match="no snapshot 9; it has 1 to 4"):
        flowers.snapshot(9)
    with pytest.raises(InvalidRequest, match="gather"):
        snapshot.values("source")


def test_a_split_without_rows_is_not_a_split(dataset: Dataset) -> None:
    content = {**content_of(3), "split": np.zeros(3, np.uint8)}
    add(dataset, content)

    assert dataset.snapshot().split_names == ("train",)
    with pytest.raises(SplitNotFound):
        dataset.snapshot().split_rows("test")


def test_a_dataset_without_a_split_column_is_read_whole(dataset: Dataset) -> None:
    columns = tuple(column for column in COLUMNS if column != SPLIT)
    content = {name: values for name, values in content_of(5).items() if name != "split"}
    add(dataset, content, columns=columns)

    assert len(dataset.snapshot().split_rows(None)) == 5


def test_big_endian_machines_aside_the_bytes_of_a_float_row_are_its_values(dataset: Dataset) -> None:
    column = Column(name="x", kind="embedding", dtype="float64", shape=(9,))
    values = np.random.default_rng(0).normal(size=(7, 9))
    add(dataset, {"x": values}, columns=(column,))

    np.testing.assert_array_equal(dataset.snapshot().gather("x", np.array([6, 0, 6])), values[[6, 0, 6]])


# Damage ---------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_rows_or_chunks_is_reported_when_they_are_read(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    chunks = [path for path in part_files(dataset) if "c" in path.parts]
    # A shard ends with Zarr's index of it, 16 bytes a row and a checksum, which reading rows does not need.
    sizes = {
        path: size // (148 + 16) * 148 if "image" in path.parts else size for path, size in sizes_of(chunks).items()
    }

    told = damage_of_flips(sizes, lambda: read_everything(dataset.snapshot()))

    assert [path for path, message in told if RESTORE not in message] == []
    assert len(told) == FLIPS
    assert dataset.snapshot().verify() > 0


def test_a_flipped_bit_anywhere_in_a_part_is_found_by_verify(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    snapshot = dataset.snapshot()
    sizes = sizes_of(part_files(dataset))

    told = damage_of_flips(sizes, snapshot.verify)

    assert [path for path, message in told if path.name not in message or "from a backup" not in message] == []
    assert snapshot.verify() == sum(sizes.values())


def test_a_flipped_bit_anywhere_in_parts_or_snapshots_is_found_by_verifying_the_dataset(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    files = [*part_files(dataset), *(dataset.store.folder / "snapshots").iterdir()]

    told = damage_of_flips(sizes_of(files), dataset.verify)

    assert [path for path, message in told if path.name not in message or "from a backup" not in message] == []
    assert dataset.verify() == (len(SIZES), sum(path.stat().st_size for path in part_files(dataset)))


def test_a_flipped_bit_in_metadata_that_reading_rests_on_is_reported_when_it_is_read(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    metadata = [path for path in part_files(dataset) if path.name == "zarr.json" and path.parent.name != "data.zarr"]

    told = damage_of_flips(sizes_of(metadata), lambda: read_everything(dataset.snapshot()))

    assert [path for path, message in told if "zarr.json" not in message] == []


def test_a_flipped_bit_in_a_manifest_is_reported_on_opening(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    manifests = [path for path in part_files(dataset) if path.name == "MANIFEST.json"]

    told = damage_of_flips(sizes_of(manifests), dataset.snapshot)

    assert [path for path, message in told if "MANIFEST.json" not in message] == []


def test_a_flipped_bit_in_a_snapshot_file_is_reported_on_opening(tmp_path: Path) -> None:
    dataset = filled(tmp_path)

    told = damage_of_flips(sizes_of([dataset.store.folder / "snapshots" / "00000004.json"]), dataset.record)

    assert [message for path, message in told if path.name not in message or "backup" not in message] == []


def test_a_missing_truncated_or_grown_file_is_damage_on_opening(tmp_path: Path) -> None:
    dataset = filled(tmp_path)

    for path in part_files(dataset):
        whole = path.read_bytes()
        for harm in (path.unlink, lambda: path.write_bytes(whole[:-1]), lambda: path.write_bytes(whole + b"\0")):  # noqa: B023
            harm()
            with pytest.raises(Damaged, match=path.name) as caught:
                dataset.snapshot()
            assert "backup" in caught.value.message
            path.write_bytes(whole)
    assert dataset.snapshot().verify() > 0


def test_an_extra_file_is_damage_on_opening_wherever_it_lies(tmp_path: Path) -> None:
    dataset = filled(tmp_path)

    for folder in {path.parent for path in part_files(dataset)}:
        extra = folder / "99"
        extra.write_bytes(b"")
        with pytest.raises(Damaged, match=r"99 in .* is not in its manifest; remove that file"):
            dataset.snapshot()
        extra.unlink()


@pytest.mark.parametrize("left", [None, 0.0, 0.5])
def test_a_chunk_that_vanishes_after_opening_is_damage_and_never_fill_values(
    tmp_path: Path, left: float | None
) -> None:
    dataset = filled(tmp_path)

    for path in [path for path in part_files(dataset) if "c" in path.parts]:
        snapshot = dataset.snapshot()
        whole = path.read_bytes()
        path.unlink()
        if left is not None:
            path.write_bytes(whole[: int(left * len(whole))])
        with pytest.raises(Damaged, match=f"gone or cut short; {RESTORE}"):
            read_everything(snapshot)
        path.write_bytes(whole)


def test_rows_before_a_damaged_one_are_readable(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    shard = next(path for path in part_files(dataset) if path.match("image/c/0/0/0/0"))

    with flipped(shard, 148 + 7, 3):  # the second row
        snapshot = dataset.snapshot()
        np.testing.assert_array_equal(snapshot.gather("image", np.array([0])), content_of(13)["image"][:1])
        with pytest.raises(Damaged, match="row 1 of column 'image'"):
            snapshot.gather("image", np.array([0, 1]))


def test_a_part_of_another_dataset_under_the_right_name_is_damage(tmp_path: Path) -> None:
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs")
    one, other = (dataset.record(1).parts[0].id for dataset in (ours, theirs))
    (ours.store.folder / "parts" / one).rename(tmp_path / "aside")
    (theirs.store.folder / "parts" / other).rename(ours.store.folder / "parts" / one)

    # The content is the same to the byte, so it is accepted; with other content it is not.
    assert ours.snapshot(1).verify() > 0
    (ours.store.folder / "parts" / one).rename(tmp_path / "away")
    (theirs.store.folder / "parts" / theirs.record(2).parts[1].id).rename(ours.store.folder / "parts" / one)
    with pytest.raises(Damaged, match=r"MANIFEST\.json has digest"):
        ours.snapshot(1)
