"""Data that the measurements share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from mms_sdk.types import Array

CLASSES = 10
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Random:
    """A dataset of random pictures with labels, all of them in `train`; and the same in RAM."""

    workspace: Workspace
    pictures: Array
    labels: Array

    def open(self) -> OpenSnapshot:
        """The rows as MMS reads them, opened anew: no checksum of theirs is checked yet."""
        return self.workspace.dataset("random").snapshot()


def random_dataset(folder: Path, *, rows: int, shape: tuple[int, int, int]) -> Random:
    """Writes random pictures, uint8 of the given shape, into a new workspace."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (rows, *shape), np.uint8)
    labels = rng.integers(0, CLASSES, rows, np.int32)
    columns = (
        Column(name="image", kind="image", dtype="uint8", shape=shape, color="gray" if shape[-1] == 1 else "rgb"),
        Column(name="label", kind="label", dtype="int32", labels=tuple("0123456789")),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    workspace = Workspace(folder)
    dataset = workspace.open_or_create_dataset("random")
    with dataset.writer(columns) as writer:
        for start in range(0, rows, _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            splits = np.zeros(len(labels[some]), np.uint8)
            writer.write({"image": pictures[some], "label": labels[some], "split": splits})
        part = writer.close()
    dataset.commit(Addition(parts=(part,), columns=columns, splits={"train": rows}), base=None, rebase=False)
    return Random(workspace, pictures, labels)
