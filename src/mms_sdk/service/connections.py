"""How many connections a server holds: fewer than it has descriptors for, and of those that ask nothing the newest.

Whoever opens thousands and says nothing, or half a request, closes their own: a client that asks is never the oldest
of those that are silent.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from typing import Any

import orjson

from mms_sdk.errors import Overloaded
from mms_sdk.service.handshakes import secured
from mms_sdk.service.problems import CONTENT_TYPE, as_problem

ACCEPTED_AT_ONCE = 64
"""Between two looks at how many there are."""
_WANTED_DESCRIPTORS = 65_536
_MOST = 8192
_KEPT_FREE = 384
"""Descriptors for files, the catalog, and what is accepted between two looks."""


def most_connections() -> int:
    """How many connections this process can hold, once it may open as many files as it is ever let to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else max(16, min(_MOST, soft - _KEPT_FREE))


def bounded(protocol: Any, most: int, tls: ssl.SSLContext | None = None) -> Any:
    """A protocol of uvicorn's of which no more than `most` connections are open, with TLS or before it, too."""
    held: dict[Any, None] = {}  # the oldest first
    base = protocol if tls is None else secured(protocol, tls)

    class Bounded(base):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            self.wire = transport  # below TLS, if there is any
            super().connection_made(transport)
            held[self] = None
            if len(held) <= most:
                return
            silent = next((each for each in held if each is not self and is_silent(each)), None)
            if silent is not None:
                del held[silent]
                silent.wire.abort()
            else:
                del held[self]
                if tls is None:
                    transport.write(_full(most))
                transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            held.pop(self, None)
            super().connection_lost(exc)

    return Bounded


def is_silent(connection: Any) -> bool:
    """Whether no request of a connection is being answered: none has come whole, or its answer is sent."""
    request = getattr(connection, "cycle", None)
    return request is None or bool(request.response_complete)


def _full(most: int) -> bytes:
    told = as_problem(Overloaded(f"at most {most} requests are answered at a time, and so many are; try again"))
    body = orjson.dumps(told)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {CONTENT_TYPE}\r\nretry-after: 1\r\nconnection: close\r\n"
    )
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
