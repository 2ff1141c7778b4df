"""Other readers of the same pictures: shuffled epochs by torch, tf.data and grain, where they are installed.

    pip install grain tensorflow-cpu torch

Each is used as its own documentation shows, reading the memmap that MMS is compared with. None is a dependency of MMS.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

from mms_sdk.types import Array

Epochs = dict[str, Callable[[], float]]
"""Seconds that one epoch takes, by the peer's name."""


def epochs(pictures: Array, labels: Array, *, batch: int) -> Epochs:
    """The peers that are installed."""
    made = {"torch": _torch, "tensorflow": _tf_data, "grain": _grain}
    found: Epochs = {}
    for package, make in made.items():
        if importlib.util.find_spec(package) is not None:
            found |= make(pictures, labels, batch)
    return found


def _torch(pictures: Array, labels: Array, batch: int) -> Epochs:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Pictures(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> Any:
            return torch.from_numpy(pictures[row].copy()), int(labels[row])

    class Batches(Pictures):
        def __getitems__(self, rows: list[int]) -> Any:  # what DataLoader asks for whole batches, if it is there
            return torch.from_numpy(pictures[rows]), torch.from_numpy(labels[rows])

    by_row = DataLoader(Pictures(), batch_size=batch, shuffle=True)
    by_batch = DataLoader(Batches(), batch_size=batch, shuffle=True, collate_fn=lambda rows: rows)
    return {
        "torch DataLoader": lambda: _through(by_row),
        "torch DataLoader with __getitems__": lambda: _through(by_batch),
    }


def _tf_data(pictures: Array, labels: Array, batch: int) -> Epochs:
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((pictures, labels))
    shuffled = rows.shuffle(len(pictures)).batch(batch).prefetch(tf.data.AUTOTUNE)
    return {"tf.data": lambda: _through(shuffled)}


def _grain(pictures: Array, labels: Array, batch: int) -> Epochs:
    import grain

    class Pictures:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> Any:
            return {"image": pictures[row], "label": labels[row]}

    read = grain.MapDataset.source(Pictures()).shuffle(seed=0).batch(batch).to_iter_dataset()
    return {"grain": lambda: _through(read)}


def _through(batches: Iterable[Any]) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began
