"""Trains twice in a job: a folder for what it says, and of each attempt that is to be killed, at which step."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax
from small_pictures import SmallData

from mms_sdk.compute.models import MLP
from mms_sdk.compute.training import loop
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.settings import default_workspace
from mms_sdk.storage.workspace import Workspace


def main(said: Path, kills: list[int]) -> None:
    """Says which runs came out."""
    attempt = len(list(said.glob("attempt-*")))
    (said / f"attempt-{attempt}").touch()
    if attempt < len(kills):
        kill_at(kills[attempt])
    data = SmallData(Workspace(default_workspace()))
    results = [trainer(seed).fit(data, progress="none") for seed in (0, 1)]
    told = [{"job": result.job, "history": result.history, "last": str(result.last.path)} for result in results]
    (said / "results.json").write_text(json.dumps(told))


def trainer(seed: int) -> Trainer:
    """One of the two."""
    return Trainer(
        model=MLP(num_classes=3, widths=(16,)),
        optimizer=optax.adam(1e-2),
        batch_size=8,
        epochs=2,
        seed=seed,
        checkpoint=Checkpoints(every="4steps"),
    )


def die() -> None:
    """Ends this process as a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(last: int, then: Callable[[], None] = die) -> None:
    """Kills this process at one of all steps that it takes, or does something else there."""
    steps, taken = loop._steps, []

    def counted(run: Any) -> Any:
        for step in steps(run):
            taken.append(step)
            if len(taken) == last:
                then()
            yield step

    loop._steps = counted


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(each) for each in sys.argv[2:]])
