"""`connect()`: which workspace it opens, what it says when it cannot, and what it leaves behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from over_http import answering, serving

import mms_sdk as mms
import tiny_model
from mms_sdk.errors import (
    DeploymentNotFound,
    InvalidRequest,
    JobFailed,
    MmsError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from mms_sdk.service.app import create_app
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer
from tiny_model import Tiny


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_the_same_folder_is_the_same_workspace_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "ws")
    monkeypatch.chdir(tmp_path)
    with mms.connect(workspace=tmp_path / "ws") as ws:
        for name in (str(tmp_path / "ws"), "ws", tmp_path / "x" / ".." / "ws", tmp_path / "link"):
            assert mms.connect(workspace=name) is ws
        assert ws.folder == tmp_path / "ws"
        with mms.connect(workspace=tmp_path / "other") as other:
            assert other is not ws


def test_threads_that_connect_at_once_get_one_workspace(tmp_path: Path) -> None:
    found: list[mms.WorkspaceClient] = []
    threads = [threading.Thread(target=lambda: found.append(mms.connect(workspace=tmp_path / "ws"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    found[0].close()


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: mms.connect("http://127.0.0.1:1", workspace="w"), InvalidRequest, "not both; got w and http://"),
        (lambda: mms.connect("ftp://x", token="t"), InvalidRequest, "begins with http:// or https://; got 'ftp://x'"),
        (lambda: mms.connect("my-folder"), InvalidRequest, "a folder is workspace="),
        (lambda: mms.connect(Path("my-folder")), InvalidRequest, "a folder is workspace="),  # type: ignore[arg-type]
        (lambda: mms.connect("http://[x", token="t"), InvalidRequest, "e.g. http://127.0.0.1:8765; got 'http://[x'"),
        (lambda: mms.connect("http://h:99999999", token="t"), InvalidRequest, "e.g. http://127.0.0.1:8765"),
        (lambda: mms.connect("http://127.0.0.1:1"), Unauthenticated, "pass token=, or set MMS_TOKEN"),
        (lambda: mms.connect("http://127.0.0.1:1", token=" \n"), Unauthenticated, "pass token=, or set MMS_TOKEN"),
        (lambda: mms.connect("http://127.0.0.1:1", token="sécret"), Unauthenticated, "one line of ASCII"),
        (lambda: mms.connect("http://127.0.0.1:1", token="secret\nx: y"), Unauthenticated, "one line of ASCII"),
    ],
)
def test_what_is_no_workspace_is_refused_with_the_next_step(
    call: Callable[[], Any], kind: type[MmsError], said: str
) -> None:
    with pytest.raises(kind) as raised:
        call()
    assert said in raised.value.message
    assert "secret" not in raised.value.message


def test_a_file_and_somebody_s_folder_are_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    with pytest.raises(InvalidRequest, match="is a file; name another"):
        mms.connect(workspace=tmp_path / "file")
    with pytest.raises(InvalidRequest, match=r"holds 'cat\.png'; name another"):
        mms.connect(workspace=tmp_path / "photos")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cat.png"]


def test_an_argument_wins_over_the_environment_which_wins_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "named"))
    with mms.connect() as ws:
        assert ws.folder == tmp_path / "named"
    with mms.connect(workspace=tmp_path / "argument") as ws:
        assert ws.folder == tmp_path / "argument"
    monkeypatch.delenv("MMS_WORKSPACE")
    monkeypatch.setattr("mms_sdk.settings.HOME_WORKSPACE", tmp_path / "home")
    with mms.connect() as ws:
        assert ws.folder == tmp_path / "home"


def test_a_catalog_comes_from_the_argument_else_from_the_environment_else_it_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    one, other = postgres.make_database(), postgres.make_database()
    monkeypatch.setenv("MMS_CATALOG", one + "\n")
    for folder, catalog in (("environment", None), ("argument", other)):
        with mms.connect(workspace=tmp_path / folder, catalog=catalog) as ws:
            assert list(ws.jobs.list()) == []
        assert not (tmp_path / folder / "catalog.sqlite").exists()
    monkeypatch.setenv("MMS_CATALOG", "")
    with mms.connect(workspace=tmp_path / "file") as ws:
        assert list(ws.jobs.list()) == []
    assert (tmp_path / "file" / "catalog.sqlite").exists()
    with pytest.raises(InvalidRequest, match="set MMS_CATALOG to its URL"):
        mms.connect(workspace=tmp_path / "environment")
    with pytest.raises(InvalidRequest, match=r"the server at http://127\.0\.0\.1:1 has its own; leave catalog= out"):
        mms.connect("http://127.0.0.1:1", catalog=one)


def test_a_token_comes_from_the_argument_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    good = workspace.catalog.tokens.issue("tests", "viewer")
    with serving(create_app(workspace)) as url:
        monkeypatch.setenv("MMS_TOKEN", good + "\n")  # as a file of it ends
        with mms.connect(url) as ws:
            assert list(ws.datasets.list()) == []
        with mms.connect(url, token="mms_wrong") as ws, pytest.raises(Unauthenticated, match="one valid token"):
            ws.datasets.list()
        monkeypatch.setenv("MMS_TOKEN", "mms_wrong")
        with mms.connect(url, token=good) as ws:
            assert list(ws.datasets.list()) == []
    workspace.close()


def test_a_server_that_is_down_is_unavailable_and_the_message_names_it(closed_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    with mms.connect(url, token="mms_secret") as ws:
        for call in (ws.datasets.list, lambda: ws._api.download("/v1/jobs/x/artifacts/y", tmp_path / "file")):
            with pytest.raises(Unavailable) as raised:
                call()
            assert url in raised.value.message
            assert raised.value.message.endswith("see that it runs: mms serve")
            assert "mms_secret" not in raised.value.message
            assert isinstance(raised.value, ConnectionError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, b"<html>oh no</html>", b"text/html"),
        (200, b"<html>welcome</html>", b"text/html"),
        (404, b"[1, 2]", b"application/json"),
        (200, b'{"hello": "world"}', b"application/json"),
        (502, b"\xff\xfe", b"text/plain"),
    ],
)
def test_what_is_no_mms_server_is_told_clearly(status: int, body: bytes, kind: bytes, tmp_path: Path) -> None:
    with serving(answering(status, body, kind), lifespan="off") as url, mms.connect(url, token="t") as ws:
        with pytest.raises(MmsError) as raised:
            ws.datasets.list()
        assert f"answered {status}" in raised.value.message
        assert "is it an MMS server" in raised.value.message
        if status >= 400:
            with pytest.raises(MmsError, match="is it an MMS server"):
                ws._api.download("/v1/jobs/x/artifacts/y", tmp_path / "file")
    assert not list(tmp_path.iterdir())


# Closing --------------------------------------------------------------------------------------------------------


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_closing_ends_threads_and_deployments_and_the_folder_opens_again(tmp_path: Path, tiny: Tiny) -> None:
    workspace = Workspace(tmp_path / "ws")
    tiny_model.register(tiny, workspace)
    workspace.close()
    before = set(threading.enumerate())
    with mms.connect(workspace=tmp_path / "ws") as ws:
        deployed = ws.deployments.create("tiny", model="tiny", max_batch=1)
        deployed.predict(tiny_model.pictures_of(1)[0])
        assert set(threading.enumerate()) - before
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()
    ws.close()  # once more does no harm
    with mms.connect(workspace=tmp_path / "ws") as again:
        assert again is not ws
        assert [version.ref for version in again.models.list()] == ["tiny@1"]
        with pytest.raises(DeploymentNotFound):
            again.deployments.get("tiny")


def test_closing_waits_for_a_running_job(tmp_path: Path, tiny: Tiny) -> None:
    import shutil

    Workspace(tmp_path / "ws").close()
    shutil.copytree(tiny.workspace / "datasets", tmp_path / "ws" / "datasets")
    with mms.connect(workspace=tmp_path / "ws") as ws:
        ws._api.send("POST", "/v1/datasets/pets:verify", dict)
    workspace = Workspace(tmp_path / "ws")
    assert [job.state for job in workspace.catalog.jobs.list()] == ["succeeded"]
    workspace.close()


def test_an_error_inside_the_with_block_closes_it_too_and_comes_out(tmp_path: Path) -> None:
    with pytest.raises(NotFound), mms.connect(workspace=tmp_path / "ws") as ws:
        ws.models.get("nothing")
    with pytest.raises(RuntimeError, match="closed"):
        ws.models.list()


def test_jobs_of_a_dead_process_are_lost_at_the_next_connect(tmp_path: Path) -> None:
    begin = (
        "import os, sys\nfrom pathlib import Path\nfrom mms_sdk.storage.workspace import Workspace\n"
        "jobs = Workspace(Path(sys.argv[1])).catalog.jobs\n"
        "print(jobs.start('train', 'pets', {}).id, flush=True)\nos._exit(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin, str(tmp_path / "ws")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    workspace = Workspace(tmp_path / "ws")
    mine = workspace.catalog.jobs.start("train", "of a live process", {}).id
    with mms.connect(workspace=tmp_path / "ws") as ws:
        lost = ws.jobs.get(done.stdout.strip())
        assert (lost.state, ws.jobs.get(mine).state) == ("lost", "running")
        with pytest.raises(JobFailed, match="ended as lost: the process that did the work is gone"):
            lost.wait()
    workspace.close()


def test_a_process_that_never_closes_ends_all_the_same(tmp_path: Path) -> None:
    code = "import sys, mms_sdk as mms\nprint(mms.connect(workspace=sys.argv[1]).status()['jobs'])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "ws")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "none yet\n", "")


@pytest.mark.parametrize("source", [None, 3, object(), mms.drop_duplicates(), [mms.CSV("a.csv"), 3]])
def test_what_is_no_source_is_refused_with_what_is_one(tmp_path: Path, source: Any) -> None:
    with mms.connect(workspace=tmp_path / "ws") as ws, pytest.raises(InvalidRequest, match="what is ingested is a sou"):
        ws.datasets.ingest("x", source)


def test_an_older_snapshot_is_not_cleaned_and_a_workspace_is_not_backed_up_into_itself(tmp_path: Path) -> None:
    with mms.connect(workspace=tmp_path / "ws") as ws:
        whole = mms.Split(train=1, val=0, test=0)
        ws.datasets.ingest("x", {"a": [1.0, 2.0]}, split=whole, progress=False)
        ws.datasets.ingest("x", {"a": [3.0]}, split=whole, progress=False)
        with pytest.raises(InvalidRequest, match="what is cleaned is the newest snapshot; x@1 is an older one"):
            ws.datasets.get("x@1").clean([mms.drop_missing()])
        with pytest.raises(InvalidRequest, match="a backup lies elsewhere than what it is of"):
            ws.backup(tmp_path / "ws" / "backup")
