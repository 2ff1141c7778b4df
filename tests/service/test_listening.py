"""Where `mms serve` listens: TLS, proxies, unix sockets, and how many connections it bears."""

from __future__ import annotations

import contextlib
import datetime as dt
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from asgi_calls import Service, ask
from mms_sdk.errors import Conflict, InvalidRequest, Unavailable
from mms_sdk.schema.access import Rotation
from mms_sdk.service import handshakes
from mms_sdk.service import server as server_module
from mms_sdk.service.connections import bounded
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.listening import BehindProxy, Listening
from mms_sdk.service.server import _Server, own_token
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"host": "0.0.0.0"}, "without TLS"),
        ({"host": "::"}, "without TLS"),
        ({"host": "192.0.2.1"}, "without TLS"),
        ({"host": "example.org"}, "without TLS"),
        ({"host": "localhost.evil.example"}, "without TLS"),
        ({"host": "0.0.0.0", "tls_cert": Path("c"), "tls_key": Path("k")}, "--name"),
        ({"host": "0.0.0.0", "proxies": ("10.0.0.1",)}, "--name"),
        ({"tls_cert": Path("c")}, "--tls-key"),
        ({"tls_key": Path("k")}, "--tls-cert"),
        ({"proxies": ("proxy.example",)}, "address or a network"),
        ({"proxies": ("*",)}, "address or a network"),
        ({"names": ("Mms.example:80",)}, "lower case"),
        ({"names": ("*",)}, "lower case"),
        ({"unix": Path("s"), "proxies": ("10.0.0.1",)}, "unix socket"),
    ],
)
def test_a_server_does_not_listen_where_others_could_listen_in(told: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        Listening(**told)


def test_with_tls_or_a_proxy_and_a_name_it_listens_anywhere() -> None:
    assert Listening(host="0.0.0.0", tls_cert=Path("c"), tls_key=Path("k"), names=("mms.example",)).secure
    assert not Listening(host="::", proxies=("10.0.0.0/28",), names=("mms.example",)).secure
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Listening(host=host)


def test_only_what_a_trusted_proxy_says_of_an_address_is_believed(service: Service) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def asked(only: bool, proxies: tuple[str, ...], forwarded: str) -> int:
        behind = BehindProxy(app, proxies, only=only)
        return service.runner.run(ask(behind, "GET", "/", headers=[("x-forwarded-for", forwarded)])).status

    assert asked(True, ("127.0.0.1",), "192.0.2.7") == 200
    assert asked(True, ("127.0.0.0/8", "10.0.0.5"), "203.0.113.9, 192.0.2.7, 10.0.0.5") == 200
    assert asked(False, ("10.0.0.5",), "192.0.2.7") == 200
    assert asked(True, ("10.0.0.5",), "192.0.2.7") == 403
    assert seen == ["192.0.2.7", "192.0.2.7", "127.0.0.1"]


def test_a_unix_socket_is_its_owners_alone_and_one_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mms.sock"
    told = Listening(unix=path)
    with told.bound() as bound:
        bound.listen()
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Unavailable, match="listens at"), told.bound():
            pass
    assert not path.exists()
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(path))
    with told.bound():
        assert path.is_socket()
    path.write_text("mine")
    with pytest.raises(Conflict, match="something else"), told.bound():
        pass
    assert path.read_text() == "mine"


def test_the_servers_token_once_rotated_is_not_made_anew(empty: Workspace) -> None:
    path = own_token(empty)
    assert path is not None
    first = path.read_text()
    assert own_token(empty) == path
    rotated = empty.catalog.tokens.rotate("server", Rotation()).text

    assert own_token(empty) is None
    assert path.read_text() == first
    assert empty.catalog.tokens.find(rotated) is not None
    said: list[str] = []
    server_module._announce("unix:s", empty, Deployments(empty, ServerSettings(), keep=False), None, said.append)
    assert "was rotated" in said[-1]

    path.write_text(rotated)
    assert own_token(empty) == path
    path.unlink()
    assert own_token(empty) == path
    assert empty.catalog.tokens.find(rotated) is None
    assert empty.catalog.tokens.find(path.read_text().strip()) is not None


