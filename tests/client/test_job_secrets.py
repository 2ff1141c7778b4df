"""Secrets: a job has the value, and nobody else has more than the name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mms_sdk as mms
from mms_sdk import cli
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import InvalidName, InvalidRequest, JobFailed, MmsError, NotFound
from mms_sdk.storage.owners import pid_of

SMALL = mms.Resources(cpus=1, gpus=0)
TIMEOUT_S = 20
VALUE = "very-secret-wörds"


@pytest.fixture(autouse=True)
def no_secrets(ws: mms.WorkspaceClient) -> None:
    for name in ws.secrets.list():
        ws.secrets.remove(name)


def holding(*places: Path) -> str:
    # By another process: one that closes the catalog's file lets go its own locks on it.
    command = ["grep", "--recursive", "--files-with-matches", "--text", "-e", "very-secret", *map(str, places)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_job_has_the_value_and_all_else_the_name(ws: mms.WorkspaceClient, folder: Path, tmp_path: Path) -> None:
    ws.secrets.set("HF_TOKEN", VALUE)
    text = (
        "import hashlib, os, subprocess, sys, time\nvalue = os.environ['HF_TOKEN']\n"
        "print(hashlib.sha256(value.encode()).hexdigest(), value, sep='|', flush=True)\n"
        "for byte in value.encode():\n    os.write(2, bytes([byte]))\n"
        "subprocess.run(['printenv', 'HF_TOKEN'])\n"
        "raise ValueError('not with ' + value)\n"
    )
    job = ws.jobs.submit(text, secrets=["HF_TOKEN"], resources=SMALL)
    with pytest.raises(JobFailed, match=r"ValueError: not with \*\*\*;"):
        job.wait(timeout_s=TIMEOUT_S, progress=False)

    assert job.logs().startswith(f"{hashlib.sha256(VALUE.encode()).hexdigest()}|***\n******\nTraceback")
    assert job.record.spec["secrets"] == ["HF_TOKEN"]
    told = [job.logs(), repr(job), str(job.record), str(job.facts()), str(job.attempts), str(job.environment())]
    assert not any("very-secret" in each for each in told)
    assert repr(ws.secrets.list()).split() == ["secret", "HF_TOKEN"]
    kept = folder / "secrets" / "HF_TOKEN"
    assert holding(folder).split() == [str(kept)]
    if ws.embedded:
        ws.backup(str(tmp_path / "place"))
        restored = mms.Backups(str(tmp_path / "place")).restore(tmp_path / "restored")
        assert restored.jobs.get(job.id).logs() == job.logs()
        assert holding(tmp_path) == ""
        assert restored.secrets.list() == []


def test_a_later_attempt_sees_what_was_set_meanwhile(ws: mms.WorkspaceClient, folder: Path, tmp_path: Path) -> None:
    ws.secrets.set("A_KEY", "first-value")
    text = (
        "import os, signal, sys, time\nfrom pathlib import Path\nmark = Path(sys.argv[1])\n"
        "print(os.environ['A_KEY'][::-1], flush=True)\n"
        "if not mark.exists():\n    mark.touch()\n    time.sleep(20)\n"
    )
    job = ws.jobs.submit(text, args=[str(tmp_path / "mark")], secrets=["A_KEY"], resources=SMALL)
    _until(lambda: (tmp_path / "mark").exists())
    ws.secrets.set("A_KEY", "second-value")
    worker = json.loads((folder / "jobs" / job.id / "attempts" / "1" / "worker.json").read_bytes())
    os.kill(pid_of(worker["owner"]), signal.SIGKILL)
    job.wait(timeout_s=TIMEOUT_S, progress=False)
    assert (job.logs(attempt=1), job.logs(attempt=2)) == ("first-value"[::-1] + "\n", "second-value"[::-1] + "\n")


def test_one_that_is_gone_when_the_job_begins_is_told_and_not_waited_for(ws: mms.WorkspaceClient) -> None:
    ws.secrets.set("A_KEY", "value")
    first = ws.jobs.submit("import time\ntime.sleep(20)\n")
    second = ws.jobs.submit("print(1)\nprint(2)\n", secrets=["A_KEY"])
    ws.secrets.remove("A_KEY")
    first.cancel()
    with pytest.raises(JobFailed, match=r"no secret A_KEY .* set it first: mms secrets set A_KEY"):
        second.wait(timeout_s=TIMEOUT_S, progress=False)
    (attempt,) = second.attempts
    assert attempt.ended is not None
    assert attempt.ended.reason == "user"


@pytest.mark.parametrize(
    ("secrets", "kind", "said"),
    [
        (
            ["NONE"],
            NotFound,
            "no secret NONE in this workspace, there are none yet; set it first: mms secrets set NONE",
        ),
        (["A B"], InvalidName, "got 'A B'"),
        (["HF_TOKEN=hidden"], InvalidName, "got 'HF_TOKEN'; its value is given by: mms secrets set NAME"),
        ({"HF_TOKEN": "hidden"}, InvalidRequest, "a list of names"),
        ("HF_TOKEN", InvalidRequest, "a list of names"),
        (["MMS_TOKEN"], InvalidName, "are the engine's"),
        (["A", "A"], InvalidRequest, "'A' is there 2 times"),
        ([f"A{number}" for number in range(51)], InvalidRequest, "at most 50 of them, not 51"),
        ([1], InvalidName, "got '1'"),
    ],
)
def test_what_is_no_secret_is_refused(ws: mms.WorkspaceClient, secrets: Any, kind: type[MmsError], said: str) -> None:
    with pytest.raises(kind, match=said) as refused:
        ws.jobs.submit("print(1)\nprint(2)\n", secrets=secrets)
    assert "hidden" not in str(refused.value)


def test_a_variable_has_one_value(ws: mms.WorkspaceClient) -> None:
    ws.secrets.set("A_KEY", "value")
    with pytest.raises(InvalidRequest, match="'A_KEY' is a secret and in environment"):
        ws.jobs.submit("print(1)\nprint(2)\n", secrets=["A_KEY"], environment={"A_KEY": "other"})


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 100_001, "\ud800", 5, b"bytes"])
def test_a_value_that_no_variable_can_have_is_refused(ws: mms.WorkspaceClient, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="a secret "):
        ws.secrets.set("A_KEY", value)
    with pytest.raises(NotFound, match="no secret A_KEY"):
        ws.secrets.remove("A_KEY")


def test_what_a_job_submits_does_not_have_its_secrets_written_down(ws: mms.WorkspaceClient, folder: Path) -> None:
    """Whatever they are called: usual variables go along."""
    ws.secrets.set("JAX_SOMETHING", VALUE)
    text = (
        "import os\nimport mms_sdk as mms\nassert 'JAX_SOMETHING' in os.environ\n"
        "inner = 'import os\\nprint(os.environ.get(\"JAX_SOMETHING\"))\\n'\n"
        "with mms.connect() as ws:\n    print(ws.jobs.submit(inner).id)\n"
    )
    job = ws.jobs.submit(text, secrets=["JAX_SOMETHING"], resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)
    inner = ws.jobs.get(job.logs().strip()).wait(timeout_s=TIMEOUT_S, progress=False)
    assert inner.logs() == "None\n"
    assert holding(folder).split() == [str(folder / "secrets" / "JAX_SOMETHING")]
    assert environment({"JAX_A": "1", "JAX_B": "2", "MMS_SECRETS": "JAX_A,HF"}) == {"JAX_B": "2"}


def test_a_function_has_secrets_too(ws: mms.WorkspaceClient) -> None:
    ws.secrets.set("A_KEY", "value-of-it")

    @mms.remote(cpus=1, gpus=0, secrets=["A_KEY"])
    def length() -> int:
        import os

        return len(os.environ["A_KEY"])

    assert length.submit_to(ws).value() == 11


def test_on_a_terminal_the_value_is_read_and_never_a_word_of_the_command(
    ws: mms.WorkspaceClient, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--workspace", str(tmp_path / "ws")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{VALUE}\n"))
    assert cli.main(["secrets", "set", "A_KEY", *where]) == 0
    assert (tmp_path / "ws" / "secrets" / "A_KEY").read_text() == VALUE
    assert cli.main(["secrets", *where]) == 0
    assert capsys.readouterr().out.split() == ["secret", "A_KEY"]
    script = tmp_path / "a.py"
    script.write_text("import os\nprint(len(os.environ['A_KEY']))\n")
    assert cli.main(["run", *where, "--watch", "--cpus", "1", "--gpus", "0", "--secret", "A_KEY", str(script)]) == 0
    assert capsys.readouterr().out.startswith(f"{len(VALUE)}\n")
    assert cli.main(["secrets", "remove", "A_KEY", *where]) == 0
    assert cli.main(["secrets", "remove", "A_KEY", *where]) == 1
    assert "no secret A_KEY" in capsys.readouterr().err
    for words in (["set"], ["remove"], ["list", "A_KEY"]):
        assert cli.main(["secrets", *words, *where]) == 2
    assert cli.main(["secrets", "set", "A_KEY", "value", *where]) == 2
    assert capsys.readouterr().out == ""


def _until(true: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
