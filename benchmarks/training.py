"""The training loop: steps of `fit` beside a flat loop written by hand, `fit` of Keras with JAX, and a PyTorch loop.

All train the same model from the same first values, with the same optimiser and batches, on Fashion-MNIST (Debian:
`apt-get install dataset-fashion-mnist`), take turns within each epoch, and are asked for the classes of the test rows
at the end. Steps are timed within an epoch; what checkpoints cost is the topic `checkpoints`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import jax
import numpy as np

from benchmarks import mfu
from benchmarks.data import CLASSES, FASHION_PACKAGE, Pictures, fashion, random_dataset
from benchmarks.loops import BATCH, ByHand, Loop, Ours, Scores, as_shares, first_params, own_scores
from benchmarks.peer_loops import PIP, installed, refuse_other
from benchmarks.table import Row, in_turns, not_measured, speedup
from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import Arrays

BY_HAND = "jax.jit loop by hand"
_COMPARED_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and for how long.

    Attributes:
        what: As the table says it.
        model: Family.
        scores: Its forward pass, for the loop written by hand.
        epochs: Each loop's.
        untimed: Of these the first so many are not timed, in which MMS compares the checksum of each row.
        turn: Steps in a turn.
        turns: In a timed epoch; with some steps to spare in front, the first of which compile.
        seeds: How many runs, each with other first values and another order.
        targets: By the peer's name.
        tolerance: How far apart the accuracies of two equal loops may be by chance; None where none is compared.
    """

    what: str
    model: MLP | ConvNet
    scores: Scores
    epochs: int
    untimed: int
    turn: int
    turns: int
    seeds: int = 1
    targets: dict[str, str]
    tolerance: float | None = None


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    found = [*_compared(_smallest(quick), random_dataset(folder / "tiny", rows=_RANDOM[quick], shape=(8, 8, 1)))]
    for name, case, at_most in (("mlp", _tiny(quick), None), ("cnn", _small(quick), 16 * BATCH if quick else None)):
        data = fashion(folder / name, multiple_of=BATCH, at_most=at_most)
        if data is None:
            found.append(not_measured(f"training on Fashion-MNIST, {case.what}", f"apt-get install {FASHION_PACKAGE}"))
        else:
            found += _compared(case, data)
    if jax.default_backend() == "cpu" and (cores := os.cpu_count() or 1) > 1:
        found += _in_a_process_of_its_own(folder / "cores", cores, quick=quick)
    if jax.default_backend() == "gpu":
        found += mfu.rows(folder / "tokens", quick=quick)
    return found


