"""What happened to jobs, and what happens."""

from __future__ import annotations

from collections.abc import Iterator

from mms_sdk.client.api import Api
from mms_sdk.schema.event import Event, EventPage


def events(api: Api, *, since: int = 0, job: str | None = None, follow: bool = False) -> Iterator[Event]:
    """Events behind a number, oldest first; with `follow`, also those that come, for as long as somebody reads.

    Args:
        api: The workspace's.
        since: The number.
        job: Of one job alone; then the last one is its end.
        follow: Whether to wait for more.
    """
    if not follow:
        yield from _there(api, since, job)
        return
    for message in api.follow("/v1/events", since=since, job=job):
        event = Event.model_validate_json(message.data)
        yield event
        if job is not None and event.kind == "ended":
            return


def _there(api: Api, since: int, job: str | None) -> Iterator[Event]:
    while page := api.get("/v1/events", EventPage, since=since, job=job):
        yield from page.events
        if not page.events:
            return
        since = page.next
