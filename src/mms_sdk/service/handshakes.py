"""The handshake of TLS, done by the protocol of a connection itself.

Of one that asyncio's server does, a protocol hears nothing before its end: connections that never begin it could be
neither counted nor closed.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

HANDSHAKE_TIMEOUT_S = 10.0
"""From the connection to the handshake's end."""


def secured(protocol: Any, tls: ssl.SSLContext) -> Any:
    """A protocol of uvicorn's that is made with connections as they come, and hears only what is said within TLS."""

    class Secured(protocol):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            self._early: list[bytes] | None = []  # what is said between the end of the handshake and the hearing of it
            transport.pause_reading()
            self._securing = asyncio.ensure_future(self._secure(transport))

        async def _secure(self, transport: asyncio.Transport) -> None:
            within = await _handshake(self, transport, tls)
            if within is None:
                self.connection_lost(None)
                return
            early, self._early = self._early or [], None
            super().connection_made(within)
            for data in early:
                super().data_received(data)

        def data_received(self, data: bytes) -> None:
            if self._early is None:
                super().data_received(data)
            else:
                self._early.append(data)

        def eof_received(self) -> bool | None:
            return None if self._early is not None else super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._early is None:
                super().connection_lost(exc)

    return Secured


async def _handshake(protocol: Any, transport: asyncio.Transport, tls: ssl.SSLContext) -> asyncio.Transport | None:
    if transport.is_closing():  # what came too much
        return None
    loop = asyncio.get_running_loop()
    try:
        within = await loop.start_tls(
            transport, protocol, tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
    except OSError:  # no TLS, none in time, or nobody there any more
        return None
    return None if within is None or within.is_closing() else within
