"""What somebody wrote who knows the format and means no good: digests fit, and what they cover cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
from small_datasets import COLUMNS, SPLIT, add, content_of

from mms_sdk.errors import Damaged, TooLarge
from mms_sdk.schema.dataset import Column, Sealed
from mms_sdk.storage import chunks, manifest, parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import delete_rows, write_column
from mms_sdk.storage.parts import CRC_BYTES, DELETED, PartWriter, crc32c
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.remote import RemoteStore

MAX_BYTES = 48 * 2**20  # a reader takes no more for a dataset of a few kilobytes, whatever that claims
ROWS = 13
Body = dict[str, Any]


@pytest.fixture
def flowers(real_store: Store) -> Dataset:
    """Three snapshots: rows, fewer of them, and a column more."""
    dataset = Dataset.create(real_store.below("flowers"), "flowers")
    add(dataset, content_of(ROWS))
    delete_rows(dataset, [1, 4], of=dataset.snapshot())
    twice = Column(name="twice", kind="number", dtype="int32")
    write_column(dataset, twice, lambda rows: 2 * rows["label"], inputs=["label"], of=dataset.snapshot())
    return dataset


def read_everything(dataset: Dataset) -> None:
    snapshot = dataset.snapshot()
    everything = snapshot.split_rows(None)
    for column in snapshot.record.columns:
        snapshot.gather(column.name, everything)
        if not column.varies:
            snapshot.values(column.name)
    snapshot.rows_since(0)


def damage_of(dataset: Dataset) -> str:
    """What reading says; it is damage, and took little memory to find out."""
    tracemalloc.start()
    try:
        with pytest.raises(Damaged) as caught:
            read_everything(dataset)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 2000
    return caught.value.message


def rewrite(dataset: Dataset, change: Callable[[Body], object], number: int = 3) -> None:
    """A snapshot's file with other content and the digest of that."""
    key = f"snapshots/{number:08d}.json"
    body = json.loads(dataset.store.read(key))["snapshot"]
    change(body)
    # As the format has it, and not as MMS writes it: whatever JSON can say.
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    told = b'{"snapshot":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}'
    dataset.store.replace(key, told)


def at(*path: str | int, to: Any) -> Callable[[Body], None]:
    """Puts a value to a place of a snapshot."""

    def change(body: Body) -> None:
        *way, last = path
        inner: Any = body
        for step in way:
            inner = inner[step]
        inner[last] = to

    return change


def all_rows(count: Any) -> Callable[[Body], None]:
    """A part that claims so many rows, in agreement with itself."""

    def change(body: Body) -> None:
        part = body["parts"][0]
        part["rows"] = part["since"][0]["rows"] = part["layers"][0]["rows"] = count

    return change


def doubled(what: str) -> Callable[[Body], None]:
    return lambda body: body[what].append(body[what][0])


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


