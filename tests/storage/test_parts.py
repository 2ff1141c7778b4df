from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, IMAGE, add, content_of

from mms_sdk.errors import InvalidRequest, StorageFull
from mms_sdk.schema.dataset import Column, Sealed
from mms_sdk.storage import parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import PartWriter, crc32c
from mms_sdk.storage.stores.local import LocalStore

DTYPES = ("bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64")


def write(folder: Path, columns: tuple[Column, ...], *batches: Mapping[str, Any]) -> tuple[Sealed, Path]:
    with PartWriter(LocalStore(folder), columns) as writer:
        for batch in batches:
            writer.write(batch)
        part = writer.close()
    return part, folder / part.id / "data.zarr"


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        values = rng.normal(size=shape).astype(dtype)
        values.reshape(-1)[::7] = np.nan
        return values
    return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


def through_zarr(group: Path, column: Column) -> Any:
    opened = zarr.open_group(group, mode="r")
    if column.shape is not None:
        return np.asarray(opened[column.name])
    return cut(np.asarray(opened[f"{column.name}_data"]), np.asarray(opened[f"{column.name}_offsets"]))


def through_xarray(group: Path, column: Column) -> Any:
    opened = xarray.open_zarr(group, consolidated=False, chunks=None)
    if column.shape is not None:
        return opened[column.name].values
    return cut(opened[f"{column.name}_data"].values, opened[f"{column.name}_offsets"].values)


def cut(data: Any, offsets: Any) -> list[bytes]:
    return [data.tobytes()[start:end] for start, end in pairwise(offsets)]


def assert_reads_back(group: Path, columns: tuple[Column, ...], content: Mapping[str, Any]) -> None:
    for column, read in product(columns, (through_zarr, through_xarray)):
        found = read(group, column)
        if column.shape is None:
            assert found == list(content[column.name])
        else:
            np.testing.assert_array_equal(found, content[column.name])
            assert found.dtype == column.dtype


@pytest.mark.usefixtures("many_chunks")
def test_a_part_of_many_shards_and_chunks_reads_back_through_zarr_and_xarray(tmp_path: Path) -> None:
    content = content_of(23)

    _, group = write(tmp_path, COLUMNS, content)

    assert_reads_back(group, COLUMNS, content)
    assert len(list((group / "image" / "c").iterdir())) == 5  # 23 rows in shards of 5
    assert len(list((group / "source_data" / "c").iterdir())) > 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("many_chunks")
def test_every_dtype_reads_back_through_zarr_and_xarray_in_every_layout(tmp_path: Path, dtype: str) -> None:
    shapes = {"scalar": (), "small": (3,), "raw": (40, 5)}
    columns = tuple(Column(name=name, kind="embedding", dtype=dtype, shape=shape) for name, shape in shapes.items())
    content = {name: random_values(dtype, (11, *shape)) for name, shape in shapes.items()}
    begin, end = ({name: values[part] for name, values in content.items()} for part in (slice(4), slice(4, None)))

    _, group = write(tmp_path, columns, begin, end)

    assert_reads_back(group, columns, content)


def test_a_part_without_rows_is_a_part(tmp_path: Path, dataset: Dataset) -> None:
    part, group = write(tmp_path, COLUMNS)
    add(dataset, content_of(0))
    snapshot = dataset.snapshot()

    assert part.rows == 0
    assert_reads_back(group, COLUMNS, content_of(0))
    assert snapshot.values("image").shape == (0, 8, 6, 3)
    assert snapshot.gather("image", np.empty(0, np.int64)).shape == (0, 8, 6, 3)
    assert snapshot.gather("source", np.empty(0, np.int64)) == []
    assert snapshot.values("label").shape == (0,)


@pytest.mark.parametrize(
    "texts",
    [
        [b""],
        [b"", b"a", b"", b"bc", b"", b""],
        [b"x" * 63, b"y", b"z" * 64, b"", b"w" * 200],  # row ends on, before and across the ends of 64-byte chunks
        ["ünïcödé €😀\n\0".encode(), b"\xff\xfe"],
    ],
)
@pytest.mark.usefixtures("many_chunks")
def test_rows_of_varying_length_read_back_whatever_their_length(
    tmp_path: Path, dataset: Dataset, texts: list[bytes]
) -> None:
    column = Column(name="text", kind="text", dtype="uint8", shape=None)

    _, group = write(tmp_path, (column,), {"text": texts})
    add(dataset, {"text": texts}, columns=(column,))

    assert_reads_back(group, (column,), {"text": texts})
    assert dataset.snapshot().gather("text", np.arange(len(texts))) == texts


@given(cuts=st.lists(st.integers(0, 37), max_size=8), shard_rows=st.integers(1, 40), chunk_bytes=st.integers(8, 200))
@settings(max_examples=8)
def test_the_split_into_batches_does_not_change_a_byte_of_a_part(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], shard_rows: int, chunk_bytes: int
) -> None:
    content = content_of(37)
    bounds = [0, *sorted(cuts), 37]
    batches = [{name: values[start:stop] for name, values in content.items()} for start, stop in pairwise(bounds)]
    folder = tmp_path_factory.mktemp("parts")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHARD_BYTES", shard_rows * (144 + parts.CRC_BYTES))
        patch.setattr(parts, "CHUNK_BYTES", chunk_bytes)
        whole, _ = write(folder, COLUMNS, content)
        pieces, group = write(folder, COLUMNS, *batches)

    assert pieces.manifest == whole.manifest
    np.testing.assert_array_equal(through_zarr(group, IMAGE), content["image"])


