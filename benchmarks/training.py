"""The training loop: steps of `fit` beside a flat loop written by hand, with the same mathematics and nothing else.

The hand-written loop gathers from arrays in RAM by a permutation, hands NumPy batches to one jitted, donated step over
a flat dictionary, and neither logs, evaluates, saves nor shows anything. Both are timed within an epoch; what the end
of an epoch costs is the topic `checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.data import CLASSES, Random, random_dataset
from benchmarks.table import Row, in_turns, speedup
from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.trainer import Fitting, Trainer

BATCH = 128
Scores = Callable[[dict[str, Any], Any, Any], Any]


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    tiny = random_dataset(folder / "tiny", rows=200_000 if quick else 2_000_000, shape=(8, 8, 1))
    small = random_dataset(folder / "small", rows=20_000, shape=(28, 28, 1))
    # Turns so long that what is read ahead in one and paid for in the next is a hundredth of it.
    turns = (200, 5) if quick else (1000, 13)
    return [
        *_compared("tiny MLP 64-64-64-10", tiny_mlp(), _mlp_scores, tiny, ">= 0.90", turns),
        *_compared("ConvNet 32-64 on 28×28", small_cnn(), _cnn_scores, small, ">= 0.98", (5, 3 if quick else 20)),
    ]


def tiny_mlp() -> MLP:
    """So small that a step costs little more than its dispatch."""
    return MLP(num_classes=CLASSES, widths=(64, 64))


def small_cnn() -> ConvNet:
    """Large enough that a step is nothing but arithmetic."""
    return ConvNet(num_classes=CLASSES)


def fitting(model: Any, data: Random, **checkpoint: Any) -> Fitting:
    """A run as `fit` makes it."""
    trainer = Trainer(
        model=model,
        optimizer=optax.adamw(1e-3),
        batch_size=BATCH,
        epochs=10_000,
        checkpoint=Checkpoints(best="train/loss", **checkpoint),
    )
    return Fitting(trainer, data, resume=None)


def _compared(
    what: str, model: Any, scores: Scores, data: Random, target: str, turns: tuple[int, int]
) -> Iterator[Row]:
    steps, rounds = turns
    by_hand, fit = _by_hand(model, scores, data), fitting(model, data)
    ours = fit.steps()
    # Past the first epoch, which checks checksums, and past the checkpoint at its end, which is written meanwhile.
    next(step for step in ours if step.epoch == 2 and step.batch == steps)
    fit.run.checkpoints.wait()
    for _ in range(steps):
        next(by_hand)
    waited_before = fit.run.input_wait_s
    seen = in_turns(
        {"ours": _timed(ours, steps, lambda _: fit.run.totals), "by hand": _timed(by_hand, steps, lambda loss: loss)},
        rounds,
    )
    waited = (fit.run.input_wait_s - waited_before) / sum(seen["ours"])
    ended = len(fit.run.history) > 1
    ours.close()
    if ended:
        raise RuntimeError(f"{rounds} rounds of {steps} steps end an epoch of {len(data.labels) // BATCH}")
    speed = {name: steps / median(seconds) for name, seconds in seen.items()}
    yield Row(
        what=f"training steps within an epoch, {what}, batch {BATCH}",
        mms=f"{speed['ours']:,.1f} steps/s",
        beside=f"jax.jit loop by hand {speed['by hand']:,.1f} steps/s",
        ratio=speedup(seen["ours"], seen["by hand"]),
        target=target,
    )
    yield Row(
        what="the same: share of the time spent waiting for data",
        mms=f"{100 * waited:.2f} %",
        beside="1 %",
        ratio=waited / 0.01,
        # A step of a tenth of a millisecond is about as long as the gather it waits for, by hand too.
        target="<= 1.0" if speed["ours"] < 1000 else "",
    )


def _timed(steps: Iterator[Any], count: int, result: Callable[[Any], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        for _ in range(count - 1):
            next(steps)
        result(next(steps)).block_until_ready()  # what is under way belongs to this turn
        return time.perf_counter() - began

    return run


def _by_hand(model: Any, scores: Scores, data: Random) -> Generator[Any]:
    params, _ = jax.jit(functional(model, data.pictures.shape[1:]).init)(jax.random.key(0))
    optimizer = optax.adamw(1e-3)
    opt = optimizer.init(params)

    def loss(params: Any, pictures: Any, labels: Any, key: Any) -> Any:
        logits = scores(params, pictures.astype(jnp.float32) * np.float32(1 / 255), key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, opt: Any, number: Any, pictures: Any, labels: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        value, grads = jax.value_and_grad(loss)(params, pictures, labels, key)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, number + 1, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    rng, number = np.random.default_rng(0), jnp.int32(0)
    while True:
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            params, opt, number, value = compiled(params, opt, number, data.pictures[rows], data.labels[rows])
            yield value


def _mlp_scores(params: dict[str, Any], x: Any, key: Any) -> Any:
    x = x.reshape(len(x), -1)
    for layer in range(2):
        x = jax.nn.relu(x @ params[f"layers/{layer}/kernel"] + params[f"layers/{layer}/bias"])
    return x @ params["head/kernel"] + params["head/bias"]


def _cnn_scores(params: dict[str, Any], x: Any, key: Any) -> Any:
    # The family's own forward pass, taken apart: what is compared is the loop, not two ways to write a group norm.
    return functional(small_cnn(), x.shape[1:]).apply(params, {}, x, key)[0]