PART = ("parts", 0)
SNAPSHOTS: dict[str, Callable[[Body], object]] = {
    **{
        f"{count} rows": all_rows(count) for count in (0, 12, 14, 2**31, 2**40, 2**48, 2**63, 2**64, -1, 1.5, "x", None)
    },
    "more rows in the part than came in": at(*PART, "rows", to=14),
    "a layer of another length": at(*PART, "layers", 0, "rows", to=5),
    "more deleted than there are": at(*PART, "deleted", "rows", to=14),
    "2**40 deleted": at(*PART, "deleted", "rows", to=2**40),
    "fewer deleted than listed": at(*PART, "deleted", "rows", to=1),
    "a negative run": at(*PART, "since", to=[{"rows": -1, "snapshot": 1}, {"rows": 14, "snapshot": 1}]),
    "rows of snapshot 0": at(*PART, "since", 0, "snapshot", to=0),
    "a path for a part": at(*PART, "id", to="../../../../etc"),
    "an absolute path for a part": at(*PART, "id", to="/etc"),
    "no name for a part": at(*PART, "id", to=""),
    "a path for a layer": at(*PART, "layers", 0, "id", to="../flowers"),
    "a path for deleted rows": at(*PART, "deleted", "id", to=".."),
    "no digest": at(*PART, "manifest", to=""),
    "a layer with an array that is a path": at(*PART, "layers", 0, "arrays", to=["../x"]),
    "a layer without the array it names": at(*PART, "layers", 0, "arrays", to=["label"]),
    "a part twice": doubled("parts"),
    "a column twice": doubled("columns"),
    "two columns in one array": at("columns", 1, "array", to="split"),
    "a column that is not there": at("columns", 1, "array", to="lable"),
    "a path for an array": at("columns", 1, "array", to="../label"),
    "another dtype of the same size": at("columns", 1, "dtype", to="float32"),
    "another dtype of another size": at("columns", 1, "dtype", to="int64"),
    "an object dtype": at("columns", 1, "dtype", to="object"),
    "a void dtype": at("columns", 1, "dtype", to="|V8"),
    "another shape of the same size": at("columns", 0, "shape", to=[6, 8, 3]),
    "another shape": at("columns", 0, "shape", to=[8, 6, 4]),
    "a huge shape": at("columns", 0, "shape", to=[2**40, 2**40, 3]),
    "a negative shape": at("columns", 0, "shape", to=[8, -6, 3]),
    "fixed for what varies": at("columns", 2, "shape", to=[]),
    "varying for what is fixed": at("columns", 0, "shape", to=None),
    "another profile": at("columns", 0, "profile", to="zstd"),
    "raw for what is compressed": at("columns", 0, "profile", to="lzma"),
    "nullable for what is not": at("columns", 1, "nullable", to=True),
    "fewer labels than codes": at("columns", 1, "labels", to=["cat"]),
    "no labels for splits": at("columns", 3, "labels", to=["train"]),
    "another number": at("number", to=7),
    "number 0": at("number", to=0),
    "a number beyond eight digits": at("number", to=10**8),
    "its own parent": at("parent", to=3),
    "a later parent": at("parent", to=9),
    "no name": at("dataset", to="../flowers"),
    "a later format": at("format_version", to=2),
    "a format in words": at("format_version", to="1"),
    "a format of 1.5": at("format_version", to=1.5),
    "an unknown field": at("more", to=1),
    "no parts": lambda body: body.pop("parts"),
    "parts that are none": at("parts", to={"0": 1}),
    "a hundred thousand lists": at("provenance", to={"x": deep(900)}),
}
"""What a snapshot can say of itself that cannot be."""


@pytest.mark.parametrize("change", SNAPSHOTS.values(), ids=SNAPSHOTS.keys())
def test_a_snapshot_that_cannot_be_is_damage_found_in_little_memory(
    flowers: Dataset, change: Callable[[Body], object]
) -> None:
    read_everything(flowers)
    held = flowers.snapshot(2)
    before = held.values("label").copy()
    rewrite(flowers, change)
    message = damage_of(flowers)
    assert "backup" in message or "upgrade" in message or "restore it" in message
    # Whoever has an earlier snapshot open reads on, and it opens.
    np.testing.assert_array_equal(held.values("label"), before)
    np.testing.assert_array_equal(flowers.snapshot(2).values("label"), before)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'{"snapshot": [], "sha256": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"}',
        b'{"snapshot": {}, "sha256": 1}',
        b"[" * 10**6,
        b'{"snapshot": {"provenance": ' + b"[" * 5000 + b"]" * 5000 + b'}, "sha256": ""}',
        b'{"snapshot": {"number": NaN}, "sha256": ""}',
        b"\xff\xfe\x00",
        b'{"snapshot": {"number": ' + b"9" * 10**5 + b'}, "sha256": ""}',
    ],
    ids=["empty", "null", "list", "list within", "no digest", "open", "deep", "NaN", "no text", "digits"],
)
def test_what_is_no_snapshot_is_damage(flowers: Dataset, data: bytes) -> None:
    flowers.store.replace("snapshots/00000003.json", data)
    damage_of(flowers)


# Parts ---------------------------------------------------------------------------------------------------------------


def put(
    real_store: Store, tmp_path: Path, tamper: Callable[[Path], object], columns: tuple[Column, ...] = COLUMNS
) -> Dataset:
    """A dataset of one part that was changed before it was sealed."""
    dataset = Dataset.create(real_store.below("roses"), "roses")
    with PartWriter(LocalStore(tmp_path / "made"), columns) as writer:
        writer.write({column.name: content_of(ROWS)[column.name] for column in columns})
        part = writer.close()
    return commit(dataset, writer.folder, part, tamper, columns)


