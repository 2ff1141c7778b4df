"""A small dataset of each kind of row, made without an ingest, whose classes can be told apart; and a model for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import mms_sdk as mms
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

LABELS = ("ant", "bee", "cat")
ROWS = {"train": 120, "val": 30, "test": 30}
RATE_HZ = 8000
_WORDS = (("leaf", "crawl", "hill"), ("honey", "fly", "flower"), ("purr", "mouse", "sleep"))


@dataclass(frozen=True)
class SmallRows:
    """Something to train on."""

    workspace: Workspace
    name: str

    def open(self) -> OpenSnapshot:
        """The newest snapshot."""
        return self.workspace.dataset(self.name).snapshot()


def write(workspace: Workspace, name: str, columns: Sequence[Column], values: dict[str, Any]) -> SmallRows:
    """Commits rows with the columns `label` and `split` beside those given."""
    count = sum(ROWS.values())
    rng = np.random.default_rng(5)
    splits = np.repeat([SPLITS.index(split) for split in ROWS], list(ROWS.values())).astype(np.uint8)
    every = (
        *columns,
        Column(name="label", kind="label", dtype="int32", labels=LABELS),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    dataset = workspace.open_or_create_dataset(name)
    with dataset.writer(every) as writer:
        writer.write({**values, "label": classes_of(count), "split": rng.permutation(splits)})
        part = writer.close()
    found = Counter(LABELS[code] for code in classes_of(count))
    dataset.commit(Addition(parts=(part,), columns=every, splits=ROWS, classes=found), base=None, rebase=False)
    return SmallRows(workspace, name)


def classes_of(count: int) -> Any:
    """The class of each row."""
    return np.random.default_rng(0).integers(0, len(LABELS), count).astype(np.int32)


def _texts(rng: Any, classes: Any) -> tuple[list[Column], dict[str, Any]]:
    texts = [" ".join([*rng.choice(_WORDS[code], 3), *rng.choice(["the", "a", "and"], 4)]) for code in classes]
    return [Column(name="text", kind="text", dtype="uint8", shape=None)], {"text": [text.encode() for text in texts]}


def _table(rng: Any, classes: Any) -> tuple[list[Column], dict[str, Any]]:
    count = len(classes)
    size = classes * 2.0 + rng.normal(size=count)
    columns = [
        Column(name="size", kind="number", dtype="float64", nullable=True),
        Column(name="legs", kind="number", dtype="int64"),
        Column(name="colour", kind="category", dtype="int32", labels=("red", "blue", "white"), nullable=True),
        Column(name="seen", kind="timestamp", dtype="int64", unit="ms"),
    ]
    values = {
        "size": np.ma.MaskedArray(size, rng.random(count) < 0.1),
        "legs": np.where(classes == 2, 4, 6).astype(np.int64),
        "colour": np.ma.MaskedArray(
            np.where(rng.random(count) < 0.8, classes, 0).astype(np.int32), rng.random(count) < 0.1
        ),
        "seen": rng.integers(1_700_000_000_000, 1_710_000_000_000, count),
    }
    return columns, values


def _sounds(rng: Any, classes: Any) -> tuple[list[Column], dict[str, Any]]:
    columns = [Column(name="audio", kind="audio", dtype="int16", shape=(None, 1), rate_hz=RATE_HZ)]
    sounds = []
    for code in classes:
        time = np.arange(rng.integers(700, 1300)) / RATE_HZ
        wave = np.sin(2 * np.pi * 400 * (code + 1) * time + rng.random()) + 0.1 * rng.normal(size=len(time))
        sounds.append((8000 * wave)[:, None].astype(np.int16))
    return columns, {"audio": sounds}


def _series(rng: Any, classes: Any) -> tuple[list[Column], dict[str, Any]]:
    columns = [Column(name="track", kind="series", dtype="float64", shape=(None, 2), rate_hz=10.0)]
    places = np.stack([30.0 + 8 * classes, np.zeros(len(classes))], axis=1)
    tracks = [place[None] + rng.normal(size=(rng.integers(8, 15), 2)) for place in places]
    return columns, {"track": tracks}


def _embeddings(rng: Any, classes: Any) -> tuple[list[Column], dict[str, Any]]:
    vectors = rng.normal(size=(len(classes), 6))
    vectors[np.arange(len(classes)), classes] += 3
    return [Column(name="vector", kind="embedding", dtype="float64", shape=(6,))], {"vector": vectors}


_MAKE: dict[str, Callable[[Any, Any], tuple[list[Column], dict[str, Any]]]] = {
    "text": _texts,
    "table": _table,
    "audio": _sounds,
    "series": _series,
    "embedding": _embeddings,
}
KINDS = tuple(_MAKE)


def make(root: Path, kind: str) -> SmallRows:
    """The dataset of a kind, in a workspace of its own."""
    columns, values = _MAKE[kind](np.random.default_rng(1), classes_of(sum(ROWS.values())))
    return write(Workspace(root), kind, columns, values)


class Words(nnx.Module):
    """The mean of learned vectors of ids, without those of padding, and a linear layer."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(300, 16, rngs=rngs)
        self.head = nnx.Linear(16, len(LABELS), rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        assert ids.dtype == np.int32
        there = (ids != 0)[..., None].astype(np.float32)
        return self.head((self.embed(ids) * there).sum(1) / there.sum(1))


STEPS: dict[str, list[Any]] = {
    "text": [mms.text.Bytes(48)],
    "table": [],
    "audio": [
        mms.audio.Waveform(rate_hz=4000, seconds=0.125),
        mms.audio.LogMel(mels=12, window=128, hop=64, rate_hz=4000),
        mms.series.Standardize(),
    ],
    "series": [mms.series.Window(10), mms.series.Standardize()],
    "embedding": [],
}


def trainer(kind: str, **options: Any) -> mms.Trainer:
    """How to train on it."""
    import optax

    model: Any = Words if kind == "text" else mms.models.MLP(num_classes=len(LABELS), widths=(32,))
    told: dict[str, Any] = {
        "model": model,
        "optimizer": optax.adam(3e-2 if kind == "text" else 1e-2),
        "preprocess": STEPS[kind],
        "batch_size": 8,
        "epochs": 4,
    }
    return mms.Trainer(**(told | options))
