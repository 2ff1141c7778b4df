"""Datasets small enough to make by the hundred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset

IMAGE = Column(name="image", kind="image", dtype="uint8", shape=(8, 6, 3), color="rgb")
LABEL = Column(name="label", kind="label", dtype="int32", labels=("cat", "dog", "eel"))
SOURCE = Column(name="source", kind="text", dtype="uint8", shape=None)
SPLIT = Column(name="split", kind="split", dtype="uint8", labels=SPLITS)
COLUMNS = (IMAGE, LABEL, SOURCE, SPLIT)

Content = Mapping[str, Any]


def content_of(rows: int, *, seed: int = 0) -> Content:
    """Random rows for `COLUMNS`."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, 8, 6, 3), np.uint8),
        "label": rng.integers(0, 3, rows).astype(np.int32),
        "source": [f"cat/{seed}-{row}-ü€😀.png".encode() for row in range(rows)],
        "split": rng.integers(0, 3, rows).astype(np.uint8),
    }


def add(dataset: Dataset, content: Content, *, columns: tuple[Column, ...] = COLUMNS, rebase: bool = False) -> int:
    """Commits rows as one part; returns the snapshot's number."""
    with dataset.writer(columns) as writer:
        writer.write(content)
        part = writer.close()
    base = dataset.record() if dataset.snapshots() else None
    codes = content.get("split", ())
    splits = {name: int(np.sum(np.asarray(codes) == code)) for code, name in enumerate(SPLITS)}
    addition = Addition(parts=[part], columns=columns, splits=splits)
    return dataset.commit(addition, base=base, rebase=rebase).number