def commit(
    dataset: Dataset, folder: Path, part: Sealed, tamper: Callable[[Path], object], columns: tuple[Column, ...]
) -> Dataset:
    (folder / manifest.NAME).unlink()
    tamper(folder)
    digest = hashlib.sha256((folder / manifest.NAME).read_bytes()).hexdigest() if manifest.is_sealed(folder) else ""
    part = part.model_copy(update={"manifest": digest or manifest.seal(folder)})
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            dataset.store.upload(f"parts/{part.id}/{path.relative_to(folder).as_posix()}", path)
    dataset.commit(Addition(parts=[part], columns=columns, splits={"train": 1}), base=None, rebase=False)
    return dataset


def in_metadata(array: str, change: Callable[[Body], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        path = folder / "data.zarr" / array / "zarr.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    return tamper


def chunk(array: str, values: Any) -> Callable[[Path], None]:
    """Other values in an array of one chunk, with their checksum."""

    def tamper(folder: Path) -> None:
        data = np.ascontiguousarray(values).tobytes()
        (folder / "data.zarr" / array / "c" / "0").write_bytes(data + crc32c(data).to_bytes(CRC_BYTES, "little"))

    return tamper


def offsets(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    ends = np.cumsum([0, *(len(text) for text in content_of(ROWS)["source"])], dtype=np.uint64)
    return chunk("source_offsets", np.asarray(change(ends), np.uint64))


def with_end(value: int) -> Callable[[Any], Any]:
    return lambda ends: [*ends[:-1].tolist(), value]


CHUNKS = ("chunk_grid", "configuration", "chunk_shape", 0)
PARTS: dict[str, Callable[[Path], object]] = {
    "offsets that go backwards": offsets(lambda ends: [ends[0], *ends[1:-1][::-1], ends[-1]]),
    "offsets beyond the data": offsets(with_end(10**6)),
    "offsets beyond 2**63": offsets(with_end(2**63)),
    "offsets of -1": offsets(with_end(2**64 - 1)),
    "offsets that begin later": offsets(lambda ends: [1, *ends[1:].tolist()]),
    "offsets of one row in all the data": offsets(lambda ends: [0, 2**40, *ends[2:].tolist()]),
    "codes beyond the labels": chunk("label", np.arange(ROWS, dtype=np.int32)),
    "negative codes": chunk("label", np.full(ROWS, -1, np.int32)),
    "splits beyond the labels": chunk("split", np.full(ROWS, 200, np.uint8)),
    "chunks of 2**40 rows": in_metadata("label", at(*CHUNKS, to=2**40)),
    "chunks of 2**63 rows": in_metadata("label", at(*CHUNKS, to=2**63)),
    "chunks of one row": in_metadata("label", at(*CHUNKS, to=1)),
    "chunks of no row": in_metadata("label", at(*CHUNKS, to=0)),
    "chunks of -1 row": in_metadata("label", at(*CHUNKS, to=-1)),
    "chunks of True rows": in_metadata("label", at(*CHUNKS, to=True)),
    "shards of one row": in_metadata("image", at(*CHUNKS, to=1)),
    "another shape": in_metadata("image", at("shape", 1, to=2**33)),
    "more rows": in_metadata("image", at("shape", 0, to=2**40)),
    "rows in words": in_metadata("image", at("shape", 0, to="13")),
    "no shape": in_metadata("image", at("shape", to=[])),
    "another dtype": in_metadata("label", at("data_type", to="float32")),
    "an object dtype": in_metadata("label", at("data_type", to="object")),
    "a dtype that is code": in_metadata("label", at("data_type", to={"name": "numpy.object", "configuration": {}})),
    "pickle": in_metadata("label", at("codecs", to=[{"name": "bytes"}, {"name": "numcodecs.pickle"}])),
    "a hundred codecs": in_metadata("label", at("codecs", to=[{"name": "bytes"}] * 100)),
    "codecs that are none": in_metadata("label", at("codecs", to={"bytes": 1})),
    "deep metadata": lambda folder: (folder / "data.zarr" / "label" / "zarr.json").write_text("[" * 10**5),
    "version 2": lambda folder: (folder / "data.zarr" / "label" / "zarr.json").write_text(
        '{"zarr_format": 2, "dtype": "|O", "filters": [{"id": "pickle"}], "shape": [13], "chunks": [13]}'
    ),
    "no chunk": lambda folder: (folder / "data.zarr" / "label" / "c" / "0").unlink(),
    "a chunk too many": lambda folder: (folder / "data.zarr" / "label" / "c" / "1").write_bytes(b"x"),
    "an empty chunk": lambda folder: (folder / "data.zarr" / "label" / "c" / "0").write_bytes(b""),
    "half a chunk": lambda folder: os.truncate(folder / "data.zarr" / "label" / "c" / "0", 20),
    "half a shard": lambda folder: os.truncate(folder / "data.zarr" / "image" / "c" / "0" / "0" / "0" / "0", 500),
    "no array": lambda folder: shutil.rmtree(folder / "data.zarr" / "label"),
    "no metadata": lambda folder: (folder / "data.zarr" / "label" / "zarr.json").unlink(),
}
"""What a part can hold that cannot be."""


@pytest.mark.parametrize("tamper", PARTS.values(), ids=PARTS.keys())
def test_a_part_that_cannot_be_is_damage_found_in_little_memory(
    real_store: Store, tmp_path: Path, tamper: Callable[[Path], object]
) -> None:
    dataset = put(real_store, tmp_path, tamper)
    message = damage_of(dataset)
    assert "from a backup" in message


def listing(change: Callable[[list[Body]], object]) -> Callable[[Path], None]:
    """A manifest that lists something else than is there."""

    def tamper(folder: Path) -> None:
        manifest.seal(folder)
        told = json.loads((folder / manifest.NAME).read_text())
        change(told["files"])
        (folder / manifest.NAME).write_bytes(orjson.dumps(told))

    return tamper


def named(path: Any, size: Any = 3, digest: Any = "0" * 64) -> Callable[[Path], None]:
    return listing(lambda files: files.append({"path": path, "bytes": size, "sha256": digest}))


@pytest.mark.parametrize(
    "tamper",
    [
        *(
            named(path)
            for path in ("../../../secret", "/etc/passwd", "a/../../b", "./a", "a//b", "", ".", "..", "a\0b", 7)
        ),
        named(["a"]),
        named("MANIFEST.json"),
        named("data.zarr/zarr.json"),
        named("more", size=-1),
        named("more", size=2**63),
        named("more", size="3"),
        named("more", size=True),
        named("more", digest="x"),
        named("more", digest=None),
        listing(lambda files: files.clear()),
        listing(lambda files: files.append(7)),
        listing(lambda files: files[0].pop("bytes")),
    ],
)
def test_a_manifest_that_lists_what_cannot_be_is_damage_and_leads_nowhere(
    real_store: Store, tmp_path: Path, tamper: Callable[[Path], object]
) -> None:
    dataset = put(real_store, tmp_path, tamper)
    damage_of(dataset)
    with pytest.raises(Damaged):
        dataset.verify()


DELETIONS: dict[str, list[int]] = {
    "unsorted": [4, 1],
    "twice": [4, 4],
    "beyond the part": [1, 13],
    "far beyond": [1, 2**62],
    "negative": [-1, 4],
    "from the end": [-13, -1],
}


@pytest.mark.parametrize("rows", DELETIONS.values(), ids=DELETIONS.keys())
def test_deleted_rows_that_cannot_be_are_damage(real_store: Store, tmp_path: Path, rows: list[int]) -> None:
    dataset = Dataset.create(real_store.below("roses"), "roses")
    add(dataset, content_of(ROWS))
    delete_rows(dataset, [1, 4], of=dataset.snapshot())
    with dataset.writer((DELETED,)) as writer:
        writer.write({DELETED.name: np.array(rows, np.int64)})
        listed = writer.close()
    rewrite(dataset, at(*PART, "deleted", to=listed.model_dump()), number=2)
    assert "it lists rows of a part of 13, ascending" in damage_of(dataset)


@pytest.mark.parametrize(
    ("shard_rows", "told"), [(13 * 2**26, "79 chunks for 68719476736 rows"), (13 * 2**33, "shards with .* of index")]
)
@pytest.mark.parametrize("profile", ["blosc", "zstd"])
def test_many_rows_in_a_small_compressed_part_are_found_before_room_is_made_for_them(
    real_store: Store, tmp_path: Path, profile: str, shard_rows: int, told: str
) -> None:
    column = SPLIT.model_copy(update={"profile": profile})
    rows = 2**36

    def tamper(folder: Path) -> None:
        in_metadata("split", at("shape", 0, to=rows))(folder)
        in_metadata("split", at(*CHUNKS, to=shard_rows))(folder)

    dataset = put(real_store, tmp_path, tamper, (column,))
    rewrite(dataset, at(*PART, "rows", to=rows), number=1)
    rewrite(dataset, at(*PART, "since", 0, "rows", to=rows), number=1)
    assert re.search(told, damage_of_column(dataset, "split"))


def damage_of_column(dataset: Dataset, name: str) -> str:
    tracemalloc.start()
    with pytest.raises(Damaged) as caught:
        dataset.snapshot().values(name)
    assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    tracemalloc.stop()
    return caught.value.message


@pytest.mark.parametrize("profile", ["blosc", "zstd"])
def test_small_chunks_of_much_are_not_decoded_where_there_is_no_room(
    real_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 2**20)
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 2**20)
    column = Column(name="zeros", kind="number", dtype="uint8", profile=profile)
    texts = Column(name="text", kind="text", dtype="uint8", shape=None, profile=profile)
    dataset = Dataset.create(real_store.below("roses"), "roses")
    add(dataset, {"zeros": np.zeros(2**26, np.uint8)}, columns=(column,))
    other = Dataset.create(real_store.below("texts"), "texts")
    add(other, {"text": [bytes(2**26), b"short"]}, columns=(texts,))
    assert sum(each.bytes for each in dataset.store.walk("")) < 2**20
    free = psutil.virtual_memory()._replace(available=2**25)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    tracemalloc.start()
    with pytest.raises(TooLarge, match=r"takes 67,108,864 bytes, of which 33,554,432 are free"):
        dataset.snapshot().values("zeros")
    with pytest.raises(TooLarge, match=r"a row of column 'text' in part .* takes 67,108,864 bytes"):
        other.snapshot().gather("text", [0])
    assert other.snapshot().gather("text", [1]) == [b"short"]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_chunk_beyond_the_limit_is_not_read_though_it_is_there(
    real_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = put(real_store, tmp_path, lambda folder: None)
    monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 4 * ROWS - 1)
    with pytest.raises(Damaged, match="chunks of at most 51 bytes; it says 52 bytes"):
        dataset.snapshot().values("label")


# Links and pipes, which only a disk has --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data.zarr/label/c/0", "data.zarr/label/zarr.json", "MANIFEST.json"])
@pytest.mark.parametrize("what", ["link", "link to a pipe", "pipe", "device", "folder", "link to a folder"])
def test_what_is_no_plain_file_is_never_opened(tmp_path: Path, where: str, what: str) -> None:
    dataset = put(LocalStore(tmp_path / "store"), tmp_path, lambda folder: None)
    assert isinstance(dataset.store, LocalStore)
    part = dataset.store.folder / "parts" / dataset.record().parts[0].id
    aside = tmp_path / "aside"
    (part / where).rename(aside)
    if what in ("pipe", "link to a pipe"):
        os.mkfifo(part / where if what == "pipe" else tmp_path / "pipe")
    if what == "folder":
        (part / where).mkdir()
    targets = {
        "link": aside,
        "link to a pipe": tmp_path / "pipe",
        "device": Path("/dev/zero"),
        "link to a folder": tmp_path,
    }
    if what in targets:
        (part / where).symlink_to(targets[what])
    damage_of(dataset)
    with pytest.raises(Damaged):
        dataset.verify()


def test_a_snapshot_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    dataset = put(LocalStore(tmp_path / "store"), tmp_path, lambda folder: None)
    assert isinstance(dataset.store, LocalStore)
    os.mkfifo(dataset.store.folder / "snapshots" / "00000002.json")
    with pytest.raises(Damaged, match="is a link, a pipe or a device; put a copy in its place"):
        dataset.snapshot()
    np.testing.assert_array_equal(dataset.snapshot(1).values("label"), content_of(ROWS)["label"])


def test_a_copy_in_the_place_of_a_link_is_read_as_ever(far_store: Store, tmp_path: Path) -> None:
    dataset = put(far_store, tmp_path, lambda folder: None)
    read_everything(dataset)
    assert isinstance(dataset.store, RemoteStore)
    (path,) = (tmp_path / "copies" / "files").rglob("label/c/0")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    path.unlink()
    path.symlink_to(secret)
    np.testing.assert_array_equal(dataset.snapshot().values("label"), content_of(ROWS)["label"])
    assert secret.read_bytes() == bytes(100)
