"""What becomes of a dataset that grows: opening and committing with many parts, and memory of one of 100 GB."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import orjson

from benchmarks.table import Row
from mms_sdk.schema.dataset import Column, Sealed
from mms_sdk.storage import files, manifest, parts
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset, snapshot_key
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.stores.local import LocalStore

PARTS = (10, 1_000, 10_000)
PICTURE = Column(name="image", kind="image", dtype="uint8", shape=(512, 683, 3), color="rgb")
PICTURES, BATCH, BATCHES, LIMIT_MIB = 100_000, 32, 50, 256  # 105 GB
SMALL = Column(name="value", kind="number", dtype="float32")
_READ = r"""
import json, re, sys
from pathlib import Path
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.reader import Reader
from mms_sdk.storage.stores.local import LocalStore
import zarr

def own():  # without pages of mapped files, which the system takes back when it needs them
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

before = own()
snapshot = Dataset.open(LocalStore(Path(sys.argv[1])), "large").snapshot()
reader = Reader(snapshot, columns=["image"], batch_size=32, seed=0)
opened = own()
for number, batch in enumerate(reader.epoch(), 1):
    if number == int(sys.argv[2]):
        break
print(json.dumps([opened - before, own() - before, reader.rung]))
"""


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    found: list[Row] = []
    for count in PARTS[: 2 if quick else None]:
        found += _of_parts(folder / str(count), count, rounds=3 if quick else 7)
        shutil.rmtree(folder / str(count))
    return [*found, _of_large(folder / "large", PICTURES // 100 if quick else PICTURES)]


def _of_parts(folder: Path, count: int, *, rounds: int) -> list[Row]:
    dataset = Dataset.create(LocalStore(folder), "many")
    with dataset.writer((SMALL,)) as writer:
        writer.write({"value": np.arange(100, dtype=np.float32)})
        one = writer.close()
    sealed = [one]
    for _ in range(count - 1):
        sealed.append(Sealed(id=new_id(), rows=one.rows, manifest=one.manifest))
        shutil.copytree(folder / "parts" / one.id, folder / "parts" / sealed[-1].id)
    dataset.commit(Addition(parts=sealed, columns=(SMALL,)), base=None, rebase=False)
    opening, looking, committing, writing = [], [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        Dataset.open(LocalStore(folder), "many").snapshot()
        opening.append(time.perf_counter() - began)
        began = time.perf_counter()
        _look_at_all(folder / "parts")
        looking.append(time.perf_counter() - began)
        with dataset.writer((SMALL,)) as writer:
            writer.write({"value": np.arange(100, dtype=np.float32)})
            part = writer.close()
        began = time.perf_counter()
        made = dataset.commit(Addition(parts=[part], columns=(SMALL,)), base=dataset.record(), rebase=False)
        committing.append(time.perf_counter() - began)
        body = (folder / snapshot_key(made.number)).read_bytes()
        began = time.perf_counter()
        files.publish(folder / f"like-{made.number}", body)
        writing.append(time.perf_counter() - began)
    return [
        _row(f"opening a dataset of {count:,} parts", opening, "listing them and reading their manifests", looking),
        _row(f"committing a part to {count:,}", committing, f"publishing {len(body) / 1e3:,.0f} kB", writing),
    ]


def _row(what: str, ours: list[float], beside: str, floor: list[float]) -> Row:
    ratio = median(a / b for a, b in zip(ours, floor, strict=True))
    return Row(
        what=what, mms=f"{1e3 * median(ours):.1f} ms", beside=f"{beside} {1e3 * median(floor):.1f} ms", ratio=ratio
    )


def _look_at_all(folder: Path) -> None:
    for path, _, names in os.walk(folder):
        for name in names:
            os.stat(os.path.join(path, name))
            if name == manifest.NAME:
                Path(path, name).read_bytes()


def _of_large(folder: Path, pictures: int) -> Row:
    _make_large(folder, pictures)
    command = [sys.executable, "-W", "ignore", "-c", _READ, str(folder), str(BATCHES)]
    opened, read, rung = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    size = pictures * (PICTURE.row_bytes or 0)
    return Row(
        what=f"memory of a reader of {size / 1e9:.0f} GB, {rung}, batches of "
        f"{BATCH * (PICTURE.row_bytes or 0) / 2**20:.0f} MiB: opened; after {BATCHES} batches",
        mms=f"{opened / 2**20:.0f} MiB; {read / 2**20:.0f} MiB",
        beside=f"{LIMIT_MIB} MiB",
        ratio=read / 2**20 / LIMIT_MIB,
        target="<= 1.0",
    )


def _make_large(folder: Path, pictures: int) -> None:
    # Black pictures: of each the checksum is written, and all else is a hole in the file.
    dataset = Dataset.create(LocalStore(folder), "large")
    assert PICTURE.row_bytes is not None
    stride = parts.row_stride(PICTURE.row_bytes)
    with dataset.writer((PICTURE,)) as writer:  # a small part, for its metadata
        writer.write({"image": np.zeros((1, *PICTURE.fixed), np.uint8)})
        part = writer.close()
    root = folder / "parts" / part.id
    array = root / parts.GROUP / "image"
    shard_rows = parts.rows_per_shard(PICTURE)
    told = orjson.loads((array / "zarr.json").read_bytes())
    told["shape"][0] = pictures
    told["chunk_grid"]["configuration"]["chunk_shape"][0] = min(shard_rows, pictures)
    (array / "zarr.json").write_bytes(orjson.dumps(told))
    checksum = parts.crc32c(bytes(PICTURE.row_bytes)).to_bytes(4, "little")
    for shard, first in enumerate(range(0, pictures, shard_rows)):
        path = array / "c" / str(shard) / "0" / "0" / "0"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = min(shard_rows, pictures - first)
        with path.open("wb") as file:
            os.truncate(file.fileno(), rows * stride)
            for row in range(rows):
                os.pwrite(file.fileno(), checksum, row * stride + PICTURE.row_bytes)
    (root / manifest.NAME).unlink()
    entries = [
        {"path": each.key, "bytes": each.bytes, "sha256": _digest(root / each.key)}
        for each in LocalStore(root).walk("")
        if not each.key.endswith("/")
    ]
    body = orjson.dumps({"manifest_version": manifest.VERSION, "files": entries})
    (root / manifest.NAME).write_bytes(body)
    sealed = Sealed(id=part.id, rows=pictures, manifest=hashlib.sha256(body).hexdigest())
    dataset.commit(Addition(parts=[sealed], columns=(PICTURE,)), base=None, rebase=False)


def _digest(path: Path) -> str:
    # Of the shards nobody asks, and reading their holes would take minutes.
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**20 else "0" * 64
