"""`mms serve` as a person starts it: a process of its own, asked over a socket, ended by a signal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

import mms_sdk as mms
import tiny_model
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer
from tiny_model import Tiny

pytestmark = pytest.mark.slow


class Server:
    """A running `mms serve`."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if "curl" in line:
                break
        else:
            raise AssertionError(self.process.communicate()[1])
        (self.url,) = (line.split()[-1] for line in self.said if line.startswith("MMS serves"))
        self.token_file = folder / "server.token"
        self.headers = {"authorization": f"Bearer {self.token_file.read_text().strip()}"}

    def end(self) -> tuple[int, float, str]:
        """Sends SIGTERM; returns the exit code, the seconds it took and what was on stderr."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, told = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - began, told


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mms_sdk.cli", "serve", *words, "--workspace", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Server]:
    process = start(folder, *words)
    try:
        yield Server(folder, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A workspace with the models `good` and `bad`."""
    workspace = Workspace(tmp_path / "ws")
    for name in ("good", "bad"):
        tiny_model.register(tiny, workspace, name)
    workspace.close()
    return workspace.root


def test_a_server_with_its_catalog_in_postgresql_answers_and_brings_its_deployments_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    monkeypatch.setenv("MMS_CATALOG", postgres.make_database())
    workspace = Workspace(tmp_path / "ws", catalog=os.environ["MMS_CATALOG"])
    tiny_model.register(tiny, workspace, "good")
    workspace.close()

    for words in (["good"], []):
        with served(workspace.root, *words, "--port", "0") as server:
            with mms.connect(server.url, token=server.token_file.read_text()) as ws:
                assert ws.deployments.get("good").predict(tiny_model.pictures_of(1)[0]).label
            code, _, said = server.end()
        assert code == 0
        assert postgres.password not in said + "".join(server.said)
    assert not (workspace.root / "catalog.sqlite").exists()


def damage(folder: Path, model: str) -> None:
    workspace = Workspace(folder)
    artifact = folder / "artifacts" / next(r["artifact"] for r in workspace.catalog.models.list(model))
    workspace.close()
    largest = max((file for file in artifact.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_served_model_answers_and_is_served_again_with_the_same_token(folder: Path, tiny: Tiny) -> None:
    picture = tiny_model.pictures_of(1)[0]
    with served(folder, "good", "bad", "--port", "0") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert any(str(server.token_file) in line for line in server.said)
        assert server.token_file.stat().st_mode & 0o777 == 0o600
        token = server.token_file.read_text().strip()
        catalog = b"".join(file.read_bytes() for file in folder.glob("catalog.sqlite*"))
        assert token.encode() not in catalog
        assert hashlib.sha256(token.encode()).hexdigest().encode() in catalog
        assert token not in "".join(server.said)
        body = {"instances": [picture.tolist()]}
        answer = httpx2.post(f"{server.url}/v1/models/good:predict", headers=server.headers, json=body)
        told = {entry["label"]: entry["score"] for entry in answer.json()["predictions"][0]["ranked"]}
        expected = dict(zip(tiny_model.LABELS, tiny.scores(picture[None])[0].tolist(), strict=True))
        assert told == pytest.approx(expected, abs=1e-5)
        assert httpx2.get(f"{server.url}/v1/deployments").status_code == 401
        assert json.loads((folder / "server.json").read_bytes())["url"] == server.url  # for jobs
        code, seconds, told_err = server.end()
        assert (code, told_err) == (0, "")
        assert seconds < 10
        assert not (folder / "server.json").exists()
    damage(folder, "bad")
    with served(folder, "--port", "0") as server:
        assert server.token_file.read_text().strip() == token
        with mms.connect(server.url, token=token) as ws:
            assert [each.name for each in ws.deployments.list()] == ["good"]
            assert ws.deployments.get("good").predict(picture).label == max(expected, key=lambda n: expected[n])
        code, _, told_err = server.end()
        assert code == 0
        assert "deployment bad is not served: model bad@1" in told_err


def test_a_named_damaged_model_refuses_to_start(folder: Path) -> None:
    damage(folder, "bad")
    process = start(folder, "bad", "--port", "0")
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert told.startswith("mms: model bad@1")
    assert "Traceback" not in told


def test_a_taken_port_is_told_clearly(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(folder, "--port", str(port))
        out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert told.startswith("mms: a server needs a free port")
    assert f"127.0.0.1:{port} is taken" in told
    assert len(told.splitlines()) == 1


def test_a_server_that_is_told_to_stop_ends_who_follows_it_behind_a_whole_message(folder: Path) -> None:
    workspace = Workspace(folder)
    workspace.catalog.jobs.start("ingest", "pets", {})
    workspace.close()
    with served(folder, "--port", "0") as server:
        heard: list[bytes] = []
        began = threading.Event()

        def follow() -> None:
            headers = {**server.headers, "accept": "text/event-stream"}
            with httpx2.stream("GET", f"{server.url}/v1/events", headers=headers, timeout=60) as answer:
                for piece in answer.iter_bytes():
                    heard.append(piece)
                    began.set()

        following = threading.Thread(target=follow)
        following.start()
        assert began.wait(20)
        code, seconds, told = server.end()
        following.join()
        assert (code, told) == (0, "")
        assert seconds < 10
        assert b"".join(heard).endswith(b"\n\n")


def test_a_request_that_runs_when_the_server_is_told_to_stop_is_answered(folder: Path) -> None:
    with served(folder, "--port", "0") as server:
        answers: list[int] = []
        body = {"model": "good@1", "max_batch": 64}  # takes seconds to compile

        def ask() -> None:
            url = f"{server.url}/v1/deployments/good"
            answers.append(httpx2.put(url, headers=server.headers, json=body, timeout=60).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        assert answers == []
        code, _, _ = server.end()
        asking.join()
        assert (answers, code) == ([200], 0)
