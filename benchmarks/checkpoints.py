"""Checkpoints: how long saving holds up the loop, beside Orbax alone, and what a checkpoint every 50 steps costs."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from statistics import median

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks.data import random_dataset
from benchmarks.table import Row, in_turns, speedup
from benchmarks.training import fitting, small_cnn
from mms_sdk.storage.checkpoints import CheckpointFolder

EVERY = 50


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    return [_held_up(folder, 3 if quick else 25), _every_50_steps(folder, 1 if quick else 6)]


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
