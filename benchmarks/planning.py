"""Planning: how long `trainer.plan` takes, as in a process that has planned nothing yet.

A plan for the machine at hand measures it first, which a process does once; here each one does.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import jax

from benchmarks.data import CLASSES, Kept, random_dataset, texts
from benchmarks.mfu import MODEL
from benchmarks.table import Row
from mms_sdk.compute.data.preprocess.text import Bytes
from mms_sdk.compute.models import ConvNet, ResNet
from mms_sdk.compute.planning.devices import local_device
from mms_sdk.compute.training.tasks import LanguageModelling
from mms_sdk.compute.training.trainer import Trainer

LIMIT_S = 2.0
_LENGTH = 1024


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    small = random_dataset(folder / "small", rows=64, shape=(28, 28, 1))
    large = random_dataset(folder / "large", rows=64, shape=(224, 224, 3))
    tokens = texts(folder / "tokens", rows=64, length=_LENGTH)
    decoder = Trainer(
        model=MODEL, task=LanguageModelling(), preprocess=[Bytes(length=_LENGTH)], precision="bf16", batch_size=16
    )
    planned: dict[str, tuple[Trainer, Kept]] = {
        "ConvNet 32-64 on 28×28": (Trainer(model=ConvNet(num_classes=CLASSES)), small),
        "ResNet-50 on 224×224": (Trainer(model=ResNet(num_classes=CLASSES)), large),
        f"a decoder of 110 M parameters, {_LENGTH} tokens a row": (decoder, tokens),
    }
    return [
        _row(f"{what}, {told}", trainer, data, target, 1 if quick else 5)
        for what, (trainer, data) in planned.items()
        for target, told in (("local", "for this machine"), ("h100:1", "for an H100"))
    ]


def _row(what: str, trainer: Trainer, data: Kept, target: str, rounds: int) -> Row:
    seconds = median(_planned(trainer, data, target) for _ in range(rounds))
    return Row(
        what=f"plan of {what}",
        mms=f"{seconds:.2f} s",
        beside=f"{LIMIT_S:.0f} s",
        ratio=seconds / LIMIT_S,
        target="<= 1.0",
    )


def _planned(trainer: Trainer, data: Kept, target: str) -> float:
    jax.clear_caches()
    local_device.cache_clear()
    began = time.perf_counter()
    trainer.plan(data, target)
    return time.perf_counter() - began