def test_of_too_many_connections_the_oldest_that_is_silent_is_closed() -> None:
    closed: list[str] = []

    class Transport:
        def __init__(self, name: str) -> None:
            self.name = name

        def abort(self) -> None:
            closed.append(self.name)

        def write(self, data: bytes) -> None:
            closed.append(data.split(b"\r\n")[0].decode())

        def close(self) -> None:
            self.abort()

    class Request:
        response_complete = False

    class Protocol:
        transport: Any
        cycle: Any = None

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            pass

    made = bounded(Protocol, 2)
    connections = [made() for _ in range(5)]
    for number, connection in enumerate(connections[:3]):
        if number == 0:
            connection.cycle = Request()  # the oldest is being answered
        connection.connection_made(Transport(str(number)))
    assert closed == ["1"]
    connections[2].cycle = Request()
    connections[3].connection_made(Transport("3"))
    assert closed[1:] == ["HTTP/1.1 503 Service Unavailable", "3"]
    connections[0].connection_lost(None)
    connections[4].connection_made(Transport("4"))
    assert len(closed) == 3


def test_a_connection_is_aborted_once_nothing_of_its_answer_was_taken_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Connection:
        def __init__(self, sizes: Sequence[int]) -> None:
            self.wire: Any = self
            self.sizes = iter(sizes)
            self.looks = 0
            self.aborted_after: int | None = None

        def get_write_buffer_size(self) -> int:
            self.looks += 1
            return next(self.sizes)

        def abort(self) -> None:
            self.aborted_after = self.aborted_after or self.looks

    looks = 30
    stalled, growing = Connection([5] * looks), Connection(range(1, looks + 1))
    slow, idle = Connection([9, 9, 9, 9, 9, 8] * 5), Connection([0] * looks)
    later = Connection([0] * 10 + [5] * 20)
    server = _Server(uvicorn.Config("none", log_level="critical"), lambda: None, Streams())
    server.server_state.connections = {stalled, growing, slow, idle, later}  # type: ignore[arg-type]
    for look in range(looks):
        monkeypatch.setattr(server_module.time, "monotonic", lambda at=look: float(at))
        server._abort_unread()

    assert [each.aborted_after for each in (stalled, growing, slow, idle, later)] == [12, 12, None, None, 22]


@contextlib.contextmanager
def served(tmp_path: Path, *words: str, descriptors: int | None = None) -> Iterator[str]:
    """What a server said first, while it runs as a process of its own."""

    command = [sys.executable, "-O", "-m", "mms_sdk.cli", "serve", "--workspace", str(tmp_path / "ws"), *words]
    if descriptors is not None:
        command = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(descriptors), *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = process.stdout.readline().strip()
        assert told.startswith("MMS serves"), told
        yield told.rpartition(" at ")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def asked(connection: socket.socket, token: str = "") -> bytes:
    lines = ["GET /v1/jobs HTTP/1.1", "host: localhost", "connection: close", f"authorization: Bearer {token}", "", ""]
    connection.settimeout(30)
    connection.sendall("\r\n".join(lines).encode())
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


