"""Clusters: how soon two nodes of a Ray run a script as one `jax.distributed` cluster, beside Ray Train's JaxTrainer.

Both on the same cluster, which is made of processes of this machine, in turns. JaxTrainer's processes are not joined by
`jax.distributed` where there are neither TPUs nor GPUs; ours are, and it counts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import mms_sdk as mms
from benchmarks.table import Row, in_turns, not_measured

WHAT = "from submitting two nodes' work on a Ray to the first line of its first process"
_STAMP = "import sys, time; open(sys.argv[1], 'w').write(str(time.time()))\n"
# Connected before it is asked, like the process that speaks for us; it asks once a line comes in.
_JAX_TRAINER = """
import logging, os, sys, time
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer

ray.init(address=os.environ["MMS_RAY"], log_to_driver=False, logging_level=logging.ERROR)

def train(config):
    import jax
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        open(config["stamp"], "w").write(str(time.time()))

for line in sys.stdin:
    stamp, storage = line.split()
    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}, placement_strategy="STRICT_SPREAD")
    run = RunConfig(storage_path=storage)
    print(time.time(), file=sys.__stdout__, flush=True)
    JaxTrainer(train, train_loop_config={"stamp": stamp}, scaling_config=scaling, run_config=run).fit()
    print("done", file=sys.__stdout__, flush=True)
"""


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    if importlib.util.find_spec("ray") is None:
        return [not_measured(WHAT, "pip install 'mms-sdk[ray]'")]
    from mms_sdk.compute.engines.ray.private import private_cluster

    before = dict(os.environ)
    with private_cluster(nodes=2, cpus=1) as cluster:
        os.environ.update(cluster.variables())
        try:
            return [_first_line(folder, rounds=1 if quick else 5)]
        finally:
            for name in cluster.variables():
                os.environ.pop(name)
            os.environ.update(before)


def _first_line(folder: Path, *, rounds: int) -> Row:
    script, stamp = folder / "stamp.py", folder / "stamp"
    script.write_text(_STAMP)
    with mms.connect(workspace=folder / "workspace") as ws, _trainer(folder) as trainer:

        def gang() -> float:
            began = time.time()
            asked = mms.Resources(nodes=2, cpus=1, gpus=0)
            ws.jobs.submit(script, args=[str(stamp)], on="ray", resources=asked).wait(progress=False)
            return float(stamp.read_text()) - began

        def jax_trainer() -> float:
            assert trainer.stdin is not None
            assert trainer.stdout is not None
            trainer.stdin.write(f"{stamp} {folder / 'train'}\n")
            trainer.stdin.flush()
            began = float(trainer.stdout.readline())
            assert trainer.stdout.readline() == "done\n"
            return float(stamp.read_text()) - began

        gang()  # until the process that speaks for us is connected
        seen = in_turns({"mms": gang, "peer": jax_trainer}, rounds)
    taken = {name: median(seconds) for name, seconds in seen.items()}
    return Row(
        what=WHAT,
        mms=f"{taken['mms']:.1f} s",
        beside=f"JaxTrainer, without joining them, {taken['peer']:.1f} s",
        ratio=taken["mms"] / taken["peer"],
        target="<= 1.0",
    )


@contextmanager
def _trainer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-c", _JAX_TRAINER]
    with (folder / "trainer.txt").open("w") as told:
        process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, text=True, cwd=folder
        )
        try:
            yield process
        finally:
            process.communicate()
