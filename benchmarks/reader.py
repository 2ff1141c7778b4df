"""The reader: shuffled epochs of a raw Zarr dataset, beside fancy indexing of a NumPy memmap and of an array in RAM."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.data import Random, random_dataset
from benchmarks.table import Row, in_turns, speedup
from mms_sdk.storage.reader import Reader

ROWS, SHAPE, BATCH = 50_000, (32, 32, 3), 256


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    data = random_dataset(folder / "workspace", rows=ROWS, shape=SHAPE)
    np.save(folder / "pictures.npy", data.pictures)
    memmap = np.load(folder / "pictures.npy", mmap_mode="r")
    reader = _reader(data)
    _timed_epoch(reader)  # checks every row's checksum
    seen = in_turns(
        {
            "ours": lambda: _timed_epoch(reader),
            "memmap": lambda: _timed_gather(memmap, data.labels),
            "ram": lambda: _timed_gather(data.pictures, data.labels),
            "first": lambda: _timed_epoch(_reader(data)),
        },
        3 if quick else 25,
    )
    what = f"shuffled epochs, {ROWS:,} rows of 32×32×3, batch {BATCH}"
    speed = {name: f"{ROWS / median(seconds) / 1e6:.2f} M rows/s" for name, seconds in seen.items()}
    return [
        Row(
            what=f"{what}; second epoch and later",
            mms=speed["ours"],
            beside=f"npy memmap {speed['memmap']}",
            ratio=speedup(seen["ours"], seen["memmap"]),
            target=">= 0.75",
        ),
        Row(
            what="the same",
            mms=speed["ours"],
            beside=f"array in RAM {speed['ram']}",
            ratio=speedup(seen["ours"], seen["ram"]),
        ),
        Row(
            what="the same; first epoch, which checks each row's crc32c",
            mms=speed["first"],
            beside=f"later epochs {speed['ours']}",
            ratio=speedup(seen["first"], seen["ours"]),
        ),
    ]


def _reader(data: Random) -> Reader:
    return Reader(data.open(), "train", columns=("image", "label"), batch_size=BATCH, seed=0)


def _timed_epoch(reader: Reader) -> float:
    began = time.perf_counter()
    for batch in reader.epoch():
        assert len(batch.columns["image"]) == BATCH
    return time.perf_counter() - began


def _timed_gather(pictures: Any, labels: Any) -> float:
    began = time.perf_counter()
    order = np.random.default_rng(0).permutation(ROWS)
    for start in range(0, ROWS, BATCH):
        rows = order[start : start + BATCH]
        _ = pictures[rows], labels[rows]
    return time.perf_counter() - began
