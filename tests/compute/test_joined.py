"""What each pod of several starts: it joins the others whom the environment names, and runs the script."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import mms_sdk as mms
from mms_sdk.compute import joined
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage import tables
from mms_sdk.storage.workspace import Workspace


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that writes down what it finds; with the environment of the second of three processes."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MMS_COORDINATOR", "train-workers-0-0.train-pods:8476")
    monkeypatch.setenv("MMS_RANKS", "3")
    monkeypatch.setenv("MMS_RANK", "1")
    (tmp_path / "beside_joined.py").write_text("WIDTH = 64\n")
    path = tmp_path / "train.py"
    path.write_text(
        "import sys\nfrom pathlib import Path\nfrom beside_joined import WIDTH\n"
        "Path(__file__).with_name('found.txt').write_text(f'{__name__} {WIDTH} {sys.argv[1:]}')\n"
    )
    return path


def test_a_process_joins_the_others_and_then_runs_the_script(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def join(coordinator: str, **options: Any) -> None:
        assert not script.with_name("found.txt").exists()
        asked.append((coordinator, options))

    names = iter([socket.gaierror("unknown"), socket.gaierror("unknown"), []])

    def known(host: str, port: None) -> list[Any]:
        assert host == "train-workers-0-0.train-pods"
        found = next(names)
        if isinstance(found, socket.gaierror):
            raise found
        return found

    monkeypatch.setattr("mms_sdk.compute.sharding.processes.join_processes", join)
    monkeypatch.setattr(socket, "getaddrinfo", known)
    monkeypatch.setattr(joined, "_AGAIN_S", 0.0)
    joined.main([str(script), "--lr", "1e-3"])
    assert asked == [("train-workers-0-0.train-pods:8476", {"count": 3, "index": 1})]
    assert next(names, None) is None
    assert script.with_name("found.txt").read_text() == "__main__ 64 ['--lr', '1e-3']"


@pytest.mark.parametrize("variable", ["MMS_RANKS", "MMS_RANK"])
@pytest.mark.parametrize("value", ["", "-1", "two", "1.0"])
def test_an_environment_that_does_not_say_which_process_this_is_is_refused(
    script: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidRequest, match=variable):
        joined.main([str(script)])
    assert not script.with_name("found.txt").exists()


def test_only_the_first_of_several_pods_takes_a_training_of_another_machine_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    training = workspace.catalog.jobs.start("train", "flowers", {}).id
    with workspace.catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(owner="1:1@the boot of another machine"))
    workspace.close()
    for rank, state in (("1", "running"), ("0", "lost")):
        monkeypatch.setenv("MMS_RANK", rank)
        with mms.connect(workspace=tmp_path / "ws") as ws:
            assert ws.jobs.get(training).state == state


@pytest.mark.slow
def test_two_pods_are_one_cluster_of_jax(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text("import jax\nprint(jax.process_count(), jax.process_index(), jax.device_count())\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MMS_COORDINATOR": f"127.0.0.1:{port}", "MMS_RANKS": "2", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pods = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "mms_sdk.compute.joined", str(script)],
            env={**os.environ, **told, "MMS_RANK": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    assert [pod.communicate(timeout=110)[0] for pod in pods] == ["2 0 2\n", "2 1 2\n"]
    assert [pod.returncode for pod in pods] == [0, 0]
