"""What a job has used is what its attempts were given, for as long as they ran; it costs what that costs."""

from __future__ import annotations

from typing import Any

import pytest

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Attempt, Ended, Job, JobState
from mms_sdk.service.usage import usage_of
from mms_sdk.settings import prices

NOW = "2026-01-02T00:00:00.000Z"


def job(state: JobState = "running", *, engine: str | None = "local", **told: Any) -> Job:
    return Job(id="J", kind="script", name="x", state=state, created_at=at("00:00:00"), engine=engine, **told)


def at(time: str) -> str:
    return f"2026-01-01T{time}.000Z"


def attempt(number: int, begin: str, end: str | None, **given: Any) -> Attempt:
    ended = None if end is None else Ended(reason="lost", at=at(end))
    return Attempt(job="J", number=number, owner="", given=given, started_at=at(begin), ended=ended)


def test_each_attempt_counts_with_what_it_was_given() -> None:
    attempts = [
        attempt(1, "01:00:00", "02:00:00", cpus=4, gpus=["0", "1"], memory=0),
        attempt(2, "03:00:00", "03:30:00", cpus=2, gpus=["0"], memory=0),
        attempt(3, "23:00:00", None, cpus=1, gpus=[], memory=0),
    ]

    used = usage_of(job(), attempts, prices={"cpu": 0.1, "gpu": 2.0}, now=NOW)

    assert (used.seconds, used.cpu_s, used.gpu_s) == (2.5 * 3600, (4 + 1 + 1) * 3600, 2.5 * 3600)
    assert used.cost == pytest.approx(6 * 0.1 + 2.5 * 2.0)


def test_what_is_given_of_several_nodes_counts_on_each() -> None:
    attempts = [attempt(1, "01:00:00", "02:00:00", nodes=3, cpus=4, gpus=2, memory=0)]

    used = usage_of(job(), attempts, prices={}, now=NOW)

    assert (used.cpu_s, used.gpu_s) == (12 * 3600, 6 * 3600)


@pytest.mark.parametrize(
    ("known", "gpus", "cost"),
    [
        ({}, [], None),
        ({"cpu": 1.0}, [], 2.0),
        ({"cpu": 1.0}, ["0"], None),
        ({"gpu": 3.0}, ["0"], None),
        ({"cpu": 0.0, "gpu": 0.0}, ["0"], 0.0),
    ],
)
def test_what_has_no_price_is_not_said_to_be_free(known: dict[str, float], gpus: list[str], cost: float | None) -> None:
    attempts = [attempt(1, "01:00:00", "02:00:00", cpus=2, gpus=gpus)]

    assert usage_of(job(), attempts, prices=known, now=NOW).cost == cost


def test_what_waits_has_used_nothing_and_work_of_a_process_its_time_alone() -> None:
    waits = usage_of(job("queued"), [], prices={"cpu": 1.0}, now=NOW)
    own = usage_of(job(engine=None, started_at=at("01:00:00")), [], prices={"cpu": 1.0}, now=at("01:00:05"))

    assert (waits.seconds, waits.cpu_s, waits.gpu_s, waits.cost) == (0, 0, 0, 0)
    assert (own.seconds, own.cpu_s, own.gpu_s, own.cost) == (5, None, None, None)


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    assert usage_of(job(), [attempt(1, "02:00:00", "01:00:00", cpus=2)], prices={}, now=NOW).cpu_s == 0


@pytest.mark.parametrize(
    ("told", "found"),
    [("", {}), ("cpu=0.04", {"cpu": 0.04}), (" cpu=1, gpu=2.5 ", {"cpu": 1.0, "gpu": 2.5}), ("gpu=0", {"gpu": 0.0})],
)
def test_prices_are_said_by_the_environment(told: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_PRICES", told)
    assert prices() == found


@pytest.mark.parametrize("told", ["cpu", "cpu=", "cpu=x", "cpu=-1", "cpu=nan", "gpu=inf", "h=2", "cpu=1,,gpu=2", "="])
def test_prices_that_are_none_are_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_PRICES", told)
    with pytest.raises(InvalidRequest, match=r"MMS_PRICES has prices .* e\.g\. cpu="):
        prices()
