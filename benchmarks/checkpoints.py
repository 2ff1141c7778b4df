"""Checkpoints: how long saving holds up the loop, what one every 50 steps costs, and how soon a run is resumed."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import jax
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from benchmarks.data import random_dataset
from benchmarks.loops import BATCH, LEARNING_RATE, fitting, own_scores, step_by_hand
from benchmarks.table import Row, in_turns, speedup
from benchmarks.training import small_cnn
from mms_sdk.compute.training.policies import Limits
from mms_sdk.compute.training.trainer import Fitting, Trainer
from mms_sdk.storage.checkpoints import CheckpointFolder

EVERY = 50


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    return [
        _held_up(folder, 3 if quick else 25),
        _every_50_steps(folder, 1 if quick else 6),
        _resumed(folder / "resumed", 1 if quick else 5),
    ]


def _held_up(folder: Path, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    arrays = {
        part: {f"layers/{n}/kernel": jax.device_put(rng.normal(size=(512, 512)).astype("f4")) for n in range(8)}
        for part in ("params", "mu", "nu")
    }
    steps, kept = count(1), CheckpointFolder(folder / "kept", keep=2)

    def ours() -> float:
        began = time.perf_counter()
        kept.save(next(steps), arrays, {}, best=False)
        held = time.perf_counter() - began
        kept.wait()
        return held

    def orbax() -> float:
        began = time.perf_counter()
        response = ocp.save_async(folder / "orbax" / str(next(steps)), arrays)
        held = time.perf_counter() - began
        response.result()
        return held

    ours(), orbax()  # the first of each starts threads
    seen = in_turns({"ours": ours, "orbax": orbax}, rounds)
    kept.close()
    return Row(
        what="a checkpoint of 24 arrays, 24 MiB: how long the loop is held up",
        mms=f"{1000 * median(seen['ours']):.1f} ms",
        beside=f"Orbax save_async {1000 * median(seen['orbax']):.1f} ms",
        ratio=1 / speedup(seen["ours"], seen["orbax"]),
        target="<= 1.2",
    )


def _every_50_steps(folder: Path, rounds: int) -> Row:
    data = random_dataset(folder / "cnn", rows=150_000, shape=(28, 28, 1))
    fits = {"never": fitting(small_cnn(), data), "often": fitting(small_cnn(), data, every=f"{EVERY}steps")}
    steps = {name: fit.steps() for name, fit in fits.items()}

    def timed(name: str) -> float:
        # From right after a save on, over two more: as much of them falls into the time as belongs to it.
        for _ in range(EVERY):
            next(steps[name])
        began = time.perf_counter()
        for _ in range(2 * EVERY):
            next(steps[name])
        seconds = time.perf_counter() - began
        fits[name].run.checkpoints.wait()
        return seconds

    runs = {name: lambda name=name: timed(name) for name in fits}
    in_turns(runs, 1)  # compiles
    seen = in_turns(runs, rounds)
    for each in steps.values():
        each.close()
    return Row(
        what=f"training ConvNet 32-64 on 28×28 with a checkpoint every {EVERY} steps",
        mms=f"{2 * EVERY / median(seen['often']):.1f} steps/s",
        beside=f"without {2 * EVERY / median(seen['never']):.1f} steps/s",
        ratio=speedup(seen["often"], seen["never"]),
        target=">= 0.97",
    )


def _resumed(folder: Path, rounds: int) -> Row:
    data, model = random_dataset(folder, rows=20 * BATCH, shape=(28, 28, 1)), small_cnn()
    optimizer, scores = optax.adamw(LEARNING_RATE), own_scores(model, (28, 28, 1))
    trainer = Trainer(model=model, optimizer=optimizer, batch_size=BATCH, limits=Limits(steps=5))
    earlier = trainer.fit(data, progress="none")
    longer = replace(trainer, limits=Limits(steps=10))
    program, pictures, labels = earlier.last.program, data.train.pictures[:BATCH], data.train.labels[:BATCH]

    def ours() -> float:
        jax.clear_caches()
        began = time.perf_counter()
        fit = Fitting(longer, data, resume=earlier.job)
        steps = fit.steps()
        next(steps)
        fit.run.totals.block_until_ready()
        seconds = time.perf_counter() - began
        steps.close()
        return seconds

    def by_hand() -> float:
        target = program.target()  # shapes, which a person would have written down
        jax.clear_caches()
        began = time.perf_counter()
        state, _ = program.from_arrays(ocp.load(earlier.last.path / "state", target))
        step = jax.jit(partial(step_by_hand, scores, optimizer), donate_argnums=(0, 1))
        *_, loss = step(state.params, state.opt, state.step, pictures, labels)
        loss.block_until_ready()
        return time.perf_counter() - began

    seen = in_turns({"ours": ours, "by hand": by_hand}, rounds)
    return Row(
        what="ConvNet 32-64 on 28×28: from fit(resume=) to the end of the first new step",
        mms=f"{median(seen['ours']):.2f} s",
        beside=f"Orbax load, and compiling and taking one step by hand {median(seen['by hand']):.2f} s",
        ratio=1 / speedup(seen["ours"], seen["by hand"]),
    )
