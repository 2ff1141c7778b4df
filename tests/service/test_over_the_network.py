"""The service behind its real HTTP server on a loopback port, asked by sockets that no library would open."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import uvicorn

import tiny_model
from asgi_calls import Service
from mms_sdk.service import server as server_module
from mms_sdk.service.streams import Streams
from tiny_model import LABELS, Tiny


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    """A port on which the app of `service` answers."""
    announced: list[str] = []
    options = {"lifespan": "off", "log_level": "critical", "proxy_headers": False, "server_header": False}
    config = uvicorn.Config(service.app, host="127.0.0.1", port=0, **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "HEADERS_TIMEOUT_S", 1.0)
        patch.setattr(server_module.gc, "freeze", lambda: None)  # the process of the tests goes on after it
        server = server_module._Server(
            config, lambda: announced.append(str(server.servers[0].sockets[0].getsockname()[1])), Streams()
        )
        thread = threading.Thread(target=server.run, name="test-server")
        thread.start()
        while not announced:
            assert thread.is_alive()
            time.sleep(0.01)
        yield int(announced[0])
        server.should_exit = True
        thread.join()


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


def test_a_connection_in_use_is_kept_however_long_it_is_open(service: Service, port: int) -> None:
    asked = request(service, "GET /healthz", "host: localhost").replace(b"connection: close\r\n", b"")
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.settimeout(3)
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            connection.sendall(asked)
            assert status(connection.recv(65536)) == 200
            time.sleep(0.1)


@pytest.mark.slow
def test_tritons_own_client_works_unchanged(service: Service, tiny: Tiny, port: int) -> None:
    client_module = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    headers = {"Authorization": f"Bearer {service.tokens['predict']}"}
    pictures = tiny_model.pictures_of(5)
    with closing(client_module.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready("tiny", headers=headers)
        assert not client.is_model_ready("other", headers=headers)
        assert not client.is_server_live()
        assert client.get_server_metadata(headers=headers)["name"] == "mms"
        assert client.get_model_metadata("tiny", headers=headers)["inputs"][0]["shape"] == [-1, 8, 6, 3]
        for in_binary in (True, False):
            for out_binary in (True, False):
                given = client_module.InferInput("image", list(pictures.shape), "UINT8")
                given.set_data_from_numpy(pictures, binary_data=in_binary)
                # The client writes into the headers it is given; hence the copy.
                wanted = client_module.InferRequestedOutput("scores", binary_data=out_binary)
                answer = client.infer("tiny", [given], outputs=[wanted], headers=dict(headers), request_id="7")

                np.testing.assert_allclose(answer.as_numpy("scores"), tiny.scores(pictures), atol=1e-5)
                assert answer.get_response()["id"] == "7"
        given = client_module.InferInput("image", [1, 8, 6, 3], "FP32")
        given.set_data_from_numpy(np.zeros((1, 8, 6, 3), np.float32))
        with pytest.raises(client_module.InferenceServerException, match="has datatype UINT8; got 'FP32'"):
            client.infer("tiny", [given], headers=dict(headers))


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
