"""The predictor: an artefact, loaded, compiled for a ladder of batch sizes, and ready to answer."""

from __future__ import annotations

import bisect
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mms_sdk.compute.compile_cache import use_compile_cache
from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.kinds.rows import Pictures, RowKind, kind_of
from mms_sdk.compute.data.load import on_host
from mms_sdk.compute.data.preprocess.pipeline import Pipeline, from_json
from mms_sdk.compute.data.preprocess.series import lengthened
from mms_sdk.compute.inference.export import read_card
from mms_sdk.errors import Damaged, InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.model import ModelCard
from mms_sdk.schema.prediction import Prediction, Ranked
from mms_sdk.types import Array

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)
"""Batch sizes with a program of their own, for serving. Fine steps at the small end: padding costs most there."""

BULK_BUCKETS = (32, 256)
"""For bulk prediction: all batches but the last are full, so few programs are worth their compile time."""

_ANSWER_BYTES = 64 * 2**20  # of a batch of answers, which for texts have a score for each entry of the vocabulary


def bulk_buckets(card: ModelCard) -> tuple[int, ...]:
    """Those for bulk prediction, or smaller ones where answers are large."""
    largest = max(1, _ANSWER_BYTES // (4 * max(1, math.prod(card.signature.outputs[0].shape))))
    return tuple(sorted({min(size, largest) for size in BULK_BUCKETS}))


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
        use_compile_cache()
        self.card = read_card(folder)
        self.input_shape = self.card.signature.inputs[0].shape
        self.input_dtype = np.dtype(self.card.signature.inputs[0].dtype)
        self.columns = self.card.columns or (_picture_column(self.card),)
        self.kind = _kind(self.columns, max_pixels)
        self._pictures = self.kind.name == "image"
        self._pipeline = Pipeline(host=tuple(from_json(step) for step in self.card.host))
        self._weights, self._compile = _load(folder, self.card)
        self.buckets = tuple(buckets)
        self.compiles_after_ready = 0
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            self._programs = dict(zip(self.buckets, pool.map(self._compile, self.buckets), strict=True))
        for size, program in self._programs.items():
            np.asarray(program(self._weights, np.zeros((size, *self.input_shape), self.input_dtype)))
        self.ready_after_s = time.monotonic() - began

    def prepare(self, item: Any) -> Array:
        """One input as the device takes it.

        Args:
            item: Of the kind that the card tells. A picture: the bytes of a file, or uint8 of shape (height, width,
                channels) or, for one channel, (height, width). A text: a string, or UTF-8 bytes. A recording: the bytes
                of a file, an array of samples, or a pair of such an array and its rate in Hz. A series or an embedding:
                an array, or nested lists. A row of a table: a value for each column by name, None for none.

        Returns:
            Array of the signature's shape and dtype.

        Raises:
            InvalidInput: It is none of that kind, or has another shape or dtype than the model takes.
        """
        item = self.kind.given(item)
        # Host steps of pictures keep the channels, and cannot work on as many as pictures never have.
        odd = self._pictures and item.shape[-1] != self.input_shape[-1]
        row = item if odd else self._pipeline.on_row(item)
        row = row if self._pictures else np.asarray(row, self.input_dtype)
        if row.shape != self.input_shape:
            what = "pictures" if self._pictures else f"rows of kind {self.kind.name}"
            axes = " (height, width, channels)" if self._pictures else ""
            raise InvalidInput(
                f"this model takes {what} of shape {self.input_shape}{axes}; got {row.shape}; "
                f"resize or convert it first"
            )
        return row

    def prepare_stored(self, kind: RowKind, stored: Sequence[Any], *, ahead: int = 0) -> Array:
        """Rows of a dataset as the device takes them.

        Args:
            kind: What the rows are there.
            stored: What each of the columns holds, as `OpenSnapshot.gather` gives it.
            ahead: Steps of a series that come along behind those that the model takes.

        Returns:
            Array of shape (n, *signature's shape), the first axis of a row longer by `ahead`.

        Raises:
            InvalidInput: One of them cannot be prepared.
        """
        wanted = (self.input_shape[0] + ahead, *self.input_shape[1:])
        rows = on_host(lengthened(self._pipeline, ahead) if ahead else self._pipeline, kind, stored)
        if self.card.task == "forecasting":  # rows may have the steps to say as well; what comes after them is said
            rows = rows[:, -wanted[0] :]
        if rows.shape[1:] != wanted:
            raise InvalidInput(f"this model takes rows of shape {wanted}; got {rows.shape[1:]}; convert them first")
        return rows

    def scores(self, rows: Array) -> Array:
        """Scores of prepared rows.

        Args:
            rows: Shape (n, *input shape), any n.

        Returns:
            float32, shape (n, *output shape): (n, classes) where classes are ranked.
        """
        largest = self.buckets[-1]
        pieces = [self._run(rows[start : start + largest]) for start in range(0, len(rows), largest)]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.card.signature.outputs[0].shape), np.float32)

    def predict(self, items: Sequence[Any]) -> list[Prediction]:
        """Ranked classes of each input, or the numbers that the model answers."""
        if not items:
            return []
        scores = self.scores(np.stack([self.prepare(item) for item in items]))
        if not self.card.ranks:
            return [Prediction.model_construct(values=row.tolist()) for row in scores]
        return self.rank(scores)

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
            padded = np.zeros((size, *self.input_shape), self.input_dtype)
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


def _picture_column(card: ModelCard) -> Column:
    # Of a version that was made when there were pictures only.
    spec = card.signature.inputs[0]
    color: Literal["gray", "rgb"] = "gray" if spec.shape[-1] == 1 else "rgb"
    return Column(name="image", kind="image", dtype=spec.dtype, shape=spec.shape, color=color)


def _kind(columns: tuple[Column, ...], max_pixels: int) -> RowKind:
    try:
        kind = kind_of(columns)
    except InvalidRequest as error:
        raise Damaged(
            f"the model card has columns that make no row: {error.message}; export the model again"
        ) from error
    return replace(kind, max_pixels=max_pixels) if isinstance(kind, Pictures) else kind


def _load(folder: Path, card: ModelCard) -> tuple[Any, Any]:
    import jax
    from orbax.checkpoint import v1 as ocp

    said, output = card.signature.inputs[0], card.signature.outputs[0].shape
    input_shape, labels = said.shape, len(card.labels)
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
    # Without labels the output may be anything; with them, and one score each, classes are ranked.
    if (batch.shape[1:], str(batch.dtype), scores.shape[1:]) != (input_shape, said.dtype, output) or (
        card.task == "classification" and output != (labels,)
    ):
        raise Damaged(
            f"the artefact {folder} has a program from {batch.shape} {batch.dtype} to {scores.shape}, its model.json "
            f"says from {input_shape} {said.dtype} to {output} with {labels} labels; export the model again"
        )

    def compiled(rows: int) -> Any:
        batch = jax.ShapeDtypeStruct((rows, *input_shape), said.dtype)
        return jax.jit(exported.call).lower(weights, batch).compile()

    return weights, compiled
