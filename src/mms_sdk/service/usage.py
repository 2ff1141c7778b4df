"""What jobs have had of the machines, by what their attempts were given and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from mms_sdk.schema.job import Attempt, Job
from mms_sdk.schema.usage import Usage
from mms_sdk.storage.queue import taken_by

_HOUR = 3600.0


def usage_of(job: Job, attempts: Sequence[Attempt], *, prices: Mapping[str, float], now: str) -> Usage:
    """What a job has had so far.

    Args:
        job: The job.
        attempts: All attempts at it.
        prices: Per core or GPU and hour, by `cpu` and `gpu`.
        now: The time, to which what runs is counted.
    """
    if job.engine is None:
        return Usage(seconds=_seconds(job.started_at or now, job.ended_at or now))
    cpu_s = gpu_s = seconds = 0.0
    for attempt in attempts:
        took = _seconds(attempt.started_at, attempt.ended.at if attempt.ended else now)
        seconds += took
        taken = taken_by(attempt.given)
        cpu_s += took * taken.cpus
        gpu_s += took * taken.gpus
    had = {"cpu": cpu_s, "gpu": gpu_s}
    priced = [prices[name] * amount / _HOUR for name, amount in had.items() if name in prices]
    # What has no price is no reason to say that it cost nothing.
    known = bool(priced) and all(name in prices for name, amount in had.items() if amount)
    return Usage(seconds=seconds, cpu_s=cpu_s, gpu_s=gpu_s, cost=sum(priced) if known else None)


def _seconds(begin: str, end: str) -> float:
    # A clock that was set back between them makes no negative time.
    return max(0.0, (_at(end) - _at(begin)).total_seconds())


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
