"""A web server on the loopback that behaves in every way a server can misbehave."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class WebServer(ThreadingHTTPServer):
    """Answers with what `files` has by path; paths that begin with a behaviour get that.

    Attributes:
        files: Content by path.
        asked: How often each path was asked for.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.asked: Counter[str] = Counter()
        self.heads: list[Mapping[str, str]] = []
        self.busy_until: Counter[str] = Counter()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: whoever asked went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        self.server.heads.append(dict(self.headers))
        behaviour, _, rest = path.strip("/").partition("/")
        content = self.server.files.get(path.rpartition("/")[2], b"")
        match behaviour:
            case "status":
                self._answer(b"sorry", status=int(rest))
            case "busy":  # /busy/<times>/<seconds>/<file>: 503 so often, then the file
                times, seconds, _ = rest.split("/")
                if self.server.asked[path] <= int(times):
                    self._answer(b"busy", status=503, headers={"Retry-After": seconds} if seconds else {})
                else:
                    self._answer(content)
            case "type":
                kind = unquote(rest.rpartition("/")[0], "latin-1")
                self._answer(content, kind=kind)
            case "to":  # /to/<address>: a redirect there
                self._answer(b"", status=302, headers={"Location": self.path.partition("/to/")[2]})
            case "round":  # /round/<n>/<file>: n redirects, then the file
                left, _, name = rest.partition("/")
                there = f"/round/{int(left) - 1}/{name}"
                self._answer(content) if left == "0" else self._answer(b"", status=301, headers={"Location": there})
            case "slow":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self._drip(content)
            case "slow-head":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self._drip(b"X: " + b"y" * 1000)
            case "late-and-busy":  # /late-and-busy/<seconds>: 503 after so long
                self.server.ended.wait(float(rest))
                self._answer(b"busy", status=503)
            case "silent":
                self.server.ended.wait(20)
            case "endless":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while not self.server.ended.is_set():
                    self.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
            case "truncated":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:-10])
                self.close_connection = True
            case "huge":
                self._answer(b"", headers={"Content-Length": str(10**15)}, length=False)
            case "lying":  # it says fewer bytes than it sends
                self._answer(content, headers={"Content-Length": str(len(content) // 2)}, length=False)
            case "packed":
                self._answer(content, headers={"Content-Encoding": "gzip"})
            case "garbage":
                self.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")
                self.close_connection = True
            case _:
                self._answer(content) if content else self._answer(b"no", status=404)

    def _answer(
        self,
        content: bytes,
        *,
        status: int = 200,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
        length: bool = True,
    ) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        if length:
            self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _drip(self, content: bytes) -> None:
        for at in range(len(content)):
            self.wfile.write(content[at : at + 1])
            if self.server.ended.is_set():
                return
            time.sleep(0.1)


@contextmanager
def web_server(files: Mapping[str, bytes], tls: Any = None) -> Iterator[WebServer]:
    """A server that ends with the block; encrypted with a context, if one is given."""
    server = WebServer(files)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
