"""The reader: shuffled epochs of raw and of compressed datasets, beside fancy indexing of a NumPy memmap.

Beside them, in the same run, the peers that are installed: see `benchmarks.peers`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.data import CLASSES
from benchmarks.table import Row, in_turns, speedup
from mms_sdk.schema.dataset import SPLITS, Column, Profile
from mms_sdk.storage import codecs
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.parts import COMPRESSED_CHUNK_BYTES
from mms_sdk.storage.reader import Memory, Reader
from mms_sdk.storage.workspace import Workspace
from mms_sdk.types import Array

WINDOW_BYTES = 64 * 2**20
IN_A_ROW = 4  # epochs, so that the window that is decoded ahead at the end of one is no gift to the next
PAUSE_S = 0.25  # before them, so that what one reader decodes ahead is done before another is measured
_AT_ONCE_BYTES = 2**25
_PEER_ROUNDS = 3  # some of them take a hundred times as long


@dataclass(frozen=True, kw_only=True)
class Case:
    """A size of pictures, and the ratio to the memmap that each way of reading should reach."""

    rows: int
    side: int
    batch: int
    targets: Mapping[str, str]

    @property
    def what(self) -> str:
        """As the table says it."""
        return f"shuffled epochs, {self.rows:,} rows of {self.side}×{self.side}×3, batch {self.batch}"


CASES = (
    Case(
        rows=50_000,
        side=32,
        batch=256,
        targets={"raw": ">= 0.75", "blosc window": ">= 0.45", "zstd window": ">= 0.30"},
    ),
    Case(rows=5_000, side=224, batch=64, targets={"raw": ">= 1.00", "blosc window": ">= 0.65"}),
)


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    return [row for case in CASES for row in _measured(folder / str(case.side), case, rounds=2 if quick else 9)]


def _measured(folder: Path, case: Case, *, rounds: int) -> list[Row]:
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, CLASSES, case.rows, np.int32)
    memmap = _saved(folder / "pictures.npy", case)
    workspace = Workspace(folder / "workspace")
    weighs = {profile: _written(workspace, profile, memmap, labels) for profile in ("raw", "blosc", "zstd")}
    readers = {
        "raw": _reader(workspace, "raw", case, Memory()),
        "blosc window": _reader(workspace, "blosc", case, Memory(rung="window", window_bytes=WINDOW_BYTES)),
        "zstd window": _reader(workspace, "zstd", case, Memory(rung="window", window_bytes=WINDOW_BYTES)),
        "blosc decoded once": _reader(workspace, "blosc", case, Memory(rung="ram")),
    }
    for reader in readers.values():
        _epoch(reader)  # compares each raw row's checksum, and decodes what is decoded once
    runs = {name: _in_a_row(lambda reader=reader: _epoch(reader)) for name, reader in readers.items()}  # type: ignore[misc]
    runs["memmap"] = _in_a_row(lambda: _gathered(memmap, labels, case))
    runs["decoded and copied"] = _in_a_row(_decoding(memmap))
    runs["first"] = lambda: _epoch(_reader(workspace, "raw", case, Memory()))
    others = peers.epochs(memmap, labels, batch=case.batch)
    seen = in_turns(runs, rounds) | in_turns({**others, "raw, beside peers": runs["raw"]}, min(rounds, _PEER_ROUNDS))
    speed = {name: f"{case.rows / median(seconds) / 1e3:,.0f} k rows/s" for name, seconds in seen.items()}
    found = []
    for name in readers:
        share = weighs[name.split()[0]] / weighs["raw"]  # type: ignore[index]
        found.append(
            Row(
                what=f"{case.what}; {name}, {share:.2f} of the bytes of raw",
                mms=speed[name],
                beside=f"npy memmap {speed['memmap']}",
                ratio=speedup(seen[name], seen["memmap"]),
                target=case.targets.get(name, ""),
            )
        )
    limit = Row(
        what=f"{case.what}; blosc window, beside decoding chunks on all cores and copying each row once",
        mms=speed["blosc window"],
        beside=f"no more than that {speed['decoded and copied']}",
        ratio=speedup(seen["blosc window"], seen["decoded and copied"]),
    )
    first = Row(
        what=f"{case.what}; raw, first epoch, which checks each row's crc32c",
        mms=speed["first"],
        beside=f"later epochs {speed['raw']}",
        ratio=speedup(seen["first"], seen["raw"]),
    )
    beside = [
        Row(
            what=f"{case.what}; raw, beside {name}",
            mms=speed["raw, beside peers"],
            beside=f"{name} {speed[name]}",
            ratio=speedup(seen["raw, beside peers"], seen[name]),
        )
        for name in others
    ]
    return [*found, limit, first, *beside]


def _saved(path: Path, case: Case) -> Array:
    rng = np.random.default_rng(0)
    shape = (case.rows, case.side, case.side, 3)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    step = max(1, _AT_ONCE_BYTES // (8 * case.side**2 * 3))
    for start in range(0, case.rows, step):
        out[start : start + step] = pictures(rng, len(out[start : start + step]), case.side)
    out.flush()
    memmap: Array = np.load(path, mmap_mode="r")
    return memmap


def pictures(rng: np.random.Generator, count: int, side: int) -> Array:
    """Flat grounds and soft waves, with a little noise on the waves: neither random bytes nor constant ones."""
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    turns, phase = rng.uniform(1, 9, (2, count, 1, 1, 1)), rng.uniform(0, 6, (count, 1, 1, 3))
    wave = np.sin(turns[0] * across[..., None] + turns[1] * down[..., None] + phase)
    noisy = 128 + 90 * wave + rng.normal(0, 2, wave.shape)
    ground = rng.integers(0, 256, (count, 1, 1, 3))
    pictured = (across - 0.5) ** 2 + (down - 0.5) ** 2 < 0.16
    return np.where(pictured[..., None], noisy, ground).clip(0, 255).astype(np.uint8)


def _written(workspace: Workspace, profile: Profile, pictures: Array, labels: Array) -> int:
    columns = (
        Column(name="image", kind="image", dtype="uint8", shape=pictures.shape[1:], color="rgb", profile=profile),
        Column(name="label", kind="label", dtype="int32", labels=tuple("0123456789")),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    dataset = workspace.open_or_create_dataset(profile)
    step = max(1, _AT_ONCE_BYTES // pictures[0].nbytes)
    with dataset.writer(columns) as writer:
        for start in range(0, len(labels), step):
            some = slice(start, start + step)
            splits = np.zeros(len(labels[some]), np.uint8)
            writer.write({"image": pictures[some], "label": labels[some], "split": splits})
        part = writer.close()
    dataset.commit(Addition(parts=(part,), columns=columns, splits={"train": len(labels)}), base=None, rebase=False)
    return dataset.snapshot().bytes


def _reader(workspace: Workspace, profile: Profile, case: Case, memory: Memory) -> Reader:
    snapshot = workspace.dataset(profile).snapshot()
    return Reader(snapshot, "train", columns=("image", "label"), batch_size=case.batch, seed=0, memory=memory)


def _epoch(reader: Reader) -> float:
    began = time.perf_counter()
    for batch in reader.epoch():
        assert len(batch.columns["image"]) == reader.batch_size
    return time.perf_counter() - began


def _in_a_row(epoch: Callable[[], float]) -> Callable[[], float]:
    def several() -> float:
        time.sleep(PAUSE_S)
        return sum(epoch() for _ in range(IN_A_ROW)) / IN_A_ROW

    return several


def _decoding(pictures: Array) -> Callable[[], float]:
    # What a window costs at least: chunks are decoded where a core's cache holds them, rows are copied to their places.
    row_bytes = pictures[0].nbytes
    chunk = max(1, COMPRESSED_CHUNK_BYTES // row_bytes)
    rows = pictures.reshape(len(pictures), row_bytes)
    starts = range(0, len(rows) - chunk + 1, chunk)
    encoded = [codecs.encode("blosc", rows[start : start + chunk].tobytes(), item_bytes=1) for start in starts]
    windows = [np.empty((WINDOW_BYTES // 2 // row_bytes, row_bytes), np.uint8) for _ in range(2)]
    in_window = len(windows[0]) // chunk
    cores = os.cpu_count() or 1

    def some(window: Array, number: int, core: int, places: Array) -> None:
        scratch = np.empty((chunk, row_bytes), np.uint8)
        for at in range(core, len(encoded[number : number + in_window]), cores):
            codecs.decode("blosc", encoded[number + at], scratch)
            window[places[at * chunk : (at + 1) * chunk]] = scratch

    def epoch() -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            for turn, number in enumerate(range(0, len(encoded), in_window)):
                places = np.random.default_rng(number).permutation(in_window * chunk)
                work = [pool.submit(some, windows[turn % 2], number, core, places) for core in range(cores)]
                for each in work:
                    each.result()
        return time.perf_counter() - began

    return epoch


def _gathered(pictures: Any, labels: Any, case: Case) -> float:
    began = time.perf_counter()
    order = np.random.default_rng(0).permutation(case.rows)
    for start in range(0, case.rows, case.batch):
        rows = order[start : start + case.batch]
        _ = pictures[rows], labels[rows]
    return time.perf_counter() - began
