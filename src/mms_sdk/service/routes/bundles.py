"""Bundles: the code of jobs, sent before the job that runs it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from mms_sdk.errors import UnsupportedMediaType
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/bundles", tags=["jobs"])


@router.post("", status_code=201, **needs("editor", body="raw"))
async def keep_bundle(service: Service, request: Request) -> dict[str, str]:
    """Keeps a zip archive of files; the answer's `bundle` is its SHA-256, by which a job names it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/zip":
        raise UnsupportedMediaType(f"a bundle is sent as application/zip; got {kind or 'no content type'!r}")
    packed = await request.body()
    return {"bundle": await run_in_threadpool(service.workspace.bundles.keep, packed)}
