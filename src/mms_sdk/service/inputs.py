"""The inputs of `:predict`: whatever of the accepted forms they came in, as rows for the device."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from email.message import Message

import numpy as np

from mms_sdk.compute.inference.batcher import too_many_rows
from mms_sdk.errors import InvalidRequest, UnsupportedMediaType
from mms_sdk.service.deployments import Served
from mms_sdk.service.instances import read_instances, read_rows
from mms_sdk.types import Array

_FILES = {"image": ("image/",), "audio": ("audio/",), "text": ("text/plain",)}
"""Content types of one input as it is, by kind; bytes of any sort are taken for it too."""
_BYTES = "application/octet-stream"
_PARTS = "multipart/form-data"


async def read_inputs(served: Served, content_type: str, body: bytes) -> Array:
    """The rows of a request: of JSON, of one file, or of the files of a form.

    Raises:
        UnsupportedMediaType: It is of another content type than this model takes.
        InvalidRequest: It is not what its content type says, or has too many rows.
        InvalidInput: An input is none of the model's kind.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _from_json(served, body)
    files = _FILES.get(served.predictor.kind.name)
    if files is not None and kind.startswith((*files, _BYTES)):
        return await _prepared(served, [body])
    if files is not None and kind == _PARTS:
        return await _prepared(served, read_parts(content_type, body, sizes=served.batcher.sizes))
    raise UnsupportedMediaType(f"a prediction takes {_accepted(served)}; got {kind!r}")


def read_parts(content_type: str, body: bytes, *, sizes: Sequence[int]) -> list[bytes]:
    """The contents of a form's parts, in order, whatever their names (RFC 7578).

    Args:
        content_type: Of the request; it names the boundary.
        body: The form.
        sizes: Of batches that there are programs for; the last is how many parts one request may have.

    Raises:
        InvalidRequest: It is no such form, or has no part or too many.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary() or ""
    if not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise InvalidRequest(f"multipart/form-data names its boundary, 1 to 70 characters; got {content_type[:120]!r}")
    _, *sections = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not sections or not sections[-1].startswith(b"--"):
        raise InvalidRequest(f"a form ends with its boundary, --{boundary}--; this one does not; send all of it")
    *sections, _ = sections
    if not sections:
        raise InvalidRequest("a prediction has at least one part in its form; this one has none")
    if len(sections) > sizes[-1]:
        raise too_many_rows(len(sections), sizes)
    contents = []
    for section in sections:
        head, found, content = section.partition(b"\r\n\r\n")
        if not found or b"content-disposition" not in head.lower():
            raise InvalidRequest("each part of a form has a Content-Disposition and an empty line before its content")
        contents.append(content)
    return contents


async def _prepared(served: Served, items: list[bytes]) -> Array:
    prepare = served.predictor.prepare
    return np.stack(await asyncio.to_thread(lambda: [prepare(item) for item in items]))


async def _from_json(served: Served, body: bytes) -> Array:
    if served.predictor.kind.name != "image":
        return await asyncio.to_thread(_rows, served, body)
    instances = read_instances(body, served.predictor.input_shape, sizes=served.batcher.sizes)
    prepare = served.predictor.prepare
    if isinstance(instances[0], bytes):
        return np.stack(await asyncio.to_thread(lambda: [prepare(picture) for picture in instances]))
    rows = [prepare(pixels) for pixels in instances]
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _rows(served: Served, body: bytes) -> Array:
    instances = read_rows(body, kind=served.predictor.kind.name, sizes=served.batcher.sizes)
    return np.stack([served.predictor.prepare(instance) for instance in instances])


def _accepted(served: Served) -> str:
    kinds = {
        "image": ", a picture (image/*) or several (multipart/form-data)",
        "audio": ", a recording (audio/*) or several (multipart/form-data)",
        "text": ", text/plain or several in multipart/form-data",
    }
    return "application/json" + kinds.get(served.predictor.kind.name, "")
