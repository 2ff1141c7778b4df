from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import COLUMNS, IMAGE, LABEL, SOURCE, add, content_of

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import codecs, edits, manifest, parts, snapshots
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import CRC_BYTES, crc32c, laid_out
from mms_sdk.storage.stores.local import LocalStore

ROWS = 23
PROFILES = ("blosc", "zstd")
DTYPES = ("bool", "uint8", "int16", "int32", "uint64", "float16", "float32", "float64")


def compressed(profile: str, columns: tuple[Column, ...] = COLUMNS) -> tuple[Column, ...]:
    return tuple(column.model_copy(update={"profile": profile}) for column in columns)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pictures a chunk, and two chunks a shard."""
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 5 * 144)
    monkeypatch.setattr(parts, "COMPRESSED_SHARD_CHUNKS", 2)


def group_of(dataset: Dataset) -> Path:
    return dataset.store.folder / "parts" / dataset.record().parts[0].id / "data.zarr"


def with_tampered(dataset: Dataset, column: Column, tamper: Callable[[Path], None]) -> None:
    """Commits pictures whose part was changed before it was sealed, as a hostile writer would."""
    with dataset.writer((column,)) as writer:
        writer.write({column.name: content_of(ROWS)["image"]})
        part = writer.close()
        tamper(writer.folder / "data.zarr" / column.name)
        (writer.folder / manifest.NAME).unlink()
        part = part.model_copy(update={"manifest": manifest.seal(writer.folder)})
        dataset.commit(Addition(parts=[part], columns=(column,)), base=None, rebase=False)


def indexed(lie: Sequence[tuple[int, int]]) -> bytes:
    """The index that a shard ends with: where its chunks begin, and how long they are."""
    index = np.array(lie, "<u8").tobytes()
    return index + crc32c(index).to_bytes(4, "little")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_compressed_part_reads_back_through_zarr_and_xarray(dataset: Dataset, profile: str) -> None:
    content = content_of(ROWS)
    add(dataset, content, columns=compressed(profile))

    group = group_of(dataset)
    opened, labelled = zarr.open_group(group, mode="r"), xarray.open_zarr(group, consolidated=False, chunks=None)

    for name in ("image", "label", "split"):
        np.testing.assert_array_equal(np.asarray(opened[name]), content[name])
        np.testing.assert_array_equal(labelled[name].values, content[name])
    assert np.asarray(opened["source_data"]).tobytes() == b"".join(content["source"])
    assert len(list((group / "image" / "c").iterdir())) == 3
    (shards,) = json.loads((group / "image" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in shards["configuration"]["codecs"]] == ["bytes", profile, "crc32c"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (40, 5)])
def test_every_dtype_and_shape_reads_back(dataset: Dataset, profile: str, dtype: str, shape: tuple[int, ...]) -> None:
    column = Column(name="x", kind="embedding", dtype=dtype, shape=shape, profile=profile)
    values = np.random.default_rng(0).integers(0, 100, (ROWS, *shape)).astype(dtype)
    add(dataset, {"x": values}, columns=(column,))
    rows = np.array([22, 0, 7, 7, 12])

    snapshot = dataset.snapshot()

    np.testing.assert_array_equal(snapshot.gather("x", rows), values[rows])
    np.testing.assert_array_equal(snapshot.values("x"), values)
    np.testing.assert_array_equal(snapshot.gather("x", rows), values[rows])
    np.testing.assert_array_equal(np.asarray(zarr.open_group(group_of(dataset), mode="r")["x"]), values)


@pytest.mark.parametrize("profile", PROFILES)
def test_how_rows_came_in_batches_does_not_change_a_byte(dataset: Dataset, profile: str) -> None:
    content = content_of(ROWS)
    manifests = set()
    for cuts in ([], [1, 9], list(range(1, ROWS))):
        with dataset.writer(compressed(profile)) as writer:
            for start, end in zip([0, *cuts], [*cuts, ROWS], strict=True):
                writer.write({name: values[start:end] for name, values in content.items()})
            manifests.add(writer.close().manifest)

    assert len(manifests) == 1


@given(rows=st.lists(st.integers(0, ROWS + 9), max_size=40), profile=st.sampled_from(PROFILES))
@settings(max_examples=30)
def test_gathering_is_indexing(tmp_path_factory: pytest.TempPathFactory, rows: list[int], profile: str) -> None:
    dataset = Dataset.create(LocalStore(tmp_path_factory.mktemp("dataset") / "flowers"), "flowers")
    first, second = content_of(ROWS), content_of(10, seed=1)
    add(dataset, first, columns=compressed(profile))
    add(dataset, second, columns=compressed(profile))
    snapshot = dataset.snapshot()

    for name in ("image", "label"):
        expected = np.concatenate([first[name], second[name]])[rows]
        np.testing.assert_array_equal(snapshot.gather(name, rows), expected)
    texts = first["source"] + second["source"]
    assert snapshot.gather("source", rows) == [texts[row] for row in rows]


@pytest.mark.parametrize("profile", ["raw", *PROFILES])
def test_rows_of_a_long_table_are_the_same_chunk_by_chunk(
    dataset: Dataset, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHUNK_BYTES", 16)
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 16)
    monkeypatch.setattr(snapshots, "_TABLE_BYTES", 40)
    number = Column(name="number", kind="number", dtype="int32", nullable=True)
    columns = compressed(profile, (number, LABEL))
    for first in (0, 50):
        values = np.ma.MaskedArray(np.arange(first, first + ROWS, dtype="int32"), np.arange(ROWS) % 3 == 0)
        add(dataset, {"number": values, "label": np.arange(ROWS, dtype="int32") % 3}, columns=columns)
    edits.delete_rows(dataset, [0, 5, ROWS + 1], of=dataset.snapshot())
    whole = dataset.snapshot()
    rows = np.random.default_rng(0).integers(0, whole.rows, 100)
    monkeypatch.setattr(snapshots, "_KEPT_ROWS", 0)
    for name in ("number", "label"):
        np.testing.assert_array_equal(dataset.snapshot().take(name, rows), whole.gather(name, rows))
    mask = np.ma.getmaskarray(dataset.snapshot().take("number", rows))
    np.testing.assert_array_equal(mask, np.ma.getmaskarray(whole.gather("number", rows)))

    path = group_of(dataset) / "label" / "c" / "1"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match="does not fit its bytes"):
        dataset.snapshot().take("label", np.arange(10))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_compressed_dataset_is_edited_like_any_other(dataset: Dataset, profile: str) -> None:
    content = content_of(ROWS)
    for seed in (0, 1):
        add(dataset, content_of(ROWS, seed=seed), columns=compressed(profile))
    images = np.concatenate([content["image"], content_of(ROWS, seed=1)["image"]])
    gone = [0, 4, 22, 23, 45]
    bright = Column(name="bright", kind="image", dtype="uint8", shape=(8, 6, 3), color="rgb", profile=profile)

    edits.delete_rows(dataset, gone, of=dataset.snapshot())
    edits.write_column(dataset, bright, lambda batch: batch["image"] // 2, inputs=("image",), of=dataset.snapshot())
    before = dataset.snapshot()
    edits.compact(dataset, of=before)
    after = dataset.snapshot()

    kept = np.delete(images, gone, axis=0)
    for snapshot in (before, after):
        np.testing.assert_array_equal(snapshot.gather("image", np.arange(snapshot.rows)), kept)
        np.testing.assert_array_equal(snapshot.values("bright"), kept // 2)
        assert snapshot.gather("source", [0]) == [content["source"][1]]
        assert snapshot.verify() > 0
    assert len(after.record.parts) == 1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("array", ["image", "label", "source_data"])
def test_every_flipped_bit_of_a_compressed_chunk_is_noticed(dataset: Dataset, profile: str, array: str) -> None:
    add(dataset, content_of(ROWS), columns=compressed(profile))
    path = next(path for path in sorted((group_of(dataset) / array / "c").rglob("*")) if path.is_file())
    whole = path.read_bytes()
    missed = []
    for place in np.random.default_rng(0).choice(len(whole) * 8, 60, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            snapshot = dataset.snapshot()
            snapshot.gather(array.removesuffix("_data"), np.arange(ROWS))
            missed.append(place)
        except Damaged:
            pass
    assert not missed


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("factor", [0.5, 2, 2**21])
def test_a_chunk_that_claims_another_size_is_refused_before_it_is_decoded(
    dataset: Dataset, profile: str, factor: float
) -> None:
    def claim(array: Path) -> None:
        shard = array / "c" / "0" / "0" / "0" / "0"
        size = int(720 * factor)
        if profile == "blosc":
            whole = shard.read_bytes()
            first = int.from_bytes(whole[-28:-20], "little")  # bytes of the first of two chunks, by the index
            data = bytearray(whole[: first - CRC_BYTES])
            data[4:8] = min(size, 2**31 - 1).to_bytes(4, "little")
        else:  # a frame with a content size of eight bytes; RFC 8878, section 3.1.1.1
            data = bytearray(b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00")
        chunk = bytes(data) + crc32c(bytes(data)).to_bytes(4, "little")
        shard.write_bytes(chunk + indexed([(0, len(chunk)), (0, len(chunk))]))

    with_tampered(dataset, IMAGE.model_copy(update={"profile": profile}), claim)

    with pytest.raises(Damaged, match=rf"chunk 0 holds 720 bytes of values; its {profile} header says \d+ bytes"):
        dataset.snapshot().gather("image", [0])


@pytest.mark.parametrize(
    "chunk", [(0, 0), (0, 4), (0, 2**63), (2**63, 2**63), (2**64 - 1, 2**64 - 1), (2**40, 100), (1, 10**6)]
)
def test_an_index_that_points_elsewhere_is_damage(dataset: Dataset, chunk: tuple[int, int]) -> None:
    def tamper(array: Path) -> None:
        shard = array / "c" / "0" / "0" / "0" / "0"
        whole = shard.read_bytes()
        shard.write_bytes(whole[: -2 * 16 - CRC_BYTES] + indexed([chunk, chunk]))

    with_tampered(dataset, IMAGE.model_copy(update={"profile": "zstd"}), tamper)

    with pytest.raises(Damaged, match="the checksum of chunk 0 does not fit"):
        dataset.snapshot().gather("image", [0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": -1}, r"chunk_shape\[0\], at least 1; it says -1"),
        ({"rows": 0}, r"at least 1; it says 0"),
        ({"rows": "5"}, r"at least 1; it says 5"),
        ({"rows": True}, r"at least 1; it says True"),
        ({"rows": 4}, "shards of whole chunks; it says 10 and 4 rows"),
        ({"rows": 2**40, "shard": 2**41}, "chunks of at most 1073741824 bytes"),
        ({"shard": 5 * 2**60}, "has 1 chunks for 23 rows; it says 3"),
        ({"shard": -10}, r"at least 1; it says -10"),
        ({"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}, {"name": "crc32c"}]}, "numcodecs.pickle"),
        ({"codecs": [{"name": "bytes"}, {"name": "blosc"}]}, "bytes → blosc → crc32c"),
        ({"codecs": [{"name": "bytes"}, {"name": "gzip"}, {"name": "crc32c"}]}, "gzip"),
        ({"codecs": 3}, "codecs"),
        ({"chain": 3}, "codecs"),
        ({"chain": [{"name": "bytes"}, {"name": "blosc"}, {"name": "crc32c"}]}, "has shards, a compressing codec"),
        ({"chain": [{"name": "sharding_indexed"}]}, "nothing that can be read"),
    ],
)
def test_metadata_that_makes_no_sense_is_damage(dataset: Dataset, change: dict[str, Any], told: str) -> None:
    def tamper(array: Path) -> None:
        metadata = json.loads((array / "zarr.json").read_text())
        if "shard" in change:
            metadata["chunk_grid"]["configuration"]["chunk_shape"][0] = change["shard"]
        inner = metadata["codecs"][0]["configuration"]
        if "rows" in change:
            inner["chunk_shape"][0] = change["rows"]
        inner["codecs"] = change.get("codecs", inner["codecs"])
        metadata["codecs"] = change.get("chain", metadata["codecs"])
        (array / "zarr.json").write_text(json.dumps(metadata))

    with_tampered(dataset, IMAGE.model_copy(update={"profile": "blosc"}), tamper)

    with pytest.raises(Damaged, match=told):
        dataset.snapshot().gather("image", [0])


@given(data=st.binary(min_size=1, max_size=70_000), noise=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_numcodecs_reads_what_is_encoded_and_the_size_is_told_in_the_header(data: bytes, noise: int) -> None:
    data += np.random.default_rng(noise).bytes(noise % 70_000)
    for name, codec in (("blosc", numcodecs.Blosc()), ("zstd", numcodecs.Zstd())):
        encoded = codecs.encode(name, data, item_bytes=1)  # type: ignore[arg-type]
        out = np.empty(len(data), np.uint8)
        codecs.decode(name, encoded, out)  # type: ignore[arg-type]
        assert bytes(codec.decode(encoded)) == out.tobytes() == data
        with pytest.raises(ValueError, match="header says"):
            codecs.decode(name, encoded, np.empty(len(data) + 1, np.uint8))  # type: ignore[arg-type]


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("content", [b"a", b"a" * 70_000, np.random.default_rng(0).bytes(300_000)])
def test_what_stands_behind_a_zstd_frame_is_refused_before_it_is_decoded(content: bytes, checksum: bool) -> None:
    zstd = numcodecs.Zstd(checksum=checksum)
    frame, out = bytes(zstd.encode(content)), np.empty(len(content), np.uint8)
    codecs.decode("zstd", frame, out)
    assert out.tobytes() == content

    for behind in (b"\0", bytes(zstd.encode(b"")), bytes(zstd.encode(b"more")), b"\x50\x2a\x4d\x18\1\0\0\0x"):
        assert codecs.claimed_size("zstd", frame + behind) is None
        with pytest.raises(ValueError, match="header says None"):
            codecs.decode("zstd", frame + behind, out)
    assert all(codecs.claimed_size("zstd", frame[:end]) is None for end in range(0, len(frame), 1 + len(frame) // 99))


def test_columns_of_a_new_dataset_lie_as_suits_the_place_or_as_was_asked_for() -> None:
    photo = Column(name="photo", kind="encoded-image", dtype="uint8", shape=None)
    columns = (IMAGE, LABEL, SOURCE, photo)
    profiles = {
        (asked, remote): [column.profile for column in laid_out(columns, asked, remote=remote)]
        for asked in (None, "raw", "zstd")
        for remote in (False, True)
    }
    assert profiles[None, False] == profiles["raw", False] == profiles["raw", True] == ["raw"] * 4
    assert profiles[None, True] == ["blosc", "blosc", "blosc", "raw"]  # a file of a picture is compressed already
    assert profiles["zstd", False] == profiles["zstd", True] == ["zstd", "zstd", "zstd", "raw"]