@pytest.mark.usefixtures("many_chunks")
def test_a_part_is_readable_whatever_sizes_new_parts_are_written_with(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(23)
    add(dataset, content)

    monkeypatch.setattr(parts, "SHARD_BYTES", 2 * 148)
    monkeypatch.setattr(parts, "CHUNK_BYTES", 1000)
    add(dataset, content)
    snapshot = dataset.snapshot()

    np.testing.assert_array_equal(snapshot.values("image"), np.concatenate([content["image"]] * 2))
    np.testing.assert_array_equal(snapshot.values("label"), np.concatenate([content["label"]] * 2))
    assert snapshot.gather("source", np.arange(46)) == content["source"] * 2


def test_every_chunk_carries_a_checksum_that_zarr_declares(tmp_path: Path) -> None:
    _, group = write(tmp_path, COLUMNS, content_of(3))

    for metadata in group.glob("*/zarr.json"):
        codecs = json.loads(metadata.read_text())["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "crc32c"]
            assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        else:
            assert [codec["name"] for codec in codecs] == ["bytes", "crc32c"]


def test_crc32c_gives_the_check_value_of_the_algorithm() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4; Koopman's table of CRCs
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_the_manifest_lists_every_file_with_its_size_and_sha256(tmp_path: Path) -> None:
    part, group = write(tmp_path, COLUMNS, content_of(3))

    body = (group.parent / "MANIFEST.json").read_bytes()
    listed = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in json.loads(body)["files"]}

    present = [path for path in group.parent.rglob("*") if path.is_file() and path.name != "MANIFEST.json"]
    assert listed == {
        path.relative_to(group.parent).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in present
    }
    assert part.manifest == hashlib.sha256(body).hexdigest()


def test_labels_colour_and_unit_are_told_in_the_zarr_attributes(tmp_path: Path) -> None:
    length = Column(name="length", kind="number", dtype="float32", unit="mm")

    _, group = write(tmp_path, (*COLUMNS, length), {**content_of(2), "length": np.ones(2, np.float32)})

    opened = zarr.open_group(group, mode="r")
    assert opened["label"].attrs["labels"] == ["cat", "dog", "eel"]
    assert opened["image"].attrs["color"] == "rgb"
    assert opened["length"].attrs["unit"] == "mm"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": None}, "exactly the columns"),
        ({"more": np.zeros(2)}, "exactly the columns"),
        ({"label": np.zeros(3, np.int32)}, "same number of rows"),
        ({"label": np.zeros(2, np.int64)}, "takes int32 rows"),
        ({"image": np.zeros((2, 6, 8, 3), np.uint8)}, r"of shape \(8, 6, 3\)"),
        ({"source": ["text", "text"]}, "takes bytes"),
    ],
)
def test_a_batch_that_does_not_fit_the_columns_is_refused_and_nothing_of_it_is_written(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    content = content_of(2)
    wrong = {name: values for name, values in {**content, **change}.items() if values is not None}

    with PartWriter(LocalStore(tmp_path), COLUMNS) as writer:
        with pytest.raises(InvalidRequest, match=told):
            writer.write(wrong)
        writer.write(content)
        part = writer.close()

    np.testing.assert_array_equal(through_zarr(tmp_path / part.id / "data.zarr", IMAGE), content["image"])


@pytest.mark.parametrize("dtype", ["object", "U5", "datetime64[s]", ">f4", "complex64", "S3"])
def test_a_dtype_that_other_readers_do_not_share_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype"):
        Column(name="x", kind="number", dtype=dtype)


def test_leaving_a_writer_without_closing_it_leaves_nothing(tmp_path: Path) -> None:
    with PartWriter(LocalStore(tmp_path), COLUMNS) as writer:
        writer.write(content_of(4))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with PartWriter(LocalStore(tmp_path), COLUMNS) as writer:
            writer.write(content_of(4))
            raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("profile", ["raw", "blosc"])
def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path, monkeypatch: Any, profile: str) -> None:
    def full(*_: Any) -> Any:
        return Path("/dev/full").open("wb")

    def fail() -> None:
        with PartWriter(LocalStore(tmp_path), (first, second)) as writer:
            writer.write({"image": content_of(40)["image"], "second": content_of(40)["image"]})
            writer.close()

    first = IMAGE.model_copy(update={"profile": profile})
    second = first.model_copy(update={"name": "second"})
    monkeypatch.setattr(parts, "_chunk_file", full)
    with pytest.raises(StorageFull, match="nothing half-made stays"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_was_committed_survives_an_error_after_the_commit(dataset: Dataset) -> None:
    def fail() -> None:
        with dataset.writer(COLUMNS) as writer:
            writer.write(content_of(4))
            dataset.commit(Addition(parts=[writer.close()], columns=COLUMNS), base=None, rebase=False)
            raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        fail()
    assert dataset.snapshot().verify() > 0


def test_a_closed_part_takes_no_more_rows(tmp_path: Path) -> None:
    with PartWriter(LocalStore(tmp_path), COLUMNS) as writer:
        writer.write(content_of(4))
        writer.close()
        with pytest.raises(InvalidRequest, match="never changes once it is closed"):
            writer.write(content_of(4))
