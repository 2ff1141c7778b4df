"""Secrets: values that jobs see as variables. They are set and named here, and told to nobody but jobs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/secrets", tags=["jobs"])


@router.get("", **needs("editor"))
def list_secrets(service: Service) -> list[str]:
    """Names of all secrets."""
    return service.workspace.secrets.names()


@router.put("/{name}", status_code=204, **needs("editor", body="raw"))
async def set_secret(service: Service, name: str, request: Request) -> None:
    """Keeps the body as the value of a secret; attempts at jobs that begin from now on see it."""
    # Not as JSON: what is wrong with that would be told with a piece of it.
    value = await request.body()
    await run_in_threadpool(service.workspace.secrets.set, name, value)


@router.delete("/{name}", status_code=204, **needs("editor"))
def remove_secret(service: Service, name: str) -> None:
    """Forgets a secret."""
    service.workspace.secrets.remove(name)
