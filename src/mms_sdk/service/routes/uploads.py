"""Uploads: files sent piece by piece, to be brought into a dataset."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.upload import Upload, UploadedFile, UploadRequest
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{44}):")  # RFC 9530


@router.get("", **needs("editor"))
def list_uploads(service: Service) -> list[Upload]:
    """All that are there, the oldest first."""
    return service.workspace.uploads.list()


@router.post("", status_code=201, **needs("editor"))
def begin_upload(service: Service, asked: UploadRequest) -> Upload:
    """Begins one. It stays for a week after the last piece of it."""
    return service.workspace.uploads.begin(asked.name)


@router.get("/{upload}", **needs("editor"))
def get_upload(service: Service, upload: str) -> Upload:
    """What is there of one."""
    return service.workspace.uploads.get(upload)


@router.get("/{upload}/files/{path:path}", **needs("editor"))
def get_uploaded_file(service: Service, upload: str, path: str) -> UploadedFile:
    """How much of a file is there: where the next piece begins."""
    return service.workspace.uploads.file(upload, path)


@router.put("/{upload}/files/{path:path}", **needs("editor", body="raw"))
async def add_to_upload(
    service: Service, upload: str, path: str, request: Request, offset: Annotated[int, Query(ge=0)] = 0
) -> UploadedFile:
    """Adds the body to the end of a file, which is `offset` bytes long by now.

    `Content-Digest: sha-256=:BASE64:` is that of the body; the last piece has `Repr-Digest`, that of the whole file.
    """
    digest = _digest(request, "content-digest")
    whole = _digest(request, "repr-digest") if "repr-digest" in request.headers else None
    content = await request.body()
    uploads = service.workspace.uploads
    size = await run_in_threadpool(uploads.add, upload, path, content, offset=offset, digest=digest, whole=whole)
    return UploadedFile(path=path, bytes=size, complete=whole is not None)


@router.post("/{upload}:complete", **needs("editor"))
def complete_upload(service: Service, upload: str) -> Upload:
    """Says that nothing will be added, so that something can be made of it."""
    return service.workspace.uploads.complete(upload)


@router.delete("/{upload}", status_code=204, **needs("editor"))
def remove_upload(service: Service, upload: str) -> None:
    """Removes one."""
    service.workspace.uploads.remove(upload)


def _digest(request: Request, header: str) -> bytes:
    given = request.headers.get(header, "")
    found = _DIGEST.search(given)
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InvalidRequest(
            f"pieces come with their SHA-256, as {header.title()}: sha-256=:BASE64: (RFC 9530); got {given[:100]!r}"
        )
    return digest
