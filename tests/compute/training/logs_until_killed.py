"""Trains with loggers in a process that a test kills: folder with a workspace `ws`, job to continue (or none)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import optax
from small_pictures import SmallData

import mms_sdk as mms
from mms_sdk.compute.training import loop
from mms_sdk.storage.workspace import Workspace

KILLED_AFTER = 14


def main(folder: Path, resume: str) -> None:
    """Trains two epochs of nine steps; without a job to continue it waits after step 14 for its end."""
    loop._LOG_EVERY_S = 0.0  # each step is logged
    trainer = mms.Trainer(
        model=mms.models.MLP(num_classes=3, widths=(16,)),
        optimizer=optax.adam(1e-2),
        batch_size=8,
        epochs=2,
        checkpoint=mms.Checkpoints(every="4steps"),
        callbacks=[
            mms.loggers.CSV(folder / "metrics.csv"),
            mms.loggers.TensorBoard(folder / "runs"),
            mms.loggers.MLflow("pets", tracking_uri=f"sqlite:///{folder}/mlflow.db", wait_s=60),
        ],
    )
    data = SmallData(Workspace(folder / "ws"))
    if resume:
        print(trainer.fit(data, resume=resume, progress="none").job)
        return
    for step in trainer.steps(data):
        if step.number == KILLED_AFTER:
            time.sleep(5)  # MLflow gets what was logged so far
            print("here", flush=True)
            time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
