"""What happened to jobs, and what happens."""

from __future__ import annotations

from collections.abc import Iterator

from mms_sdk.client.api import Api
from mms_sdk.schema.event import Event, EventPage


def events(api: Api, *, since: int = 0, follow: bool = False) -> Iterator[Event]:
    """Events behind a number, oldest first; with `follow`, also those that come, for as long as somebody reads.

    Args:
        api: The workspace's.
        since: The number.
        follow: Whether to wait for more.
    """
    if not follow:
        yield from _there(api, since)
        return
    for message in api.follow("/v1/events", since=since):
        yield Event.model_validate_json(message.data)


def events_of(api: Api, job: str, *, follow: bool = False) -> Iterator[Event]:
    """Events of one job, oldest first; with `follow`, also those that come until it has ended.

    Args:
        api: The workspace's.
        job: Its id.
        follow: Whether to wait for more.
    """
    if not follow:
        yield from _there(api, 0, job)
        return
    for message in api.follow(f"/v1/jobs/{job}/stream", only="event"):
        if message.event == "end":
            return
        if message.event == "event":
            yield Event.model_validate_json(message.data)


def _there(api: Api, since: int, job: str | None = None) -> Iterator[Event]:
    while (page := api.get("/v1/events", EventPage, since=since, job=job)).events:
        yield from page.events
        since = page.next
