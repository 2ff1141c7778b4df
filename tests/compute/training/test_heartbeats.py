"""A training says what it does while it does it, so that only what hangs is taken for that."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import optax
import pytest
from small_pictures import SmallData

from mms_sdk.compute.models import MLP
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.storage import heartbeat
from mms_sdk.storage.heartbeat import Heart, beats

SMALL = Trainer(
    model=MLP(num_classes=3, widths=(16,)),
    optimizer=optax.adam(1e-2),
    batch_size=8,
    epochs=2,
    checkpoint=Checkpoints(every="5steps"),
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each phase and step that is told, every step of them."""
    found: list[tuple[str, int]] = []
    beat = Heart._beat

    def noted(heart: Heart, now: float) -> None:
        found.append((heart._phase, heart._step))
        beat(heart, now)

    monkeypatch.setattr(heartbeat, "EVERY_S", 0.0)
    monkeypatch.setattr(Heart, "_beat", noted)
    return found


def test_each_thing_that_takes_time_beside_steps_is_told(pets: SmallData, told: list[tuple[str, int]]) -> None:
    result = SMALL.fit(pets, progress="none")

    phases = [phase for phase, _ in groupby(phase for phase, _ in told)]
    saved, end = ("saving", "training"), ("evaluating", "training", "saving", "training")
    first, second = ("training", *saved, *end), (*saved, *saved, *end)  # after steps 5; 10 and 15
    assert phases == ["starting", "compiling", "starting", *first, *second, *saved]
    steps = [step for phase, step in told if phase == "training"]
    assert set(steps) == set(range(1, 19))
    assert steps == sorted(steps)
    (last,) = beats(result.folder)
    assert (last.rank, last.step) == (0, 18)


def test_a_run_that_goes_on_counts_from_where_it_was(pets: SmallData, told: list[tuple[str, int]]) -> None:
    first = replace(SMALL, epochs=1).fit(pets, progress="none")
    told.clear()

    SMALL.fit(pets, progress="none", resume=first.job)

    assert told[0] == ("starting", 9)
    assert told[-1][1] == 18