def on_all_cores(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of the small CNN where JAX has a device for each core, over which MMS divides a batch."""
    case = replace(
        _small(quick),
        what="ConvNet 32-64 on 28×28, a device for each core",
        turn=4 if quick else 9,
        targets={"PyTorch loop": ">= 0.8"},
        tolerance=None,
    )
    data = fashion(folder, multiple_of=BATCH, at_most=(16 if quick else 120) * BATCH)
    return list(_compared(case, data)) if data is not None else []


def _in_a_process_of_its_own(folder: Path, devices: int, *, quick: bool) -> Iterator[Row]:
    # How many devices a CPU is, JAX is told before it starts.
    code = (
        "import json, pathlib, sys; from benchmarks import training; "
        f"rows = training.on_all_cores(pathlib.Path(sys.argv[1]), quick={quick}); "
        "print(json.dumps([row.told() for row in rows]))"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", code, str(folder)]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    yield from map(Row.of, json.loads(told.splitlines()[-1]))


def tiny_mlp() -> MLP:
    """So small that a step costs little more than its dispatch."""
    return MLP(num_classes=CLASSES, widths=(64, 64))


def small_cnn() -> ConvNet:
    """Large enough that a step is nothing but arithmetic."""
    return ConvNet(num_classes=CLASSES)


# So many rows that turns are a thousand steps: what is read ahead in one and paid for in the next is a hundredth of it.
_RANDOM = {False: 15_625 * BATCH, True: 1_600 * BATCH}


def _smallest(quick: bool) -> Case:
    turn, turns = (200, 5) if quick else (1000, 13)
    return Case(
        what="tiny MLP 64-64-64-10",
        model=tiny_mlp(),
        scores=_mlp_scores,
        epochs=2,
        untimed=1,
        turn=turn,
        turns=turns,
        targets={BY_HAND: ">= 0.90"},
    )


def _tiny(quick: bool) -> Case:
    return Case(
        what="tiny MLP 784-64-64-10",
        model=tiny_mlp(),
        scores=_mlp_scores,
        epochs=2 if quick else 5,
        untimed=1,
        turn=100 if quick else 210,
        turns=2,
        seeds=1 if quick else 3,
        targets={BY_HAND: ">= 0.90", "Keras fit": ">= 1.0"},
        tolerance=0.05 if quick else 0.01,
    )


def _small(quick: bool) -> Case:
    turn, turns = (4, 3) if quick else (38, 12)
    return Case(
        what="ConvNet 32-64 on 28×28",
        model=small_cnn(),
        scores=own_scores(small_cnn(), (28, 28, 1)),
        epochs=1,
        untimed=0,  # the checksums of a batch take a thousandth of its step
        turn=turn,
        turns=turns,
        targets={BY_HAND: ">= 0.98", "Keras fit": ">= 1.0"},
        tolerance=None if quick else 0.02,
    )


def _compared(case: Case, data: Pictures) -> Iterator[Row]:
    seen: dict[str, list[float]] = defaultdict(list)
    told: dict[str, list[float]] = defaultdict(list)
    waited_s = 0.0
    for seed in range(case.seeds):
        params = first_params(case.model, data.train.pictures.shape[1:], seed=seed)
        loops: dict[str, Loop] = {"MMS": Ours(case.model, data, epochs=case.epochs, seed=seed)}
        loops[BY_HAND] = ByHand(params, case.scores, data, seed=seed)
        loops |= _peers(case, data, params, seed)
        waited_s += _trained(case, data, loops, seen)
        for name, loop in loops.items():
            if case.tolerance is not None:
                told[name].append(loop.accuracy())
            loop.close()
    yield from _speeds(case, seen, waited_s)
    if case.tolerance is not None:
        yield from _accuracies(case, told, case.tolerance)
    if len(data.test):
        missing = [name for name in PIP if name not in installed()]
        yield from (not_measured(f"{case.what} beside {name}", PIP[name]) for name in missing)


def _peers(case: Case, data: Pictures, params: Arrays, seed: int) -> dict[str, Loop]:
    made: dict[str, Loop] = {}
    pictures = data.test.pictures[:_COMPARED_ROWS]
    ours = np.asarray(case.scores(params, as_shares(pictures), None)) if len(pictures) else None
    for name, make in (installed() if ours is not None else {}).items():
        loop: Any = make(case.model, params, data, seed)
        refuse_other(name, loop, params, ours, pictures)
        made[name] = loop
    return made


def _trained(case: Case, data: Pictures, loops: dict[str, Loop], seen: dict[str, list[float]]) -> float:
    # All of them through all epochs; adds to what was seen, and returns how long MMS waited for data meanwhile.
    ours: Any = loops["MMS"]
    timed_steps, waited_s = case.turn * case.turns, 0.0
    spare = len(data.train) // BATCH - timed_steps
    if spare < 3:
        raise ValueError(f"an epoch has steps to spare around {timed_steps} timed ones; it has {spare + timed_steps}")

    def turns(steps: int, rounds: int) -> dict[str, list[float]]:
        return in_turns({name: lambda loop=loop: loop.steps(steps) for name, loop in loops.items()}, rounds)

    for epoch in range(case.epochs):
        turns(spare - 1, 1)  # the first of all compile
        before = ours.fit.run.input_wait_s
        taken = turns(case.turn, case.turns)
        if epoch >= case.untimed:
            waited_s += ours.fit.run.input_wait_s - before
            for name, seconds in taken.items():
                seen[name] += seconds
        turns(1, 1)  # with what MMS does at the end of an epoch
    return waited_s


def _speeds(case: Case, seen: dict[str, list[float]], waited_s: float) -> Iterator[Row]:
    speed = {name: case.turn / median(seconds) for name, seconds in seen.items()}
    for name in seen:
        if name == "MMS":
            continue
        yield Row(
            what=f"training steps within an epoch, {case.what}, batch {BATCH}",
            mms=f"{speed['MMS']:,.1f} steps/s",
            beside=f"{name} {speed[name]:,.1f} steps/s",
            ratio=speedup(seen["MMS"], seen[name]),
            target=case.targets.get(name, ""),
        )
    waited = waited_s / sum(seen["MMS"])
    yield Row(
        what=f"{case.what}: share of the time spent waiting for data",
        mms=f"{100 * waited:.2f} %",
        beside="1 %",
        ratio=waited / 0.01,
        # A step of a tenth of a millisecond is about as long as the gather it waits for, by hand too.
        target="<= 1.0" if speed["MMS"] < 1000 else "",
    )


def _accuracies(case: Case, told: dict[str, list[float]], tolerance: float) -> Iterator[Row]:
    runs = f"{case.epochs} epoch{'s' * (case.epochs > 1)}" + (f", mean of {case.seeds} seeds" if case.seeds > 1 else "")
    ours = fmean(told["MMS"])
    for name, each in told.items():
        if name == "MMS":
            continue
        yield Row(
            what=f"{case.what}: accuracy on the test rows after {runs}; the difference in units of {tolerance}",
            mms=f"{ours:.4f}",
            beside=f"{name} {fmean(each):.4f}",
            ratio=abs(ours - fmean(each)) / tolerance,
            target="<= 1.0",
        )


def _mlp_scores(params: Arrays, x: Any, key: Any) -> Any:
    x = x.reshape(len(x), -1)
    for layer in range(2):
        x = jax.nn.relu(x @ params[f"layers/{layer}/kernel"] + params[f"layers/{layer}/bias"])
    return x @ params["head/kernel"] + params["head/bias"]
