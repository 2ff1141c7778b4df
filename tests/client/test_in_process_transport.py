"""The transport without a network: it streams, cancels, says what went wrong, and opens no port."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

import mms_sdk as mms
from mms_sdk.client.transport import InProcessTransport


class App:
    """An ASGI application that notes what happens to it; `/PATH` chooses how it answers."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.go_on = threading.Event()
        self.cancelled = threading.Event()
        self.threads: set[int] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.threads.add(threading.get_ident())
        await getattr(self, scope["path"].strip("/"))(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"]
            self.noted.append(kind)
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def pieces(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for piece in (b"one", b"two", b"three"):
                await send({"type": "http.response.body", "body": piece, "more_body": piece != b"three"})
                self.noted.append(f"sent {piece.decode()}")
                while not self.go_on.is_set():
                    await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        told = f"{scope['method']} {scope['raw_path'].decode()} {scope['query_string'].decode()} ".encode() + body
        headers = [(b"x-seen", dict(scope["headers"])[b"x-mine"])] * 2
        await send({"type": "http.response.start", "status": 207, "headers": headers})
        await send({"type": "http.response.body", "body": told})

    async def raises(self, scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("before the start")

    async def breaks(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError("after the start")

    async def silent(self, scope: Any, receive: Any, send: Any) -> None:
        pass


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def client(app: App) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url="http://localhost", transport=InProcessTransport(app)) as client:
        yield client


def test_the_first_piece_arrives_before_the_last_is_sent(app: App, client: httpx2.Client) -> None:
    with client.stream("GET", "/pieces") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"one"
        assert "sent three" not in app.noted
        app.go_on.set()
        assert list(pieces) == [b"two", b"three"]
    assert app.noted[-1] == "sent three"


def test_leaving_early_cancels_the_application_s_task(app: App, client: httpx2.Client) -> None:
    with client.stream("GET", "/pieces") as answer:
        assert next(answer.iter_raw()) == b"one"
    assert app.cancelled.wait(5)
    assert "sent three" not in app.noted


def test_reading_to_the_end_cancels_nothing(app: App, client: httpx2.Client) -> None:
    app.go_on.set()
    assert client.get("/pieces").content == b"onetwothree"
    assert not app.cancelled.is_set()


def test_method_path_query_headers_and_body_arrive_as_they_were_sent(client: httpx2.Client) -> None:
    answer = client.put("/echo", params={"a": "ü b"}, content=b"\x00body", headers={"X-Mine": "yes"})
    assert (answer.status_code, answer.headers.get_list("x-seen")) == (207, ["yes", "yes"])
    assert answer.content in (b"PUT /echo a=%C3%BC+b \x00body", b"PUT /echo a=%C3%BC%20b \x00body")


def test_what_an_application_raises_before_its_answer_comes_out(client: httpx2.Client) -> None:
    with pytest.raises(ZeroDivisionError, match="before the start"):
        client.get("/raises")


def test_what_an_application_raises_in_its_answer_comes_out_behind_what_it_sent(client: httpx2.Client) -> None:
    with client.stream("GET", "/breaks") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"half"
        with pytest.raises(ZeroDivisionError, match="after the start"):
            next(pieces)


def test_an_application_that_says_nothing_is_an_error(client: httpx2.Client) -> None:
    with pytest.raises(httpx2.RemoteProtocolError, match="without an answer"):
        client.get("/silent")


def test_it_works_inside_a_running_event_loop_as_a_notebook_has_one(app: App, client: httpx2.Client) -> None:
    async def cell() -> bytes:
        app.go_on.set()
        return client.get("/pieces").content

    assert asyncio.run(cell()) == b"onetwothree"
    assert threading.get_ident() not in app.threads


def test_requests_of_several_threads_run_at_once(app: App, client: httpx2.Client) -> None:
    answers: queue.Queue[bytes] = queue.Queue()
    threads = [threading.Thread(target=lambda: answers.put(client.get("/pieces").content)) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while app.noted.count("sent one") < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert app.noted.count("sent one") == 4  # all have begun while none could end
    app.go_on.set()
    for thread in threads:
        thread.join()
    assert [answers.get_nowait() for _ in threads] == [b"onetwothree"] * 4


def test_the_lifespan_begins_once_and_ends_once_and_so_does_the_thread(app: App) -> None:
    before = set(threading.enumerate())
    transport = InProcessTransport(app)
    assert app.noted == ["lifespan.startup"]
    transport.close()
    transport.close()
    assert app.noted == ["lifespan.startup", "lifespan.shutdown"]
    assert set(threading.enumerate()) == before


async def _fails(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no model today"})


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no model today")


async def _leaves(scope: Any, receive: Any, send: Any) -> None:
    await receive()


@pytest.mark.parametrize(
    ("app", "said"), [(_fails, "no model today"), (_raises, "no model today"), (_leaves, "ended at lifespan.startup")]
)
def test_an_application_that_does_not_start_is_an_error_and_leaves_no_thread(
    app: Callable[..., Any], said: str
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match=said):
        InProcessTransport(app)
    assert set(threading.enumerate()) == before


def _listening() -> set[Any]:
    found = psutil.Process().net_connections(kind="inet")
    return {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}


def test_an_embedded_workspace_listens_nowhere_and_its_token_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = mms.WorkspaceClient.__init__.__globals__["secrets"].token_urlsafe

    def noting(count: int) -> str:
        made.append(real(count))
        return made[-1]

    monkeypatch.setattr("mms_sdk.client.workspace.secrets.token_urlsafe", noting)
    before = _listening()
    with mms.connect(workspace=tmp_path / "ws") as ws:
        assert ws.status()["datasets"] == "none yet"
        assert _listening() == before
        (token,) = set(made)
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {"catalog.sqlite", "workspace.json"} <= {file.name for file in files}
        assert [file for file in files if token.encode() in file.read_bytes()] == []
        assert token not in repr(ws) + repr(vars(ws)) + ws._repr_html_()
