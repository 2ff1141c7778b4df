"""Artefacts made by hand: a linear model without training, and the trained one with something about it spoilt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orjson
from numpy.typing import NDArray
from orbax.checkpoint import v1 as ocp

from mms_sdk.storage import manifest


def linear(folder: Path, kernel: NDArray[np.float32], *, shape: tuple[int, ...], host: Sequence[Any] = ()) -> Path:
    """Seals a softmax over `pixels / 255 @ kernel`, with classes `c0`, `c1`, …"""

    def forward(weights: dict[str, Any], batch: Any) -> Any:
        flat = batch.reshape(batch.shape[0], -1).astype(np.float32) / 255
        return jax.nn.softmax(flat @ weights["params/kernel"])

    folder.mkdir(parents=True)
    (rows,) = jax.export.symbolic_shape("batch")
    specs = ({"params/kernel": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)},)
    batch = jax.ShapeDtypeStruct((rows, *shape), np.uint8)
    exported = jax.export.export(jax.jit(forward), platforms=("cpu",))(*specs, batch)
    (folder / "forward.stablehlo").write_bytes(exported.serialize())
    ocp.save(folder / "weights", {"params/kernel": jax.numpy.asarray(kernel)})
    labels = [f"c{code}" for code in range(kernel.shape[1])]
    card = {
        "artifact_version": 1,
        "task": "classification",
        "kind": "image",
        "signature": {
            "inputs": [{"name": "image", "dtype": "uint8", "shape": shape}],
            "outputs": [{"name": "scores", "dtype": "float32", "shape": [len(labels)]}],
        },
        "host": list(host),
        "device": [],
        "labels": labels,
        "metrics": {},
        "lineage": {"dataset": "none@1", "job": "none", "step": 0},
        "platforms": ["cpu"],
        "parameters": kernel.size,
        "created_at": "2026-01-01T00:00:00Z",
    }
    (folder / "model.json").write_bytes(orjson.dumps(card))
    manifest.seal(folder)
    return folder


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = orjson.loads((folder / "model.json").read_bytes())
    change(card)
    (folder / "model.json").write_bytes(orjson.dumps(card))


def seal_again(folder: Path) -> None:
    (folder / manifest.NAME).unlink()
    manifest.seal(folder)


@dataclass(frozen=True)
class Spoilt:
    """Stands for a checkpoint; its export is the artefact at `source`, spoilt, and sealed as if it were good."""

    source: Path
    spoil: Callable[[Path], object] = lambda _folder: None

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        shutil.copytree(self.source, folder, dirs_exist_ok=True)
        self.spoil(folder)
        seal_again(folder)
