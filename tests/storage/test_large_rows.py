"""Raw rows of 16 KiB and more: where they begin, and that any number of threads copies them right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from small_datasets import add

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import columns, parts
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Reader
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.types import Array

SIDE = 128
LARGE = Column(name="map", kind="embedding", dtype="uint8", shape=(SIDE, SIDE + 1))  # 16,512 bytes, and 4 of a checksum
ROW = SIDE * (SIDE + 1)
STRIDE = 16_576  # the next multiple of 64


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(columns, "_threads", lambda: request.param)
    monkeypatch.setattr(columns, "_PIECE_BYTES", 2 * ROW)
    return request.param  # type: ignore[no-any-return]


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *LARGE.fixed), np.uint8)


def made(folder: Path, *contents: Array) -> OpenSnapshot:
    dataset = Dataset.create(LocalStore(folder / "large"), "large")
    for content in contents:
        add(dataset, {"map": content}, columns=(LARGE,))
    return dataset.snapshot()


def shard_of(folder: Path, number: int = 0) -> Path:
    (part,) = (folder / "large" / "parts").iterdir()
    return part / parts.GROUP / "map" / "c" / str(number) / "0" / "0"


def test_rows_begin_at_multiples_of_64_bytes_and_zarr_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SHARD_BYTES", 3 * STRIDE)
    content = rows(7)
    snapshot = made(tmp_path, content)

    for number, count in enumerate((3, 3, 1)):
        data = shard_of(tmp_path, number).read_bytes()
        assert len(data) == count * STRIDE + 3 * 16 + 4  # an index for three rows, though the last has one
        for row in range(count):
            begin = row * STRIDE
            assert data[begin : begin + ROW] == content[3 * number + row].tobytes()
            assert data[begin + ROW + 4 : begin + STRIDE] == bytes(STRIDE - ROW - 4)
    group = zarr.open_group(shard_of(tmp_path).parents[4], mode="r")
    np.testing.assert_array_equal(np.asarray(group["map"]), content)
    np.testing.assert_array_equal(snapshot.gather("map", np.arange(7)), content)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shard_rows", [4, 100])
def test_rows_come_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_rows: int) -> None:
    monkeypatch.setattr(parts, "SHARD_BYTES", shard_rows * STRIDE)
    whole = np.concatenate([rows(11, 1), rows(6, 2)])
    snapshot = made(tmp_path, whole[:11], whole[11:])

    for seed in range(5):
        asked = np.random.default_rng(seed).integers(0, 17, 40)
        np.testing.assert_array_equal(snapshot.gather("map", asked), whole[asked])
    reader = Reader(snapshot, columns=("map",), batch_size=5, seed=3)
    for batch in reader.epoch():
        np.testing.assert_array_equal(batch.columns["map"], whole[batch.rows])


@pytest.mark.usefixtures("threads")
def test_a_damaged_row_is_told_whichever_thread_copies_it_and_the_others_are_not(tmp_path: Path) -> None:
    content = rows(9)
    made(tmp_path, content)
    path = shard_of(tmp_path)
    for row in range(9):
        damaged = bytearray(path.read_bytes())
        damaged[row * STRIDE + 5000] ^= 1
        path.write_bytes(damaged)
        snapshot = Dataset.open(LocalStore(tmp_path / "large"), "large").snapshot()
        sound = [each for each in range(9) if each != row]

        np.testing.assert_array_equal(snapshot.gather("map", np.array(sound)), content[sound])
        with pytest.raises(Damaged, match=f"row {row} of column 'map'"):
            snapshot.gather("map", np.arange(9))
        damaged[row * STRIDE + 5000] ^= 1
        path.write_bytes(damaged)
