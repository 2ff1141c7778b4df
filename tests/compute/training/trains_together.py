"""One of several processes that train together: `trains_together.py '{"workspace": …, "count": 2, "index": 0, …}'`.

Prints each step, and at the end writes what it holds of the final state to `result-INDEX.npz`, and the history.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from small_pictures import SmallData, noisy

import mms_sdk as mms
from mms_sdk.compute.training.trainer import Fitting
from mms_sdk.storage.workspace import Workspace


def export(result: mms.Result, folder: Path) -> str:
    """What came of writing the model."""
    folder.mkdir()
    try:
        result.export(folder)
    except mms.errors.InvalidRequest as refused:
        return refused.message
    return "exported"


def main(told: dict[str, Any]) -> None:
    if told["count"] > 1:
        mms.sharding.join_processes(
            told["coordinator"], count=told["count"], index=told["index"], heartbeat_timeout_s=10
        )
    assert jax.process_count() == told["count"]
    data = SmallData(Workspace(Path(told["workspace"])))
    trainer = mms.Trainer(
        model=noisy,
        optimizer=optax.adam(1e-2),
        mesh=told["mesh"],
        batch_size=16,
        epochs=told["epochs"],
        checkpoint=mms.Checkpoints(every=told["every"], keep=3),
    )
    fitting = Fitting(trainer, data, resume=told.get("resume"))
    for step in fitting.steps():
        print("step", step.number, flush=True)
        if step.number == told.get("terminate_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        if step.number == told.get("die_at"):
            fitting.run.checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)
    leaves = [np.stack([shard.data for shard in leaf.addressable_shards]) for leaf in fitting.run.state]
    folder = Path(told["into"])
    np.savez(folder / f"result-{told['index']}.npz", *leaves)
    said = {
        "history": fitting.run.history,
        "test": fitting.result().evaluate("test"),
        "job": fitting.job,
        "steps": fitting.run.steps,
        "export": export(fitting.result(), folder / f"model-{told['index']}"),
    }
    (folder / f"result-{told['index']}.json").write_text(json.dumps(said))
    data.workspace.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
