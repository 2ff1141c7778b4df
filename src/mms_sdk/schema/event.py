"""Events: what happened to jobs, in the order in which it did."""

from __future__ import annotations

from typing import Any, Literal

from mms_sdk.schema.base import Schema

EventKind = Literal["queued", "starting", "running", "cancelling", "retrying", "ended", "alarm"]


class Event(Schema):
    """One thing that happened.

    Attributes:
        number: From 1, and one more for each; whoever reads goes on behind the last number that it has seen.
        at: When.
        job: To which job.
        attempt: To which attempt at it; None where there are none, as while a job waits.
        kind: `queued`: it waits for an engine. `starting`, `running`: an attempt began, and its code did. `cancelling`:
            it was asked to stop. `retrying`: an attempt ended, and the job waits for another. `ended`: for good.
            `alarm`: something seems wrong with it.
        detail: More, by kind: of `starting` what it was `given`; of `retrying` and `ended` the `reason` and what the
            error said as `detail`, with the job's `state`; of an `alarm` what it is as `detail`.
    """

    number: int
    at: str
    job: str
    attempt: int | None = None
    kind: EventKind
    detail: dict[str, Any] = {}

    def __str__(self) -> str:
        attempt = f", attempt {self.attempt}" if self.attempt else ""
        said = "".join(f", {name} {value}" for name, value in self.detail.items() if value not in (None, ""))
        return f"{self.at} job {self.job}{attempt}: {self.kind}{said}"


class EventPage(Schema):
    """Some events, oldest first, and the number behind which to go on."""

    events: tuple[Event, ...]
    next: int
