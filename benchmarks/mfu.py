"""How much of an accelerator's peak a decoder's training takes: its model FLOPs over the time, over the peak (MFU).

FLOPs are counted in the traced model, twice a product's multiplications, and what is computed a second time is left
out. The peak is that of the data sheet, or, of a device without one here, measured as a product of large matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import optax

from benchmarks.data import texts
from benchmarks.table import Row, in_turns, speedup
from mms_sdk.compute.data.preprocess.text import Bytes
from mms_sdk.compute.models import Decoder
from mms_sdk.compute.planning.devices import DEVICES, Device, local_device
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.tasks import LanguageModelling
from mms_sdk.compute.training.trainer import Fitting, Trainer

# 110 million parameters.
MODEL = Decoder(vocab_size=32_768, width=768, layers=12, heads=12, inner=2048)


def rows(
    folder: Path, *, quick: bool, model: Decoder = MODEL, length: int = 1024, batch: int = 16, turn: int = 10
) -> list[Row]:
    """The decoder in bfloat16 beside its compiled step alone, and how much of the peak it takes."""
    rounds = 2 if quick else 10
    data = texts(folder, rows=batch * (rounds + 3) * turn, length=length)
    trainer = Trainer(
        model=model,
        task=LanguageModelling(),
        optimizer=optax.adamw(1e-3),
        preprocess=[Bytes(length=length)],
        batch_size=batch,
        precision="bf16",
        epochs=1,
        checkpoint=Checkpoints(best="train/loss"),
    )
    device, count = here(), jax.device_count()
    peak = device.flops_rate("bfloat16") * count
    flops = trainer.plan(data, "local" if device.name == "local" else f"{device.name}:{count}").model_flops
    fit = Fitting(trainer, data, resume=None)
    steps = fit.steps()
    next(steps)  # the run is there from the first on
    alone = _alone(fit, turn)

    def ours() -> float:
        began = time.perf_counter()
        for _ in range(turn):
            next(steps)
        fit.run.totals.block_until_ready()
        return time.perf_counter() - began

    in_turns({"ours": ours, "alone": alone}, 2)  # compiles
    seen = in_turns({"ours": ours, "alone": alone}, rounds)
    steps.close()
    step_s = {name: median(seconds) / turn for name, seconds in seen.items()}
    share = {name: flops / each / peak for name, each in step_s.items()}
    what = f"training a decoder of {fit.program.parameters() / 1e6:,.0f} M parameters, bf16, {batch}×{length} tokens"
    return [
        Row(
            what=what,
            mms=f"{batch * length / step_s['ours']:,.0f} tokens/s",
            beside=f"its compiled step alone {batch * length / step_s['alone']:,.0f} tokens/s",
            ratio=speedup(seen["ours"], seen["alone"]),
            target=">= 0.98",
        ),
        Row(
            what=f"{what}: MFU",
            mms=f"{share['ours']:.1%}",
            beside=f"peak {peak / 1e12:,.1f} TFLOP/s, {device.source}",
            ratio=share["ours"],
        ),
    ]


def here() -> Device:
    """The device at hand, as its data sheet has it; measured, if it has none here."""
    kind = jax.devices()[0].device_kind.lower()
    named = [device for name, device in DEVICES.items() if not device.tpu and name in kind]
    return named[0] if named else local_device()


def _alone(fit: Fitting, turn: int) -> Callable[[], float]:
    # The program itself on one batch that lies on the device: no loop, no data, no log.
    program = fit.program
    batch: Any = next(fit.run.train.epoch(fit.run.position))
    batch = jax.device_put((batch.inputs, batch.labels, batch.weight))
    state = [program.flat(program.init()), program.zero_totals()]

    def run() -> float:
        began = time.perf_counter()
        for _ in range(turn):
            state[:] = program.step(*state, *batch)
        state[1].block_until_ready()
        return time.perf_counter() - began

    return run
