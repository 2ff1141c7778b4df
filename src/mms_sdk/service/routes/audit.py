"""The audit log: read and verified by admins, and written by nobody but the guard."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from mms_sdk.schema.audit import AuditEntry, AuditHead
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/audit", tags=["access"])
_NEWEST = 2**62


@router.get("", **needs("admin"))
def list_entries(
    service: Service,
    since: Annotated[int, Query(ge=0, le=_NEWEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 500,
) -> list[AuditEntry]:
    """Lines with a number above `since`, oldest first."""
    return list(islice(service.workspace.audit.entries(since=since), limit))


@router.get(":verify", **needs("admin"))
def verify_log(
    service: Service,
    number: Annotated[int, Query(ge=0, le=_NEWEST)] = 0,
    hash: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
) -> AuditHead:
    """Reads the whole log; the end it has, and an error if a line was changed. An end that it had once can be named."""
    return service.workspace.audit.verify(head=AuditHead(number=number, hash=hash) if hash else None)
