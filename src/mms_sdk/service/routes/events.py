"""Events: what happened to jobs, as a page or as it happens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from mms_sdk.schema.event import EventPage
from mms_sdk.service import streams
from mms_sdk.service.following import EventSource, number_in
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/events", tags=["jobs"])

_NEWEST = 2**62


@router.get(
    "",
    response_model=EventPage,
    responses={200: {"content": {streams.CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    **needs("viewer"),
)
async def list_events(
    service: Service,
    request: Request,
    since: Annotated[int, Query(ge=0, le=_NEWEST)] = 0,
    job: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 500,
) -> EventPage | Response:
    """Events with a number above `since`, oldest first, of all jobs or of one.

    With `Accept: text/event-stream` these and all that follow, one a message, which `Last-Event-ID` goes on behind.
    """
    if job is not None:
        await run_in_threadpool(service.workspace.catalog.jobs.get, job)
    if streams.is_asked_for(request):
        seen = number_in(last) if (last := request.headers.get("last-event-id")) else since
        return await service.streams.answer(EventSource(service.workspace, service.reconcile, since=seen, job=job))
    events = await run_in_threadpool(service.workspace.catalog.events.list, since=since, job=job, limit=limit)
    return EventPage(events=tuple(events), next=events[-1].number if events else since)