@pytest.mark.slow
def test_it_serves_at_a_unix_socket_without_a_port(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served(tmp_path, "--unix", str(path)) as told:
        assert told == f"unix:{path}"
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(str(path))
            assert b" 200 " in asked(connection, (tmp_path / "ws" / "server.token").read_text().strip())
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(str(path))
            assert b" 401 " in asked(connection)
    assert not path.exists()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that signed itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    key_file.chmod(0o600)
    return cert_file, key_file


def test_a_certificate_that_is_none_and_a_key_that_all_can_read_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography to make a certificate")
    cert, key = certificate(tmp_path)
    Listening(tls_cert=cert, tls_key=key).check_tls()
    for wrong in (tmp_path / "nothing", cert):
        with pytest.raises(InvalidRequest, match=r"no certificate and its key|everybody can read"):
            Listening(tls_cert=cert, tls_key=wrong).check_tls()
    key.chmod(0o644)
    with pytest.raises(InvalidRequest, match="everybody can read"):
        Listening(tls_cert=cert, tls_key=key).check_tls()


@pytest.mark.slow
def test_with_tls_it_speaks_nothing_older_than_1_2_and_no_plain_http(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography to make a certificate")
    cert, key = certificate(tmp_path)
    words = ("--port", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    with served(tmp_path, *words) as told:
        assert told.startswith("https://127.0.0.1:")
        at = ("127.0.0.1", int(told.rpartition(":")[2]))
        token = (tmp_path / "ws" / "server.token").read_text().strip()
        context = ssl.create_default_context(cafile=str(cert))
        with context.wrap_socket(socket.create_connection(at), server_hostname="localhost") as connection:
            assert connection.version() in ("TLSv1.2", "TLSv1.3")
            assert b" 200 " in asked(connection, token)
        old = subprocess.run(
            ["openssl", "s_client", "-connect", f"{at[0]}:{at[1]}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            input=b"",
            capture_output=True,
            check=False,
        )
        assert old.returncode != 0
        with closing(socket.create_connection(at)) as connection, contextlib.suppress(ConnectionResetError):
            assert not asked(connection, token).startswith(b"HTTP/1.1 2")


def test_connections_that_begin_no_handshake_are_counted_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography to make a certificate")
    cert, key = certificate(tmp_path)
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server_module, "most_connections", lambda: 8)
    monkeypatch.setattr(server_module.gc, "freeze", lambda: None)
    context = ssl.create_default_context(cafile=str(cert))
    config = uvicorn.Config(
        answers_hello, loop="asyncio", lifespan="off", log_level="critical", ssl_certfile=cert, ssl_keyfile=key
    )
    with running(config) as (server, at), ExitStack() as stack:
        for turn in range(3):
            silent = [stack.enter_context(closing(socket.create_connection(at))) for _ in range(20)]
            if turn == 1:
                for each in silent[::2]:
                    each.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            if turn == 2:
                for each in silent[::2]:
                    each.close()
            with context.wrap_socket(socket.create_connection(at), server_hostname="localhost") as good:
                assert b"hello" in asked(good)
        for each in silent[1::2]:
            each.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
        assert not server.server_state.connections


async def answers_hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@contextlib.contextmanager
def running(config: uvicorn.Config) -> Iterator[tuple[_Server, tuple[str, int]]]:
    """A server in a thread of its own."""
    ready = threading.Event()
    server = _Server(config, ready.set, Streams())
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([bound],), name="test-server")
        thread.start()
        try:
            assert ready.wait(60)
            yield server, bound.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.slow
def test_two_thousand_half_open_connections_starve_nobody_of_a_server_with_1024_descriptors(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3000:
        pytest.skip("needs 3,000 file descriptors for the test's own sockets")
    with served(tmp_path, "--port", "0", descriptors=1024) as told, ExitStack() as stack:
        at = ("127.0.0.1", int(told.rpartition(":")[2]))
        token = (tmp_path / "ws" / "server.token").read_text().strip()
        slowest = 0.0
        for number in range(2000):
            half = stack.enter_context(closing(socket.create_connection(at, timeout=30)))
            with contextlib.suppress(OSError):
                half.sendall(b"GET /v1/jobs HTTP/1.1\r\nhost: local")
            if number % 100 == 99:
                began = time.monotonic()
                with closing(socket.create_connection(at, timeout=30)) as good:
                    assert b" 200 " in asked(good, token)
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 10, slowest
