"""Fetching a file of the web, within bounds, and from no address that a stranger should not be able to reach.

A name is resolved here, each address looked at, and the connection made to the very address that was looked at: what
the name leads to a moment later does not matter. TLS still verifies the name. Proxies of the environment are not used,
for behind one nobody knows which address is asked.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore2
import httpx2

from mms_sdk.errors import InvalidInput
from mms_sdk.schema.sources import url_problem

Networks = Sequence[IPv4Network | IPv6Network]

_MAX_REDIRECTS = 5
_TRIES = 3
_MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 0.5
_CONNECT_S = 10.0
_MOMENT_S = 0.05
_BLOCK_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 500, 502, 503, 504)
_ANY_TYPE = ("", "application/octet-stream", "binary/octet-stream", "application/ogg")
_EMBEDDING = [
    ip_network(each) for each in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]
"""IPv6 networks whose addresses stand for IPv4 ones, which would have to be looked at in their turn."""

_NOT_PUBLIC = [
    ip_network(each)
    for each in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("fec0::/10", "3fff::/20", "5f00::/16", "100::/64", "2001::/23"),
    )
]
"""What is not public, whatever a version of Python says; 168.63.129.16 is the host of a machine in Azure."""
_ISATAP = (0x00005EFE, 0x02005EFE)


def address_problem(address: str, allowed: Networks) -> str:
    """Why nothing is fetched from an address; empty if something may be.

    Args:
        address: As it is connected to.
        allowed: Networks that may be asked though they are not public.
    """
    found = ip_address(address)
    if any(found in network for network in allowed if network.version == found.version):
        return ""
    embeds = isinstance(found, IPv6Address) and any(found in network for network in _EMBEDDING)
    # RFC 5214, section 6.1: an interface of ISATAP stands for the IPv4 address in its last 32 bits.
    embeds |= isinstance(found, IPv6Address) and int(found) >> 32 & 0xFFFFFFFF in _ISATAP
    known = any(found in network for network in _NOT_PUBLIC if network.version == found.version)
    if found.is_global and not (found.is_multicast or found.is_reserved or embeds or known):
        return ""
    return f"{address} is not a public address; a machine allows its own networks with MMS_FETCH_NETWORKS"


class Fetcher:
    """Fetches files, one after the other, over connections that are kept open. One thread at a time.

    Args:
        networks: Those that may be asked though they are not public.
        timeout_s: Seconds that a file may take, all tries and the waits between them together.
        max_bytes: Of a file.
        kind: Content types that are taken begin with it.
        wait: Sleeps.
    """

    def __init__(
        self,
        *,
        networks: Networks,
        timeout_s: float,
        max_bytes: int,
        kind: str,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backend = _CheckedBackend(networks)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(), network_backend=self._backend, max_connections=4
        )
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._kind = kind
        self._wait = wait

    def close(self) -> None:
        """Closes its connections."""
        self._pool.close()

    def fetch(self, url: str, begin: Callable[[], Callable[[bytes], Any]]) -> None:
        """Fetches a file, a few times if the server is busy or the connection breaks.

        Args:
            url: Where it is.
            begin: Called for each try; what it returns is called with one piece after the other.

        Raises:
            InvalidInput: It is not there, not what is wanted, too large or too slow, or must not be fetched.
        """
        self._backend.until = time.monotonic() + self._timeout_s
        for left in reversed(range(_TRIES)):
            try:
                return self._once(httpx2.URL(url), begin)
            except _Busy as error:
                reason, wait_s = str(error), error.wait_s
            except httpcore2.TimeoutException:
                reason, wait_s = "the server did not answer in time", None
                if self._backend.until <= time.monotonic() + _MOMENT_S:
                    raise InvalidInput(
                        f"it took longer than timeout_s={self._timeout_s:g}; the server is slow; raise it"
                    ) from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                reason, wait_s = f"the connection failed: {error}", None
                if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                    left = 0
            if wait_s is None:
                wait_s = _FIRST_WAIT_S * 2 ** (_TRIES - 1 - left)
            if not left or wait_s > _MAX_WAIT_S:
                raise InvalidInput(reason)
            if wait_s >= self._backend.until - time.monotonic():
                raise InvalidInput(f"{reason}; by the next try timeout_s={self._timeout_s:g} is over; raise it")
            self._wait(wait_s)
        raise AssertionError("the last try ends by returning or raising")

    def _once(self, url: httpx2.URL, begin: Callable[[], Callable[[bytes], Any]]) -> None:
        for _ in range(1 + _MAX_REDIRECTS):
            with self._asked(url) as response:
                headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
                if response.status not in _REDIRECTS:
                    self._refuse(response.status, headers)
                    self._take(response, headers, begin())
                    return
                url = _followed(url, headers.get("location", ""))
        raise InvalidInput(f"it is behind more than {_MAX_REDIRECTS} redirects")

    @contextmanager
    def _asked(self, url: httpx2.URL) -> Iterator[httpcore2.Response]:
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.netloc,
            "Accept": f"{self._kind}/*",
            "Accept-Encoding": "identity",  # nothing is decompressed: what comes is what was counted
            "User-Agent": "mms-sdk",
        }
        at = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = dict.fromkeys(("connect", "pool"), _CONNECT_S) | dict.fromkeys(("read", "write"), self._timeout_s)
        with self._pool.stream("GET", at, headers=headers, extensions={"timeout": timeouts}) as response:
            yield response

    def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
        if status in _BUSY:
            raise _Busy(f"the server answers {status}", _seconds(headers.get("retry-after", "")))
        if status != 200:
            raise InvalidInput(f"the server answers {status}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise InvalidInput(f"it is sent as {headers['content-encoding']:.50}, which was not asked for")
        told = headers.get("content-type", "").partition(";")[0].strip().lower()
        if told not in _ANY_TYPE and not told.startswith(f"{self._kind}/"):
            raise InvalidInput(f"the server says that it is {told:.100}; wanted is {self._kind}")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise InvalidInput(f"it has {length:.20} bytes, more than max_bytes={self._max_bytes}")

    def _take(self, response: httpcore2.Response, headers: Mapping[str, str], take: Callable[[bytes], Any]) -> None:
        size = 0
        for piece in response.iter_stream():
            size += len(piece)
            if size > self._max_bytes:
                raise InvalidInput(f"it has more than max_bytes={self._max_bytes}")
            take(piece)


class _Busy(Exception):
    """The server asks to be asked again.

    Args:
        told: What it answered.
        wait_s: After so many seconds, if it says.
    """

    def __init__(self, told: str, wait_s: float | None) -> None:
        super().__init__(told if wait_s is None else f"{told}, and to be asked again in {wait_s:.0f} s")
        self.wait_s = wait_s


def _seconds(retry_after: str) -> float | None:
    # RFC 9110, section 10.2.3: seconds, or a date.
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _followed(url: httpx2.URL, location: str) -> httpx2.URL:
    try:
        there = url.join(location)
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise InvalidInput(f"it redirects to what is no address: {location[:200]!r}") from error
    if not location or (problem := url_problem(str(there))):
        raise InvalidInput(f"it redirects to what is not fetched: {problem if location else 'nowhere'}")
    if url.scheme == "https" and there.scheme != "https":
        raise InvalidInput("it redirects from https to http, where anybody on the way may change it")
    return there


class _CheckedBackend(httpcore2.NetworkBackend):
    """Connects to addresses that were looked at, until a point in time for everything that is asked."""

    def __init__(self, allowed: Networks) -> None:
        self._allowed = allowed
        self._plain = httpcore2.SyncBackend()
        self.until = 0.0

    def left_s(self, timeout: float | None) -> float:
        """Seconds that a call may take.

        Raises:
            httpcore2.ReadTimeout: None.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("no time is left")
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connects to the first address of a host that may be asked and answers."""
        failed: Exception | None = None
        for address in self._addresses(host, port):
            try:
                stream = self._plain.connect_tcp(address, port, self.left_s(timeout), local_address, socket_options)
                return _TimedStream(stream, self)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        assert failed is not None
        raise failed

    def _addresses(self, host: str, port: int) -> list[str]:
        found = _resolved(host, port, self.left_s(_CONNECT_S))
        addresses = list(dict.fromkeys(str(told[4][0]) for told in found))
        problems = {address: address_problem(address, self._allowed) for address in addresses}
        if not (good := [address for address in addresses if not problems[address]]):
            raise InvalidInput(f"nothing is fetched from {host!r}: {problems[addresses[0]]}")
        return good


def _resolved(host: str, port: int, timeout_s: float) -> list[Any]:
    # The system's resolver has no bound that could be set: who waits for it no longer leaves it to itself.
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="mms-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise httpcore2.ConnectError(f"nobody says in time which address {host!r} has") from None
    if isinstance(answer, Exception):
        raise httpcore2.ConnectError(f"{host!r} has no address: {getattr(answer, 'strerror', answer)}") from answer
    return answer


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose calls end when the time of its backend is over."""

    def __init__(self, stream: httpcore2.NetworkStream, backend: _CheckedBackend) -> None:
        self._stream = stream
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes."""
        return self._stream.read(min(max_bytes, _BLOCK_BYTES), self._backend.left_s(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends bytes."""
        self._stream.write(buffer, self._backend.left_s(timeout))

    def close(self) -> None:
        """Ends it."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """The same, encrypted, with the server's name verified."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._backend.left_s(timeout))
        return _TimedStream(stream, self._backend)

    def get_extra_info(self, info: str) -> Any:
        """What is known of the socket."""
        return self._stream.get_extra_info(info)
