"""Trains in a process that a test sends a SIGTERM: workspace, where to dwell, job to continue (or none)."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import optax
from small_pictures import SmallData

from mms_sdk.compute.data import load
from mms_sdk.compute.models import MLP
from mms_sdk.compute.training import loop
from mms_sdk.compute.training import trainer as trainer_module
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.storage.catalog import Jobs
from mms_sdk.storage.workspace import Workspace

EPOCHS, BATCHES = 3, 9


def main(root: str, dwell: str, resume: str) -> None:
    """Trains, and says `here` in the place where it dwells for so long that a test can send a signal."""
    data = SmallData(Workspace(Path(root)))
    if dwell:
        DWELL[dwell]()
    result = trainer().fit(data, resume=resume or None, progress="none")
    print(result.job, flush=True)


def trainer() -> Trainer:
    """What is trained."""
    return Trainer(model=MLP(num_classes=3, widths=(16,)), optimizer=optax.adam(1e-2), batch_size=8, epochs=EPOCHS)


def here() -> None:
    """Where the signal is to come."""
    print("here", flush=True)


def in_the_record() -> None:
    """The job is in the catalog, and nothing else has been done yet."""
    start = Jobs.start

    def slow(*given: Any, **options: Any) -> Any:
        job = start(*given, **options)
        here()
        time.sleep(2)
        return job

    Jobs.start = slow  # type: ignore[method-assign]


def at_the_end() -> None:
    """All is done, and the result is being put together."""
    train = trainer_module.train

    def slow(run: Any) -> Any:
        yield from train(run)
        here()
        time.sleep(2)

    trainer_module.train = slow


def in_a_step() -> None:
    """Steps take their time, the fifth and those after it."""
    train = loop._steps

    def slow(run: Any) -> Any:
        for step in train(run):
            if step.number == 5:
                here()
            if step.number >= 5:
                time.sleep(0.2)
            yield step

    loop._steps = slow


def in_an_evaluation() -> None:
    """The second evaluation never ends."""
    seen = []
    evaluate = loop.evaluate

    def endless(*given: Any) -> Any:
        seen.append(given)
        if len(seen) == 2:
            here()
            while True:
                time.sleep(0.01)
        return evaluate(*given)

    loop.evaluate = endless


def in_the_compiler() -> None:
    """The first step takes a minute to compile; XLA does so in C, where nobody looks at signals."""
    compiled = jax.stages.Lowered.compile

    def slow(self: Any, *given: Any, **options: Any) -> Any:
        here()
        time.sleep(60)
        return compiled(self, *given, **options)

    jax.stages.Lowered.compile = slow  # type: ignore[method-assign]


def waiting_for_data() -> None:
    """The second epoch's third batch never comes."""
    groups = load.Loader._groups

    def stalled(self: Any, at: Any, calls: Any) -> Any:
        for group in groups(self, at, calls):
            if at.epoch == 1:
                yield group[:2]
                time.sleep(0.5)
                here()
                time.sleep(60)
            yield group

    load.Loader._groups = stalled  # type: ignore[method-assign]


DWELL = {
    "record": in_the_record,
    "step": in_a_step,
    "evaluation": in_an_evaluation,
    "compiler": in_the_compiler,
    "data": waiting_for_data,
    "end": at_the_end,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
