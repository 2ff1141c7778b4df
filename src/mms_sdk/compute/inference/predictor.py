"""The predictor: an artefact, loaded, compiled for a ladder of batch sizes, and ready to answer."""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.preprocess.pipeline import Pipeline, from_json
from mms_sdk.compute.inference.export import read_card
from mms_sdk.errors import Damaged, InvalidInput
from mms_sdk.schema.prediction import Prediction, Ranked
from mms_sdk.types import Array

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)
"""Batch sizes with a program of their own, for serving. Fine steps at the small end: padding costs most there."""

BULK_BUCKETS = (32, 256)
"""For bulk prediction: all batches but the last are full, so few programs are worth their compile time."""


class Predictor:
    """A model ready to predict. Thread-safe once made.

    Args:
        folder: A verified artefact.
        buckets: Batch sizes to compile, ascending; larger batches are cut.
        max_pixels: Larger pictures are refused.

    Raises:
        Damaged: The artefact does not load.
    """

    def __init__(
        self, folder: Path, *, buckets: Sequence[int] = BUCKETS, max_pixels: int = image.DEFAULT_MAX_PIXELS
    ) -> None:
        began = time.monotonic()
        self.card = read_card(folder)
        self.input_shape = self.card.signature.inputs[0].shape
        self._max_pixels = max_pixels
        self._pipeline = Pipeline(host=tuple(from_json(step) for step in self.card.host))
        self._weights, self._compile = _load(folder, self.input_shape, len(self.card.labels))
        self.buckets = tuple(buckets)
        self.compiles_after_ready = 0
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            self._programs = dict(zip(self.buckets, pool.map(self._compile, self.buckets), strict=True))
        for size, program in self._programs.items():
            np.asarray(program(self._weights, np.zeros((size, *self.input_shape), np.uint8)))
        self.ready_after_s = time.monotonic() - began

    def prepare(self, item: bytes | Array) -> Array:
        """One input as the device takes it.

        Args:
            item: The bytes of a picture file, or uint8 of shape (height, width, channels) or, for one channel,
                (height, width).

        Returns:
            uint8, of the signature's shape.

        Raises:
            InvalidInput: It does not decode, or has another shape or dtype than the model takes.
        """
        if isinstance(item, bytes):
            item = image.decode(item, color="gray" if self.input_shape[-1] == 1 else "rgb", max_pixels=self._max_pixels)
        elif item.ndim == 2 and self.input_shape[-1] == 1:
            item = item[:, :, None]
        if item.dtype != np.uint8 or item.ndim != 3 or 0 in item.shape:
            raise InvalidInput(
                f"a picture is uint8 of shape (height, width, channels); got {item.dtype} of shape {item.shape}; "
                f"convert it first"
            )
        # Host steps keep the channels, and cannot work on as many as pictures never have.
        row = self._pipeline.on_row(item) if item.shape[-1] == self.input_shape[-1] else item
        if row.shape != self.input_shape:
            raise InvalidInput(
                f"this model takes pictures of shape {self.input_shape} (height, width, channels); got {row.shape}; "
                f"resize or convert it first"
            )
        return row

    def scores(self, rows: Array) -> Array:
        """Scores of prepared rows.

        Args:
            rows: uint8, shape (n, *input shape), any n.

        Returns:
            float32, shape (n, classes).
        """
        largest = self.buckets[-1]
        pieces = [self._run(rows[start : start + largest]) for start in range(0, len(rows), largest)]
        return np.concatenate(pieces) if pieces else np.empty((0, len(self.card.labels)), np.float32)

    def predict(self, items: Sequence[bytes | Array]) -> list[Prediction]:
        """Ranked classes of each input."""
        if not items:
            return []
        return self.rank(self.scores(np.stack([self.prepare(item) for item in items])))

    def rank(self, scores: Array, top: int = 0) -> list[Prediction]:
        """Scores as ranked classes.

        Args:
            scores: float32, shape (n, classes).
            top: Classes kept; 0 for all.
        """
        return [
            Prediction.model_construct(
                ranked=tuple(Ranked.model_construct(label=label, score=score) for label, score in ranked)
            )
            for ranked in self.ranked(scores, top)
        ]

    def ranked(self, scores: Array, top: int = 0) -> list[list[tuple[str, float]]]:
        """The same as plain (label, score) pairs, for those who count microseconds."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, : top or None]
        labels = self.card.labels
        return [
            [(labels[index], row[index]) for index in indices]
            for row, indices in zip(scores.tolist(), order.tolist(), strict=True)
        ]

    def bucket(self, rows: int) -> int:
        """The smallest compiled batch size that holds so many rows."""
        return self.buckets[bisect.bisect_left(self.buckets, rows)]

    def _run(self, rows: Array) -> Array:
        size = self.bucket(len(rows))
        if size != len(rows):
            padded = np.zeros((size, *self.input_shape), np.uint8)
            padded[: len(rows)] = rows
            return np.asarray(self._program(size)(self._weights, padded))[: len(rows)]
        return np.asarray(self._program(size)(self._weights, np.ascontiguousarray(rows)))

    def _program(self, size: int) -> Any:
        if (
            size not in self._programs
        ):  # every bucket is compiled before it is ready; the counter shows that it stays so
            self.compiles_after_ready += 1
            self._programs[size] = self._compile(size)
        return self._programs[size]


def _load(folder: Path, input_shape: tuple[int, ...], labels: int) -> tuple[Any, Any]:
    import jax
    from orbax.checkpoint import v1 as ocp

    try:
        exported = jax.export.deserialize(bytearray((folder / "forward.stablehlo").read_bytes()))
        (shapes, batch), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        (scores,) = exported.out_avals
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            path: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=device) for path, value in shapes.items()
        }
        weights = ocp.load(folder / "weights", target)
    except Exception as error:  # the bytes are those registered, so this is a format this jax or Orbax cannot read
        raise Damaged(f"the artefact {folder} does not load with the installed jax and Orbax: {error}") from error
    if (batch.shape[1:], scores.shape[1:]) != (input_shape, (labels,)):
        raise Damaged(
            f"the artefact {folder} has a program from {batch.shape} to {scores.shape}, its model.json says from "
            f"{input_shape} to {labels} labels; export the model again"
        )

    def compiled(rows: int) -> Any:
        batch = jax.ShapeDtypeStruct((rows, *input_shape), np.uint8)
        return jax.jit(exported.call).lower(weights, batch).compile()

    return weights, compiled
