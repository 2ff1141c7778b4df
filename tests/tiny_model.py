"""One small trained model, made once a session, for every test that registers, serves or asks one.

Three classes of 8×6 pictures, told apart by their colour; an MLP; two epochs.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mms_sdk.storage import files
from mms_sdk.storage.workspace import Workspace

LABELS = ("ant", "bee", "cat")
SHAPE = (8, 6, 3)
_PER_CLASS = 40

Pictures = NDArray[np.uint8]
Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What training left.

    Attributes:
        photos: Folder of PNG files, one sub-folder a class.
        workspace: Folder of the workspace it was trained in, closed; holds the dataset `pets`, with splits.
        artifact: A sealed artefact; copy it before you touch it.
        result: What `fit` returned.
        mean: Of each channel of the training rows, by NumPy.
        std: Likewise.
    """

    photos: Path
    workspace: Path
    artifact: Path
    result: Any
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def scores(self, pictures: Pictures) -> Scores:
        """What the trained module says, with its preprocessing written down a second time, in NumPy."""
        import jax
        from flax import nnx

        from mms_sdk.compute.models import MLP

        module = MLP(num_classes=3, widths=(16,)).build(SHAPE, rngs=nnx.Rngs(0))
        graph, state = nnx.split(module)
        params = {path: np.asarray(value) for path, value in self.result.best.state.params.items()}
        flat = [
            (path, variable.replace(params["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)
        ]
        module = nnx.merge(graph, nnx.from_flat_state(flat))
        batch = ((pictures / 255 - self.mean) / self.std).astype(np.float32)
        logits = np.asarray(jax.device_get(module(batch)), np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)


def pictures_of(count: int, *, seed: int = 1) -> Pictures:
    """Random pictures, no two alike; shape (count, 8, 6, 3)."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (count, *SHAPE), np.uint8)
    pictures[:, 0, 0] = np.arange(count)[:, None] // np.array([1, 256, 65536]) % 256
    return pictures


@cache
def made_once(folder: Path) -> Tiny:
    """Draws the pictures, ingests them, trains, exports."""
    import optax

    import mms_sdk as mms

    photos = folder / "photos"
    rng = np.random.default_rng(0)
    for code, label in enumerate(LABELS):
        (photos / label).mkdir(parents=True)
        for number in range(_PER_CLASS):
            picture = rng.integers(0, 160, SHAPE, np.uint8)
            picture[..., code] += 30
            Image.fromarray(picture).save(photos / label / f"{number:03}.png")
    with mms.connect(workspace=folder / "workspace") as ws:
        pets = ws.datasets.ingest("pets", photos, split=mms.Split(train=0.6, val=0.2, test=0.2))
        trainer = mms.Trainer(
            model=mms.models.MLP(num_classes=3, widths=(16,)),
            optimizer=optax.adam(1e-2),
            preprocess=[mms.image.Normalize()],
            batch_size=24,
            epochs=2,
        )
        result = trainer.fit(pets, progress="none")
        artifact = folder / "artifact"
        artifact.mkdir()
        result.best.export(artifact, metrics={"test/accuracy": 0.5})
        opened = pets.open()
        rows = opened.split_rows("train")
        stored = opened.gather("image", rows) / 255
    return Tiny(
        photos=photos,
        workspace=folder / "workspace",
        artifact=artifact,
        result=result,
        mean=stored.mean((0, 1, 2)),
        std=stored.std((0, 1, 2)),
    )


def register(tiny: Tiny, workspace: Workspace, model: str = "tiny") -> int:
    """Makes the artefact the next version of a model, without the time it takes to try it; returns the version."""
    from mms_sdk.compute.inference.export import read_card

    staged, folder = workspace.stage()
    shutil.copytree(tiny.artifact, folder, dirs_exist_ok=True)
    artifact, kept, digest = workspace.keep_artifact(staged)
    size = files.tree_bytes(kept)
    return workspace.catalog.models.add(model, artifact=artifact, digest=digest, size=size, card=read_card(kept))
