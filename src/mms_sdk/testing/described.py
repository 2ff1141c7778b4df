"""Small rows and a small model, for work that engines do by its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage import files
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

LABELS = ("dark", "light")
_SHAPE = (4, 4, 1)


@dataclass(frozen=True)
class Rows:
    """A dataset to train on."""

    workspace: Workspace
    name: str

    def open(self) -> OpenSnapshot:
        """The newest snapshot."""
        return self.workspace.dataset(self.name).snapshot()


def write_pictures(workspace: Workspace, name: str, count: int) -> Rows:
    """Commits dark and light pictures, half of them to train on and a quarter each to validate and test."""
    columns = (
        Column(name="image", kind="image", dtype="uint8", shape=_SHAPE),
        Column(name="label", kind="label", dtype="int32", labels=LABELS),
        Column(name="source", kind="text", dtype="uint8", shape=None),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    rng = np.random.default_rng(0)
    codes = np.arange(count) % 2
    pictures = rng.integers(0, 128, (count, *_SHAPE)) + 128 * codes[:, None, None, None]
    splits = np.array([0, 0, 1, 2])[np.arange(count) // 2 % 4]
    dataset = workspace.open_or_create_dataset(name)
    with dataset.writer(columns) as writer:
        writer.write(
            {
                "image": pictures.astype(np.uint8),
                "label": codes.astype(np.int32),
                "source": [f"{number:06}".encode() for number in range(count)],
                "split": splits.astype(np.uint8),
            }
        )
        part = writer.close()
    addition = Addition(
        parts=(part,),
        columns=columns,
        splits={split: int((splits == code).sum()) for code, split in enumerate(SPLITS)},
        classes={label: int((codes == code).sum()) for code, label in enumerate(LABELS)},
    )
    dataset.commit(addition, base=None, rebase=False)
    return Rows(workspace, name)


def write_folder(root: Path, count: int) -> Path:
    """A folder of pictures, one sub-folder for each class."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for number in range(count):
        folder = root / LABELS[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(folder / f"{number:03}.png")
    return root


def register_model(workspace: Workspace, name: str, rows: Rows) -> int:
    """Trains a small model for an epoch and makes it a version; returns its number."""
    from mms_sdk.compute.inference.export import read_card
    from mms_sdk.compute.models import MLP
    from mms_sdk.compute.training.trainer import Trainer

    data: Any = rows
    trained = Trainer(model=MLP(num_classes=2, widths=(4,)), batch_size=64, epochs=1).fit(data, progress="none")
    staged, folder = workspace.stage()
    trained.best.export(folder)
    artifact, kept, digest = workspace.keep_artifact(staged)
    size = files.tree_bytes(kept)
    return workspace.catalog.models.add(name, artifact=artifact, digest=digest, size=size, card=read_card(kept))
