"""Data that the measurements share."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from mms_sdk.types import Array

CLASSES = 10
FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_PACKAGE = "dataset-fashion-mnist"
_ROWS_AT_ONCE = 8192
_UBYTE = 8  # the type of values that a header of the IDX format names


@dataclass(frozen=True)
class Kept:
    """A dataset in a workspace of its own."""

    workspace: Workspace
    name: str

    def open(self) -> OpenSnapshot:
        """The rows as MMS reads them, opened anew: no checksum of theirs is checked yet."""
        return self.workspace.dataset(self.name).snapshot()


@dataclass(frozen=True)
class Labelled:
    """Pictures in RAM, uint8 (rows, height, width, channels), and their classes, int32 (rows,)."""

    pictures: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pictures(Kept):
    """A dataset of pictures, and the same in RAM."""

    train: Labelled
    test: Labelled


def random_dataset(folder: Path, *, rows: int, shape: tuple[int, int, int]) -> Pictures:
    """Random pictures of the given shape, all of them in `train`."""
    rng = np.random.default_rng(0)
    train = Labelled(rng.integers(0, 256, (rows, *shape), np.uint8), rng.integers(0, CLASSES, rows, np.int32))
    return _written(folder, "random", train, Labelled(train.pictures[:0], train.labels[:0]))


def fashion(folder: Path, *, multiple_of: int, at_most: int | None = None) -> Pictures | None:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 28×28×1, in the splits it comes with; None if it is not installed.

    Args:
        folder: Of the new workspace.
        multiple_of: Training rows are a multiple of this: the few at the end that fill no batch are left out.
        at_most: No more training rows than these.
    """
    if not FASHION.is_dir():
        return None
    train, test = (
        Labelled(
            read_idx(FASHION / f"{part}-images-idx3-ubyte.gz")[..., None],
            read_idx(FASHION / f"{part}-labels-idx1-ubyte.gz").astype(np.int32),
        )
        for part in ("train", "t10k")
    )
    rows = min(len(train), at_most or len(train)) // multiple_of * multiple_of
    return _written(folder, "fashion", Labelled(train.pictures[:rows], train.labels[:rows]), test)


def read_idx(path: Path) -> Array:
    """The array in a gzipped file of the IDX format, of bytes.

    Raises:
        ValueError: It holds something else, or not as much as its header says.
    """
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != bytes([0, 0, _UBYTE]):
        raise ValueError(f"an IDX file of bytes begins with 0, 0, {_UBYTE}; {path} begins with {list(data[:3])}")
    shape = np.frombuffer(data, ">u4", data[3], 4).tolist()
    values = data[4 + 4 * len(shape) :]
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} says that it has the shape {shape}, and holds {len(values)} values")
    return np.frombuffer(bytearray(values), np.uint8).reshape(shape)


def texts(folder: Path, *, rows: int, length: int) -> Kept:
    """Random texts of so many bytes, all of them in `train`."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (rows, length), np.uint8)
    columns = (Column(name="text", kind="text", dtype="uint8", shape=None),)
    return _committed(folder, "texts", columns, {"text": [row.tobytes() for row in letters]}, {"train": rows})


def _written(folder: Path, name: str, train: Labelled, test: Labelled) -> Pictures:
    shape = train.pictures.shape[1:]
    columns = (
        Column(name="image", kind="image", dtype="uint8", shape=shape, color="gray" if shape[-1] == 1 else "rgb"),
        Column(name="label", kind="label", dtype="int32", labels=tuple("0123456789")),
    )
    values = {
        "image": np.concatenate([train.pictures, test.pictures]),
        "label": np.concatenate([train.labels, test.labels]),
    }
    splits = {"train": len(train), "test": len(test)}
    kept = _committed(folder, name, columns, values, {split: rows for split, rows in splits.items() if rows})
    return Pictures(kept.workspace, name, train, test)


def _committed(
    folder: Path, name: str, columns: Sequence[Column], values: dict[str, Any], splits: dict[str, int]
) -> Kept:
    every = (*columns, Column(name="split", kind="split", dtype="uint8", labels=SPLITS))
    codes = np.repeat([SPLITS.index(split) for split in splits], list(splits.values())).astype(np.uint8)
    workspace = Workspace(folder)
    dataset = workspace.open_or_create_dataset(name)
    with dataset.writer(every) as writer:
        for start in range(0, len(codes), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            writer.write({**{column: kept[some] for column, kept in values.items()}, "split": codes[some]})
        part = writer.close()
    dataset.commit(Addition(parts=(part,), columns=every, splits=splits), base=None, rebase=False)
    return Kept(workspace, name)
