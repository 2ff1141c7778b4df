"""A way to an HTTP server on which requests and answers get lost, late, cut or refused, as a plan says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

FAULTS = ("refused", "reset", "503", "slow", "torn", "lost")
"""Closed before anything is read; reset half-way through the answer; told to slow down; a second late; closed half-way
through the answer; done by the server, without an answer."""
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 38\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code></Error>  "
)


class FaultyProxy:
    """Listens on loopback.

    Args:
        port: Of the server on loopback that answers.
        plan: Called with each request's first line; what goes wrong with it, or None.

    Attributes:
        met: How often what went wrong.
    """

    def __init__(self, port: int, plan: Callable[[str], str | None]) -> None:
        self._port = port
        self.plan = plan
        self.met: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(30)
            request = _read_request(client)
            if not request:
                return
            fault = self.plan(request.split(b"\r\n", 1)[0].decode("latin-1"))
            if fault is not None:
                self.met[fault] += 1
            self._answer(client, request, fault)

    def _answer(self, client: socket.socket, request: bytes, fault: str | None) -> None:
        if fault == "refused":
            _reset(client)
            return
        if fault == "503":
            client.sendall(_BUSY)
            return
        if fault == "slow":
            time.sleep(1)
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as server:
            server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = b"".join(iter(lambda: server.recv(2**16), b""))
        if fault == "lost":
            _reset(client)
        elif fault in ("reset", "torn"):
            client.sendall(answer[: len(answer) // 2])
            if fault == "reset":
                _reset(client)
        else:
            client.sendall(answer)


@contextlib.contextmanager
def faulty_proxy(port: int, plan: Callable[[str], str | None]) -> Iterator[FaultyProxy]:
    """One that listens until the block ends."""
    proxy = FaultyProxy(port, plan)
    try:
        yield proxy
    finally:
        proxy.close()


def _read_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(2**16)
        if not piece:
            return b""
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lines = [line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:]]
    length = next((int(value) for name, value in lines if name == b"content-length"), 0)
    while len(body) < length:
        body += client.recv(2**16)
    return head + b"\r\n\r\n" + body


def _reset(client: socket.socket) -> None:
    # Closing with a linger of nothing sends RST instead of FIN.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
