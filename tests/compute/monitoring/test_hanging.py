"""An alarm comes when no step does, and never while something else is being done; the slow one of several is seen."""

from __future__ import annotations

import pytest

from mms_sdk.compute.monitoring.hanging import HangAlarm, ranks_of
from mms_sdk.schema.rank import Beat, Phase

ALARM = HangAlarm(times=20, at_least_s=120, first_s=3600)
NOW = 1_000_000.0


def beat(ago_s: float, *, rank: int = 0, step: int = 10, phase: Phase = "training", step_s: float = 1.0) -> Beat:
    return Beat(rank=rank, step=step, phase=phase, at=NOW - ago_s, step_s=step_s)


@pytest.mark.parametrize(
    ("ago_s", "step_s", "alarms"),
    [
        (119, 1, False),
        (121, 1, True),
        (121, 0.001, True),  # of tiny steps many may be held up; but not for two minutes
        (121, 0, True),
        (599, 30, False),  # twenty of its usual steps are ten minutes
        (601, 30, True),
        (-50, 1, False),  # a clock that is ahead
    ],
)
def test_it_waits_for_so_many_usual_steps_and_at_least_so_long(ago_s: float, step_s: float, alarms: bool) -> None:
    assert (ALARM.reason([beat(ago_s, step_s=step_s)], now=NOW) is not None) is alarms


@pytest.mark.parametrize("phase", ["compiling", "evaluating", "saving"])
def test_it_never_comes_while_any_process_does_something_else(phase: Phase) -> None:
    others = [beat(10**6, rank=rank) for rank in range(3)]

    assert ALARM.reason([*others, beat(10**6, rank=3, phase=phase)], now=NOW) is None
    assert ALARM.reason(others, now=NOW) is not None


def test_before_the_first_step_it_waits_for_an_hour() -> None:
    assert ALARM.reason([beat(3599, step=0, phase="starting", step_s=0)], now=NOW) is None
    why = ALARM.reason([beat(3601, step=0, phase="starting", step_s=0)], now=NOW)
    assert why == "process 0 has taken no step for 3601 s; it is at step 0"


def test_it_says_which_process_and_what_is_usual() -> None:
    why = ALARM.reason([beat(1), beat(500, rank=1, step=12_345, step_s=0.25)], now=NOW)

    assert why == "process 1 has taken no step for 500 s, which usually take 0.25 s; it is at step 12,345"


def test_of_nobody_nothing_is_said() -> None:
    assert ALARM.reason([], now=NOW) is None
    assert ranks_of([], now=NOW) == []


def test_a_process_is_compared_with_the_median_of_all() -> None:
    found = ranks_of([beat(1, rank=rank, step_s=step_s) for rank, step_s in enumerate([1.0, 1.0, 3.0, 0])], now=NOW)

    assert [each.ratio for each in found] == [1.0, 1.0, 3.0, None]
    assert [each.rank for each in found] == [0, 1, 2, 3]
    assert found[0].since_s == 1.0
    assert ranks_of([beat(-5)], now=NOW)[0].since_s == 0.0
    assert ranks_of([beat(1).model_copy(update={"input_wait": 0.5})], now=NOW)[0].input_wait == 0.5


def waiting(*shares: tuple[float, float]) -> list[Beat]:
    """Processes that wait so much for data, and for steps."""
    return [
        beat(1, rank=rank).model_copy(update={"input_wait": data, "step_wait": steps})
        for rank, (data, steps) in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("shares", "late"),
    [
        ([(0.0, 0.95), (0.0, 0.65)], [None, "host"]),
        ([(0.0, 0.95), (0.3, 0.65)], [None, "data"]),
        ([(0.5, 0.4), (0.5, 0.4)], [None, None]),  # all lack data alike
        ([(0.0, 0.95), (0.0, 0.90), (0.0, 0.93)], [None, None, None]),
        ([(0.0, 0.9), (0.4, 0.5), (0.0, 0.5), (0.0, 0.9), (0.0, 0.9)], [None, "data", "host", None, None]),
        ([(0.9, 0.0)], [None]),  # one alone keeps nobody waiting
        ([(0.0, 0.5), (0.0, 1.5)], ["host", None]),
        ([], []),
    ],
)
def test_the_others_wait_for_who_waits_least(shares: list[tuple[float, float]], late: list[str | None]) -> None:
    assert [each.holds_up for each in ranks_of(waiting(*shares), now=NOW)] == late


def test_of_those_that_do_not_train_or_are_new_nothing_is_said() -> None:
    first, second = waiting((0.0, 0.95), (0.0, 0.2))
    for other in ({"phase": "evaluating"}, {"step_s": 0.0}):
        found = ranks_of([first, second.model_copy(update=other)], now=NOW)
        assert [each.holds_up for each in found] == [None, None]
