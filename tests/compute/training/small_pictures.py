"""A dataset of small pictures, made without an ingest, and a model small enough to be written down a second time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

SHAPE = (4, 3, 1)
LABELS = ("ant", "bee", "cat")
ROWS = {"train": 70, "val": 21, "test": 19}


@dataclass(frozen=True)
class SmallData:
    """Something to train on."""

    workspace: Workspace
    name: str = "pets"

    def open(self) -> OpenSnapshot:
        """The newest snapshot."""
        return self.workspace.dataset(self.name).snapshot()

    def rows(self, split: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Pictures in [0, 1] and labels of a split, in row order."""
        snapshot = self.open()
        rows = snapshot.split_rows(split)
        return (snapshot.gather("image", rows) / 255).astype(np.float32), snapshot.values("label")[rows]


def make_data(
    root: Path, *, rows: dict[str, int] = ROWS, labels: tuple[str, ...] = LABELS, seed: int = 0, white: int = 0
) -> SmallData:
    """Pictures whose class shows in one of their columns, in a workspace of their own.

    None of them is white, but the first few training rows if that is asked for.
    """
    rng = np.random.default_rng(seed)
    count = sum(rows.values())
    classes = rng.integers(0, len(labels), count).astype(np.int32)
    pictures = rng.integers(0, 200, (count, *SHAPE), np.uint8)
    pictures[np.arange(count), :, classes % SHAPE[1]] += 55
    splits = rng.permutation(np.repeat([SPLITS.index(name) for name in rows], list(rows.values())).astype(np.uint8))
    pictures[np.flatnonzero(splits == SPLITS.index("train"))[:white]] = 255
    columns = (
        Column(name="image", kind="image", dtype="uint8", shape=SHAPE, color="gray"),
        Column(name="label", kind="label", dtype="int32", labels=labels),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    data = SmallData(Workspace(root))
    dataset = data.workspace.open_or_create_dataset(data.name)
    with dataset.writer(columns) as writer:
        writer.write({"image": pictures, "label": classes, "split": splits})
        part = writer.close()
    addition = Addition(
        parts=(part,),
        columns=columns,
        splits=rows,
        classes=Counter(labels[code] for code in classes),
    )
    dataset.commit(addition, base=None, rebase=False)
    return data


class Noisy(nnx.Module):
    """Batch normalisation and dropout between two layers: state that is carried, and noise that must come again."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(12, 16, use_bias=False, rngs=rngs)  # a bias before it would train on noise
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.second = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.first(x.reshape(x.shape[0], 12))))
        return self.second(self.dropout(x))


def noisy(rngs: nnx.Rngs) -> Noisy:
    """Makes one."""
    return Noisy(rngs=rngs)


def mlp_scores(params: Any, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """What `mms.models.MLP` with one hidden layer says, in NumPy and double precision."""
    weights = {path: np.asarray(value, np.float64) for path, value in params.items()}
    hidden = pictures.reshape(len(pictures), -1) @ weights["layers/0/kernel"] + weights["layers/0/bias"]
    return np.maximum(hidden, 0) @ weights["head/kernel"] + weights["head/bias"]


def metrics_of(scores: NDArray[np.float64], labels: NDArray[np.int32], prefix: str) -> dict[str, float]:
    """Mean cross-entropy and accuracy, in NumPy."""
    shifted = scores - scores.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return {
        f"{prefix}/loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        f"{prefix}/accuracy": float((scores.argmax(1) == labels).mean()),
    }
