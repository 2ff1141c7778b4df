"""Where a server listens, and what that takes: TLS, or a proxy that does it, wherever others can listen in."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mms_sdk.errors import Conflict, Forbidden, InvalidRequest, Unavailable
from mms_sdk.service.guard import App, Receive, Scope, Send
from mms_sdk.service.problems import send_problem

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\]")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens.

    Attributes:
        host: An address; one that is no loopback takes TLS or a proxy, and names.
        port: 0 for any that is free.
        unix: A socket in the file system instead, for this user alone.
        tls_cert: A file with the certificate, and those between it and a root.
        tls_key: A file with its private key.
        proxies: Addresses and networks of the proxies in front, which do TLS and whose `X-Forwarded-For` is believed.
        names: What the server is called in `Host`, beside the names of this machine.

    Raises:
        InvalidRequest: They do not fit together.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    unix: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    proxies: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidRequest("TLS takes a certificate and its key: --tls-cert FILE --tls-key FILE; one is missing")
        if self.unix is not None and (self.tls_cert or self.proxies):
            raise InvalidRequest("a unix socket is for this user of this machine, without TLS and proxies")
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise InvalidRequest(
                    f"a proxy is an address or a network such as 10.0.0.5 or 10.0.0.0/28; got {proxy!r}: {error}"
                ) from error
        for name in self.names:
            if not _NAME.fullmatch(name):
                raise InvalidRequest(
                    f"a server's name is as it stands in Host, lower case and without port; got {name!r}"
                )
        if self.unix is None and not _is_loopback(self.host):
            self._check_open()

    def _check_open(self) -> None:
        if self.tls_cert is None and not self.proxies:
            raise InvalidRequest(
                f"without TLS a server listens on a loopback address; got {self.host!r}; use 127.0.0.1 and an SSH "
                f"tunnel to reach it from elsewhere, or --tls-cert and --tls-key, or --behind-proxy ADDRESS"
            )
        if not self.names:
            raise InvalidRequest(
                f"a server that listens on {self.host!r} is told by what names it is asked: --name mms.example.org"
            )

    @property
    def secure(self) -> bool:
        """Whether it does TLS itself."""
        return self.tls_cert is not None

    @contextlib.contextmanager
    def bound(self) -> Iterator[socket.socket]:
        """The socket, bound, and closed afterwards.

        Raises:
            Unavailable: It is taken, or not allowed.
        """
        if self.unix is None:
            with _bound(self.host, self.port) as listening:
                yield listening
        else:
            with _bound_unix(self.unix) as listening:
                yield listening

    def address_of(self, listening: socket.socket) -> str:
        """How it is asked."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        host, port = listening.getsockname()[:2]
        return f"{'https' if self.secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def check_tls(self) -> None:
        """Looks at the certificate and the key before anything else is done.

        Raises:
            InvalidRequest: They are not there, not a pair, or others can read the key.
        """
        if self.tls_cert is None or self.tls_key is None:
            return
        try:
            if stat.S_IMODE(self.tls_key.stat().st_mode) & 0o007:
                raise InvalidRequest(f"a private key is private; everybody can read {self.tls_key}; chmod 600 it")
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, password="")
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"{self.tls_cert} and {self.tls_key} are no certificate and its key, without a password: {error}"
            ) from error


class BehindProxy:
    """An application that is asked through proxies, and by nobody else.

    Args:
        app: What is asked.
        proxies: Addresses and networks of those proxies.
        only: Whether others are refused; else they are let in as who they are.
    """

    def __init__(self, app: App, proxies: tuple[str, ...], *, only: bool) -> None:
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

        forwarded: Any = ProxyHeadersMiddleware(app, list(proxies))  # type: ignore[arg-type]
        self._app = app
        self._forwarded = forwarded
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]
        self._only = only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on with the address that the nearest proxy saw."""
        if scope["type"] == "lifespan" or self._is_proxy(scope):
            await self._forwarded(scope, receive, send)
        elif self._only:
            await send_problem(send, Forbidden("this server is asked through its proxy, which does TLS; ask that one"))
        else:
            await self._app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        try:
            address = ipaddress.ip_address(client[0] if client else "")
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended does not hold it
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise Unavailable(
            f"a server needs a free port from 1 to 65535, or 0 for any; {host}:{port} is taken or not allowed "
            f"({error}); choose another with --port"
        ) from error
    return bound


@contextlib.contextmanager
def _bound_unix(path: Path) -> Iterator[socket.socket]:
    _remove_left_behind(path)
    before = os.umask(0o177)  # nobody else gets in between binding and a change of the mode
    try:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise Unavailable(f"a unix socket cannot be made at {str(path)!r}: {error}; choose another place") from error
    finally:
        os.umask(before)
    try:
        with listening:
            yield listening
    finally:
        path.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise Conflict(f"a unix socket is made where nothing is; there is something else at {path}; choose another")
    with socket.socket(socket.AF_UNIX) as asked:
        if asked.connect_ex(str(path)) == 0:
            raise Unavailable(f"a server listens at {path} already; end that one, or choose another place")
    path.unlink()  # of a server that was killed
