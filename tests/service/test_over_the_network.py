"""The service behind its real HTTP server on a loopback port, asked by sockets that no library would open."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psutil
import pytest

import tiny_model
from asgi_calls import Service
from tiny_model import LABELS, Tiny


def exchange(port: int, sent: bytes, *, wait_s: float = 3.0) -> bytes:
    """What comes back for these bytes until the server closes the connection, or nothing more comes."""
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(sent)
        connection.settimeout(wait_s)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionResetError):  # closed with some of what was sent unread
            pass
        return received


def request(service: Service, line: str, *headers: str, body: bytes = b"", role: str | None = "admin") -> bytes:
    lines = [f"{line} HTTP/1.1", *headers, "connection: close"]
    if role is not None:
        lines.append(f"authorization: Bearer {service.tokens[role]}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_prediction_over_a_socket_says_what_the_trained_module_says(service: Service, tiny: Tiny, port: int) -> None:
    pictures = tiny_model.pictures_of(3)
    body = json.dumps({"instances": pictures.tolist()}).encode()
    headers = ("host: localhost", "content-type: application/json", f"content-length: {len(body)}")

    answer = exchange(port, request(service, "POST /v1/models/tiny:predict", *headers, body=body, role="predict"))

    assert status(answer) == 200
    told = json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]
    scores = [[{e["label"]: e["score"] for e in one["ranked"]}[label] for label in LABELS] for one in told]
    np.testing.assert_allclose(scores, tiny.scores(pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), (400, 403)),
        (("host: evil.example",), (403,)),
        (("host: localhost", "host: evil.example"), (400, 403)),
        (("host: localhost", "origin: https://evil.example"), (403,)),
        (("host: localhost", "content-length: 5", "content-length: 6"), (400,)),
        (("host: localhost", "content-length: -5"), (400,)),
        (("host: localhost", "content-length: 5", "transfer-encoding: chunked"), (400,)),
        (("host: localhost", "transfer-encoding: gzip, chunked"), (400, 501)),
        (("host: localhost", "x: a\x00b"), (400,)),
        (("host: localhost", "a b: c"), (400,)),
        (("host: localhost", "x: " + "a" * 200_000), (400, 431)),
    ],
)
def test_what_is_no_honest_request_is_refused_at_the_socket(
    service: Service, port: int, headers: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    answer = exchange(port, request(service, "POST /v1/predictions", *headers, body=b"0\r\n\r\n"))

    assert status(answer) in expected, answer
    assert status(exchange(port, request(service, "GET /healthz", "host: localhost"))) == 200


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n" * 1000 + b"x\r\n\r\n", b"GET\r\n\r\n"])
def test_garbage_harms_nobody(service: Service, port: int, garbage: bytes) -> None:
    assert not exchange(port, garbage, wait_s=0.5).startswith(b"HTTP/1.1 2")
    assert status(exchange(port, request(service, "GET /healthz", "host: localhost"))) == 200


def test_a_websocket_is_refused(service: Service, port: int) -> None:
    upgrade = (
        "host: localhost",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    for path in ("/", "/healthz", "/v1/jobs"):
        lines = request(service, f"GET {path}", *upgrade).replace(b"connection: close", b"connection: upgrade")

        assert b"101" not in exchange(port, lines, wait_s=0.5).partition(b"\r\n")[0]


def test_a_body_too_large_is_refused_without_waiting_for_it(service: Service, port: int) -> None:
    headers = ("host: localhost", "content-type: application/json", f"content-length: {2**40}")

    began = time.monotonic()
    answer = exchange(port, request(service, "POST /v1/models/tiny:predict", *headers, body=b"{"))

    assert status(answer) == 413
    assert b"application/problem+json" in answer
    assert time.monotonic() - began < 2


def test_a_chunked_body_is_refused_once_it_is_too_large(service: Service, port: int) -> None:
    headers = ("host: localhost", "content-type: application/json", "transfer-encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(request(service, "POST /v1/predictions", *headers))
        sent = 0
        try:
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:  # it was closed while we talked on
            pass
        connection.settimeout(3)
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            answer = b""

    assert answer == b"" or status(answer) == 413
    assert sent < 40 * 2**20


def test_connections_that_say_nothing_or_half_are_closed_and_keep_nobody_out(service: Service, port: int) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(closing(socket.create_connection(("127.0.0.1", port)))) for _ in range(300)]
        for number, connection in enumerate(silent):
            if number % 2:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: local")
        assert status(exchange(port, request(service, "GET /healthz", "host: localhost"))) == 200

        for connection in silent:
            connection.settimeout(6)
            assert connection.recv(1) == b""


def test_a_connection_that_asks_and_never_reads_is_closed(service: Service, port: int) -> None:
    asked = request(service, "GET /healthz", "host: localhost").replace(b"connection: close\r\n", b"")
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(10)  # a send finds no room, which without an end would be for ever
        with pytest.raises(ConnectionError):
            _send_endlessly(connection, asked)
    assert status(exchange(port, request(service, "GET /healthz", "host: localhost"))) == 200


def _send_endlessly(connection: socket.socket, asked: bytes) -> None:
    while True:
        connection.sendall(100 * asked)


def test_a_connection_in_use_is_kept_however_long_it_is_open(service: Service, port: int) -> None:
    asked = request(service, "GET /healthz", "host: localhost").replace(b"connection: close\r\n", b"")
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.settimeout(3)
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            connection.sendall(asked)
            assert status(connection.recv(65536)) == 200
            time.sleep(0.1)


def test_the_listening_socket_is_on_loopback_and_nowhere_else(port: int) -> None:
    listening = [
        c.laddr.ip
        for c in psutil.Process(os.getpid()).net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port
    ]

    assert listening == ["127.0.0.1"]


def test_the_folder_of_a_workspace_and_its_files_are_the_owners_alone(service: Service) -> None:
    for path in (service.workspace.root, *(path for path in service.workspace.root.glob("*"))):
        assert Path(path).stat().st_mode & 0o077 == 0, path
