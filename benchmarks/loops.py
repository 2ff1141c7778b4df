"""Training of one model in loops that take the same steps: that of MMS, and one written by hand over flat arrays.

Each keeps its state between calls, so that they can take turns. Loops of other libraries are in `peer_loops`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.data import Kept, Labelled, Pictures
from mms_sdk.compute.models.functional import Arrays, functional
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.trainer import Fitting, Trainer
from mms_sdk.types import Array

BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
"""What optax takes if nothing is said; other libraries are told."""
_AT_ONCE = 1000

Scores = Callable[[Arrays, Any, Any], Any]
"""Parameters, pictures in [0, 1], key of what is random in training, None outside → scores of classes."""


class Loop(Protocol):
    """Trains one model with AdamW, by batches of `BATCH` of the training rows, which are shuffled for each epoch."""

    def steps(self, count: int) -> float:
        """Takes so many steps; seconds from the first to when the device has done the last."""

    def accuracy(self) -> float:
        """Share of the test rows whose class is told."""

    def close(self) -> None:
        """Ends it."""


def fitting(model: Any, data: Kept, *, epochs: int = 10_000, seed: int = 0, **checkpoint: Any) -> Fitting:
    """A run as `fit` makes it."""
    trainer = Trainer(
        model=model,
        optimizer=optax.adamw(LEARNING_RATE),
        batch_size=BATCH,
        epochs=epochs,
        seed=seed,
        checkpoint=Checkpoints(best="train/loss", **checkpoint),
    )
    return Fitting(trainer, data, resume=None)


class Ours:
    """`fit`, step by step; the last step of an epoch comes with the epoch's metrics, log and checkpoint."""

    def __init__(self, model: Any, data: Pictures, *, epochs: int, seed: int) -> None:
        self.fit = fitting(model, data, epochs=epochs, seed=seed)
        self._steps, self._begun = self.fit.steps(), False

    def steps(self, count: int) -> float:
        if self._begun:
            self.fit.run.checkpoints.wait()  # what an epoch's end left to be written is not part of these steps
        self._begun = True
        return timed(self._steps, count, lambda _: self.fit.run.totals)

    def accuracy(self) -> float:
        for _ in self._steps:  # the end of the run, behind its last step
            pass
        return self.fit.result().last.evaluate("test")["test/accuracy"]

    def close(self) -> None:
        self._steps.close()


class ByHand:
    """What a person writes who wants nothing but speed: no log, no evaluation, no checkpoint, nothing shown."""

    def __init__(self, params: Arrays, scores: Scores, data: Pictures, *, seed: int) -> None:
        self._scores, self._data = scores, data
        self._params = dict(params)
        self._steps = self._trained(seed)

    def steps(self, count: int) -> float:
        return timed(self._steps, count, lambda loss: loss)

    def accuracy(self) -> float:
        told = jax.jit(lambda params, pictures: self._scores(params, as_shares(pictures), None))
        return share_told(lambda pictures: np.asarray(told(self._params, pictures)), self._data.test)

    def close(self) -> None:
        self._steps.close()

    def _trained(self, seed: int) -> Generator[Any]:
        data, rng = self._data.train, np.random.default_rng(seed)
        optimizer = optax.adamw(LEARNING_RATE)
        step = jax.jit(partial(step_by_hand, self._scores, optimizer), donate_argnums=(0, 1))
        opt, number = optimizer.init(self._params), jnp.int32(0)
        self._params = jax.tree.map(jnp.copy, self._params)  # given away by the first step
        while True:
            order = rng.permutation(len(data))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                rows = order[start : start + BATCH]
                self._params, opt, number, value = step(
                    self._params, opt, number, data.pictures[rows], data.labels[rows]
                )
                yield value


def step_by_hand(
    scores: Scores, optimizer: Any, params: Arrays, opt: Any, number: Any, pictures: Any, labels: Any
) -> tuple[Arrays, Any, Any, Any]:
    """One step over a flat dictionary."""

    def loss(params: Arrays) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        logits = scores(params, as_shares(pictures), key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, number + 1, value


def first_params(model: Any, shape: tuple[int, ...], *, seed: int) -> Arrays:
    """The values that `fit` with that seed begins with."""
    return dict(jax.jit(functional(model, shape).init)(jax.random.key(seed))[0])


def own_scores(model: Any, shape: tuple[int, ...]) -> Scores:
    """The family's own forward pass, taken apart: for a loop that is not to differ in how a layer is written."""
    apply = functional(model, shape).apply
    return lambda params, pictures, key: apply(params, {}, pictures, key)[0]


def as_shares(pictures: Any) -> Any:
    """Bytes as float32 in [0, 1]."""
    return pictures.astype(jnp.float32) * np.float32(1 / 255)


def timed(steps: Generator[Any], count: int, result: Callable[[Any], Any]) -> float:
    """Seconds of so many steps, of the last of which `result` gives an array to wait for."""
    began = time.perf_counter()
    for _ in range(count - 1):
        next(steps)
    result(next(steps)).block_until_ready()  # what is under way belongs to this turn
    return time.perf_counter() - began


def share_told(scores: Callable[[Array], Array], rows: Labelled) -> float:
    """Share of the rows whose class has the largest score."""
    starts = range(0, len(rows), _AT_ONCE)
    told = np.concatenate([scores(rows.pictures[start : start + _AT_ONCE]).argmax(-1) for start in starts])
    return float((told == rows.labels).mean())
