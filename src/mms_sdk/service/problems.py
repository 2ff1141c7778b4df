"""Errors as problem+json (RFC 9457): the one table from what went wrong to what a client sees."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import orjson

from mms_sdk.errors import MethodNotAllowed, MmsError, Overloaded, Unauthenticated, Unavailable, to_problem
from mms_sdk.service import request_ids

CONTENT_TYPE = "application/problem+json"
_LONGEST_DETAIL = 2000  # messages quote what they were given, which may be a whole body
_log = logging.getLogger("mms.service")


def as_problem(error: BaseException) -> dict[str, Any]:
    """An error as a problem object. What was not raised on purpose keeps its details to itself."""
    if isinstance(error, MmsError):
        problem = to_problem(error)
        problem["detail"] = problem["detail"][:_LONGEST_DETAIL]
    else:
        detail = "the server met an error it did not expect; its log has the details"
        problem = {"type": "urn:mms:internal-error", "title": "internal error", "status": 500, "detail": detail}
    return problem | {"request": request_ids.current()}


def headers_for(error: BaseException) -> dict[str, str]:
    """Headers that belong to an error."""
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, MethodNotAllowed):
        return {"allow": ", ".join(error.allowed)}
    if isinstance(error, Overloaded):
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unavailable):
        return {"retry-after": "1"}
    return {}


async def send_problem(send: Any, error: BaseException, *, oip: bool = False) -> None:
    """Answers an ASGI request with an error, and logs what nobody expected.

    Args:
        send: ASGI's.
        error: What went wrong.
        oip: Say it in the member `error` too, where clients of the Open Inference Protocol look for it.
    """
    if not isinstance(error, MmsError):
        _log.error("unexpected error in request %s", request_ids.current(), exc_info=error)
    problem = as_problem(error)
    if oip:
        problem["error"] = problem["detail"]
    headers = {"content-type": CONTENT_TYPE, **headers_for(error)}
    await send_bytes(send, problem["status"], orjson.dumps(problem), headers)


async def send_bytes(send: Any, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Answers an ASGI request with a whole body."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
