"""Quotas: how much the jobs of a project may take at once."""

from __future__ import annotations

from fastapi import APIRouter

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.quota import Quota
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/quotas", tags=["jobs"])


@router.get("", **needs("viewer"))
def list_quotas(service: Service) -> list[Quota]:
    """All quotas, by project."""
    return service.workspace.catalog.quotas.list()


@router.put("/{project}", **needs("admin"))
def set_quota(service: Service, project: str, asked: Quota) -> Quota:
    """Gives a project a quota, in place of an earlier one; what runs goes on, and what waits may begin."""
    if asked.project != project:
        raise InvalidRequest(f"a quota is put where its project's is; got that of {asked.project!r} for {project!r}")
    service.workspace.catalog.quotas.set(asked)
    service.start_waiting()
    return asked


@router.delete("/{project}", status_code=204, **needs("admin"))
def remove_quota(service: Service, project: str) -> None:
    """Takes the quota of a project away."""
    service.workspace.catalog.quotas.remove(project)
    service.start_waiting()
