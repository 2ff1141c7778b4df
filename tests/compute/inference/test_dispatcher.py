"""Deployments that share a device, on a clock that only the device moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mms_sdk.compute.inference.dispatcher import Dispatcher


class Clock:
    """Seconds, told by whoever computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Has so many batches to compute, each of so many seconds of the clock; notes when each began."""

    def __init__(self, clock: Clock, takes_s: float, log: list[Model]) -> None:
        self.clock, self.takes_s, self.log = clock, takes_s, log
        self.left = 0
        self.began: list[float] = []

    def take_in(self, arrived: Any) -> None:
        self.left += arrived

    def waiting(self) -> bool:
        return self.left > 0

    def answer_some(self) -> None:
        self.left -= 1
        self.began.append(self.clock.now)
        self.clock.now += self.takes_s
        self.log.append(self)

    def had_s(self, until: float) -> float:
        return self.takes_s * sum(began < until for began in self.began)


class Closed:
    """Keeps a device busy until it is opened, so that what is sent meanwhile is there at once."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.busy = threading.Event()
        self.left = 0

    def take_in(self, arrived: Any) -> None:
        self.left += arrived

    def waiting(self) -> bool:
        return self.left > 0

    def answer_some(self) -> None:
        self.left -= 1
        self.busy.set()
        assert self.gate.wait(60)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device(clock: Clock) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher("fair", clock=clock)
    yield dispatcher
    assert dispatcher.close()


def run(device: Dispatcher, batches: dict[Any, int]) -> None:
    """Has so many batches of each model computed, all of them waiting from the beginning."""
    door = Closed()
    device.join(door)
    device.send(door, 1)
    assert door.busy.wait(60)
    for model, count in batches.items():
        device.send(model, count)
    door.gate.set()
    assert device.close()


def test_a_heavy_model_does_not_starve_a_light_one(device: Dispatcher, clock: Clock) -> None:
    log: list[Model] = []
    heavy, light = Model(clock, 0.5, log), Model(clock, 0.001, log)
    device.join(heavy)
    device.join(light)

    run(device, {heavy: 10, light: 2000})

    half = clock.now / 2
    assert heavy.had_s(half) == pytest.approx(half / 2, abs=0.51)
    assert light.had_s(half) == pytest.approx(half / 2, abs=0.51)
    waits = [after - before for before, after in zip(light.began, light.began[1:], strict=False)]
    assert max(waits) == pytest.approx(0.501)  # one batch of the other, never two


def test_what_a_device_is_shared_by_is_the_weight(device: Dispatcher, clock: Clock) -> None:
    log: list[Model] = []
    three, one = Model(clock, 0.01, log), Model(clock, 0.04, log)
    device.join(three, weight=3)
    device.join(one, weight=1)

    run(device, {three: 300, one: 100})

    both = 4.0  # seconds for which both have something to do
    assert three.had_s(both) == pytest.approx(3.0, abs=0.05)
    assert one.had_s(both) == pytest.approx(1.0, abs=0.05)


def test_equal_models_alternate(device: Dispatcher, clock: Clock) -> None:
    log: list[Model] = []
    one, other = Model(clock, 0.25, log), Model(clock, 0.25, log)
    device.join(one)
    device.join(other)

    run(device, {one: 4, other: 4})

    assert log == [one, other] * 4


def test_who_was_idle_saves_nothing_up(device: Dispatcher, clock: Clock) -> None:
    log: list[Model] = []
    steady, late = Model(clock, 0.25, log), Model(clock, 0.25, log)
    device.join(steady)
    device.join(late)
    run_until_now = threading.Event()

    class Sends(Model):
        def answer_some(self) -> None:
            super().answer_some()
            if len(self.began) == 40:
                device.send(late, 5)
                run_until_now.set()

    steady.__class__ = Sends

    run(device, {steady: 50})

    assert run_until_now.is_set()
    assert log[40:50] == [late, steady] * 5 or log[40:50] == [steady, late] * 5


def test_the_background_gets_what_others_leave(device: Dispatcher, clock: Clock) -> None:
    log: list[Model] = []
    explains, predicts = Model(clock, 0.001, log), Model(clock, 0.1, log)
    device.join(explains, background=True)
    device.join(predicts)

    run(device, {explains: 3, predicts: 3})

    assert log == [predicts] * 3 + [explains] * 3


def test_the_part_of_a_device_that_one_gets_is_told_by_who_waits(device: Dispatcher, clock: Clock) -> None:
    one, three, behind = (Model(clock, 0.1, []) for _ in range(3))
    device.join(one)
    device.join(three, weight=3)
    device.join(behind, background=True)
    assert (device.part(one), device.part(three)) == (1, 1)

    parts: list[float] = []

    class Looks(Model):
        def answer_some(self) -> None:
            super().answer_some()
            parts.append(device.part(one))

    three.__class__ = Looks
    run(device, {three: 2, one: 1, behind: 1})

    assert parts[0] == 1 / 4
    assert device.busy_s == pytest.approx(0.4)
    assert device.running_s() == 0
