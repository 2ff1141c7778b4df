"""Code that is submitted runs by itself, embedded and over HTTP alike; a mistake in it is said before anything runs."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from over_http import serving

import mms_sdk as mms
from mms_sdk.client.api import Api
from mms_sdk.client.code import code_of
from mms_sdk.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    MmsError,
    NotFound,
    TooLarge,
    UnsupportedMediaType,
)
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.service import logs
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage import bundles
from mms_sdk.storage.workspace import Workspace

Client = mms.WorkspaceClient
SMALL = mms.Resources(cpus=1, gpus=0)
TIMEOUT_S = 20


@pytest.fixture
def way(ws: Client) -> str:
    return "embedded" if ws.embedded else "http"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of code, with what does not belong to it."""
    root = tmp_path / "project"
    for name, content in {
        "scripts/train.py": "import sys; import net; from pathlib import Path\nprint(net.NAME, *sys.argv[1:])\n",
        "scripts/net.py": "NAME = 'été'\n",
        "conf/a.json": "{}",
        "data/large.bin": "x" * 1000,
        "notes.txt": "private",
        ".git/config": "private",
        ".env": "TOKEN=private",
        "scripts/__pycache__/net.pyc": "x",
        ".mmsignore": "# what stays behind\n\ndata/\n/notes.txt\n*.log\n",
        "conf/run.log": "x",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def gate(tmp_path: Path, ws: Client) -> Iterator[Callable[[], mms.Job]]:
    """A function that submits a job which says `begun` and runs until it is stopped, at most for a minute."""
    made: list[mms.Job] = []

    def submit() -> mms.Job:
        text = "import time\nprint('begun')\ntime.sleep(60)\n"
        made.append(ws.jobs.submit(text, resources=SMALL))
        until(lambda: "begun" in made[-1].logs())
        return made[-1]

    yield submit
    for job in made:
        if not job.refresh().record.ended:
            job.cancel()
            until(lambda job=job: job.refresh().record.ended)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def files_of(packed: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# What runs ---------------------------------------------------------------------------------------------------------


def test_a_script_runs_with_its_arguments_and_variables_in_this_workspace(ws: Client, tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text(
        "import os, sys, mms_sdk as mms\n"
        "with mms.connect() as ws:\n"
        "    print(ws.where, ws.datasets.get('pets').rows)\n"
        "print(sys.argv[1:], os.environ['COLOUR'], os.environ.get('SECRET'), __name__, os.listdir())\n"
        "print('to the log too', file=sys.stderr)\n"
    )
    os.environ["SECRET"] = "of whoever submits"
    try:
        job = ws.jobs.submit(script, args=["--lr", "1e-3", "a b", "é"], environment={"COLOUR": "grün"}, resources=SMALL)
    finally:
        del os.environ["SECRET"]
    assert job.wait(timeout_s=TIMEOUT_S, progress=False) is job

    assert (job.state, job.record.kind, job.record.name, job.record.engine) == ("succeeded", "script", "say", "local")
    lines = job.logs().splitlines()
    assert lines[0].endswith(" 120")
    assert lines[1:] == ["['--lr', '1e-3', 'a b', 'é'] grün None __main__ ['say.py']", "to the log too"]
    (attempt,) = job.attempts
    assert (attempt.number, attempt.given["cpus"]) == (1, 1)
    assert attempt.ended is not None
    assert (attempt.ended.reason, attempt.ended.exit_code, attempt.ended.lines[-1]) == ("succeeded", 0, lines[-1])
    assert ws.jobs.get(job.id).record == job.record
    assert job.id in [each.id for each in ws.jobs.list()]


def test_a_cell_runs_as_its_text_is(ws: Client, capsys: pytest.CaptureFixture[str]) -> None:
    job = ws.jobs.submit("value = 6 * 7\nprint(value)\n", name="answer", resources=SMALL)

    assert job.watch() is job

    assert capsys.readouterr().out == job.logs() == "42\n"
    assert (job.record.kind, job.record.name, job.state) == ("cell", "answer", "succeeded")


def test_a_folder_goes_along_but_for_what_it_ignores(ws: Client, project: Path) -> None:
    job = ws.jobs.submit(project / "scripts" / "train.py", folder=project, args=["x"], resources=SMALL)

    assert job.wait(timeout_s=TIMEOUT_S, progress=False).logs() == "été x\n"
    packed = code_of(project / "scripts" / "train.py", project)
    assert packed.entrypoint == "scripts/train.py"
    kept = {"scripts/train.py", "scripts/net.py", "conf/a.json"}
    assert files_of(packed.bundle) == {name: (project / name).read_bytes() for name in kept}


def test_what_was_submitted_is_what_runs_whatever_becomes_of_the_script(
    ws: Client, tmp_path: Path, gate: Callable[[], mms.Job]
) -> None:
    script = tmp_path / "changes.py"
    script.write_text("print('first')\n")
    job = ws.jobs.submit(script, resources=mms.Resources())  # all cores: it waits for its turn
    script.write_text("print('second')\n")

    assert job.wait(timeout_s=TIMEOUT_S, progress=False).logs() == "first\n"


def test_the_same_key_runs_it_once(ws: Client, way: str) -> None:
    text = "print('once')\nprint('more')\n"
    first = ws.jobs.submit(text, key=f"key-{way}", resources=SMALL)
    again = ws.jobs.submit(text, key=f"key-{way}", resources=SMALL)
    assert again.id == first.id
    with pytest.raises(Conflict, match=f"is that of job {first.id}, which runs something else"):
        ws.jobs.submit(text + "print()\n", key=f"key-{way}", resources=SMALL)
    first.wait(timeout_s=TIMEOUT_S, progress=False)
    assert ws.jobs.submit(text, key=f"key-{way}", resources=SMALL).state == "succeeded"
    assert len(first.attempts) == 1


def test_what_the_code_raises_is_the_jobs_error_and_is_not_tried_again(
    ws: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print('so far')\nraise ValueError('the rule; the value')\n")
    job = ws.jobs.submit(script, resources=SMALL)

    with pytest.raises(JobFailed, match=rf"job {job.id} ended as failed: ValueError: the rule; the value; .*job\.log"):
        job.watch()

    assert capsys.readouterr().out == job.logs()
    assert "so far\nTraceback" in job.logs()
    assert "line 2, in <module>" in job.logs()
    (attempt,) = job.attempts
    assert attempt.ended is not None
    assert attempt.ended.error == {"type": "ValueError", "message": "the rule; the value"}
    assert (attempt.ended.reason, attempt.ended.exit_code) == ("user", 1)
    assert "ValueError" in job._repr_html_()


def test_an_exit_code_is_told(ws: Client) -> None:
    job = ws.jobs.submit("import sys\nsys.exit(3)\n", resources=SMALL)
    with pytest.raises(JobFailed, match="exit code 3"):
        job.wait(timeout_s=TIMEOUT_S, progress=False)


def test_a_job_that_runs_is_cancelled_and_one_that_has_ended_is_not(ws: Client, gate: Callable[[], mms.Job]) -> None:
    job = gate()
    assert job.refresh().state == "running"
    with pytest.raises(Conflict, match="is run anew once it has ended"):
        job.retry()

    job.cancel()

    with pytest.raises(JobFailed, match="ended as cancelled: it was cancelled"):
        job.wait(timeout_s=TIMEOUT_S, progress=False)
    with pytest.raises(Conflict, match="it is cancelled"):
        job.cancel()


def test_a_job_that_waits_is_cancelled_and_never_runs(ws: Client, gate: Callable[[], mms.Job]) -> None:
    gate()
    waits = ws.jobs.submit("print(1)\nprint(2)\n")  # all cores, of which one is taken
    assert waits.state == "queued"
    assert (waits.logs(), waits.attempts) == ("", [])
    with pytest.raises(NotFound, match=f"job {waits.id} has no attempt 1; there are none yet"):
        waits.logs(attempt=1)

    assert waits.cancel().state == "cancelled"

    with pytest.raises(JobFailed, match="it was cancelled while it waited"):
        waits.watch()
    assert waits.attempts == []


def test_a_retry_is_a_job_of_its_own_that_runs_the_same(ws: Client) -> None:
    first = ws.jobs.submit("import sys\nprint(sys.argv[1])\n", args=["again"], name="twice", resources=SMALL)
    first.wait(timeout_s=TIMEOUT_S, progress=False)

    second = first.retry()

    assert second.id != first.id
    assert second.wait(timeout_s=TIMEOUT_S, progress=False).logs() == first.logs() == "again\n"
    same = ("bundle", "entrypoint", "args", "environment", "resources", "retry")
    assert [second.record.spec[name] for name in same] == [first.record.spec[name] for name in same]
    assert (second.record.name, second.record.kind) == ("twice", "cell")


def test_each_attempt_has_its_log_and_watching_shows_them_all(
    ws: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    text = "import os, pathlib, signal, sys\nmark = pathlib.Path(sys.argv[1])\n"
    text += "if mark.exists():\n    print('second')\n"
    text += "else:\n    mark.touch(); print('first', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    job = ws.jobs.submit(text, args=[str(mark)], retry=mms.Retry(1, wait_s=0), resources=SMALL)

    job.watch()

    assert capsys.readouterr().out == "first\n--- attempt 2 ---\nsecond\n"
    assert (job.state, job.logs(), job.logs(attempt=1), job.logs(attempt=2)) == (
        "succeeded",
        "second\n",
        "first\n",
        "second\n",
    )
    told = [each.ended for each in job.attempts if each.ended is not None]
    assert [(each.reason, each.signal) for each in told] == [("infra", "SIGKILL"), ("succeeded", None)]
    with pytest.raises(NotFound, match=r"has no attempt 3; there are \[1, 2\]"):
        job.logs(attempt=3)


def test_an_interrupt_of_watching_leaves_the_job_running(
    ws: Client, gate: Callable[[], mms.Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = gate()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Api, "follow", interrupted)
    assert job.watch() is job
    monkeypatch.undo()

    assert job.refresh().state == "running"
    assert f"ws.jobs.get({job.id!r}).watch()" in capsys.readouterr().err


def test_a_job_outlives_whoever_submitted_it(tmp_path: Path) -> None:
    code = "import sys, mms_sdk as mms\n"
    code += "ws = mms.connect(workspace=sys.argv[1])\n"
    code += "job = ws.jobs.submit('import time\\nprint(1, flush=True)\\ntime.sleep(1)\\nprint(2)\\n')\n"
    code += "print(job.id, flush=True); sys.stdin.read()\n"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ws")], **pipes) as process:
        job = process.stdout.readline().strip()
        process.kill()

    with mms.connect(workspace=tmp_path / "ws") as ws:
        assert ws.jobs.get(job).wait(timeout_s=TIMEOUT_S, progress=False).logs() == "1\n2\n"
        assert len(ws.jobs.get(job).attempts) == 1


# Mistakes ----------------------------------------------------------------------------------------------------------


def refused(ws: Client, kind: type[MmsError], said: str, *words: Any, **options: Any) -> None:
    before = ws.jobs.counts()
    with pytest.raises(kind, match=said):
        ws.jobs.submit(*words, **options)
    assert ws.jobs.counts() == before


OK = "print(1)\nprint(2)\n"


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("nowhere.py", NotFound, r"there is no file .*nowhere\.py; give its path"),
        ("print(1)", NotFound, "or the text of a cell with more than one line"),
        ("print(1); " * 1000, NotFound, "there is no file .{300,400}; give its path$"),
        ("a\0b", NotFound, "there is no file"),
        ("", NotFound, "there is no file"),
        ("x = 1\ny = = 2\n", InvalidRequest, "the cell, line 2: invalid syntax; correct it first"),
        ("x = 1\nif x:\nprint(x)\n", InvalidRequest, "the cell, line 3: expected an indented block"),
        ("print(\n", InvalidRequest, r"the cell, line 1: '\(' was never closed"),
        ("await x\ny\n", InvalidRequest, "line 1: 'await' outside function"),
        ("a\0b\n", InvalidRequest, "null bytes"),
        ("x = '\ud800'\n", InvalidRequest, "can be written as UTF-8"),
        ("(" * 100_000 + "\n", InvalidRequest, "a job runs Python; the cell"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_script_is_refused(ws: Client, script: str, kind: type[MmsError], said: str) -> None:
    refused(ws, kind, said, script)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resources": mms.Resources(cpus=100_000)}, "asks for 100,000 cores, and this machine has"),
        ({"resources": mms.Resources(gpus=1000)}, "asks for 1,000 GPUs, and this machine has"),
        ({"resources": mms.Resources(memory="999TB")}, "bytes of memory, and this machine has"),
        ({"environment": {"MMS_JOB": "1"}}, "begin with MMS_ are the engine's"),
        ({"environment": {"MMS_WORK-SPACE": "1"}}, "begin with MMS_ are the engine's"),
        ({"environment": {"A": "x" * 200_000}}, "a variable has at most 100,000 bytes"),
        ({"environment": {"A=B": "1"}}, "a name without '='"),
        ({"environment": {"A": 1}}, "environment"),
        ({"args": "--lr 1"}, r"a list of texts; got the text '--lr 1'; put it into \[ \]"),
        ({"args": ["\udcff"]}, "made of texts"),
        ({"name": "x" * 64}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"key": "x" * 65}, "key"),
        ({"key": ""}, "key"),
        ({"priority": 1001}, "priority"),
        ({"priority": "high"}, "priority"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_no_job_can_have_is_refused(ws: Client, options: dict[str, Any], said: str) -> None:
    refused(ws, InvalidRequest, said, OK, **options)


def test_bad_units_are_refused_where_they_are_written() -> None:
    with pytest.raises(InvalidRequest, match="got '8 parrots'"):
        mms.Resources(memory="8 parrots")
    with pytest.raises(InvalidRequest, match="got 'soon'"):
        mms.Resources(time="soon")


def test_a_syntax_error_in_a_script_names_its_file_and_line(ws: Client, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("import os\n\ndef f(:\n    pass\n")
    refused(ws, InvalidRequest, rf"{script}, line 3: invalid syntax; correct it first", script)
    script.write_bytes(b"x = '\xff'\n")
    refused(ws, InvalidRequest, r"broken\.py", script)


def test_a_warning_of_the_compiler_is_no_error(ws: Client, tmp_path: Path) -> None:
    script = tmp_path / "warns.py"
    script.write_text("print('\\d', 1 is 1)\n")
    assert code_of(script, None).entrypoint == "warns.py"


def test_a_script_lies_in_the_folder_that_goes_along(ws: Client, project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("print()\n")
    for script in (outside, project / ".." / "outside.py"):
        refused(ws, InvalidRequest, "a script lies in the folder that goes along", script, folder=project)
    assert code_of(project / "conf" / ".." / "scripts" / "train.py", project).entrypoint == "scripts/train.py"
    refused(ws, NotFound, "there is none at .*nowhere", OK, folder=project / "nowhere")
    refused(ws, NotFound, "there is no file", project, folder=project)


def test_what_cannot_go_along_is_named_with_what_to_do(
    ws: Client, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = project / "scripts" / "train.py"
    monkeypatch.chdir(project)

    def refuses(make: Callable[[], Any], said: str) -> None:
        make()
        refused(ws, InvalidRequest, said, script, folder=project)
        (project / "odd").unlink()

    refuses(lambda: (project / "odd").symlink_to("nowhere"), r"odd cannot: .*; name it in \.mmsignore")
    refuses(lambda: os.mkfifo("odd"), r"odd is none; name it in \.mmsignore")
    refuses(lambda: (project / "odd").symlink_to("/etc"), r"odd is a link to one elsewhere; name it in \.mmsignore")
    with socket.socket(socket.AF_UNIX) as listening:
        refuses(lambda: listening.bind("odd"), "odd is none")
    (project / "linked.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "elsewhere.txt").write_text("along")
    assert files_of(code_of(script, project).bundle)["linked.txt"] == b"along"
    (project / ".mmsignore").write_bytes(b"\xff\xfe")
    refused(ws, InvalidRequest, r"mmsignore lists what stays behind, in UTF-8", script, folder=project)


def test_a_folder_of_data_is_too_large(ws: Client, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = project / "scripts" / "train.py"
    monkeypatch.setattr(bundles, "MAX_UNPACKED_BYTES", 500)
    (project / "more.bin").write_bytes(bytes(501))
    said = r"holds 5,000 files and 500 bytes; .*project has more; name what is no code in the folder's \.mmsignore"
    refused(ws, TooLarge, said, script, folder=project)
    refused(ws, TooLarge, r"more\.bin has more", project / "more.bin")
    (project / "more.bin").unlink()
    monkeypatch.setattr(bundles, "MAX_FILES", 2)
    refused(ws, TooLarge, "a bundle holds 2 files", script, folder=project)


def test_a_bundle_that_a_server_does_not_take_is_said(ws: Client, tmp_path: Path) -> None:
    script = tmp_path / "noise.py"
    script.write_text(f"# {os.urandom(2000).hex()}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "MAX_BYTES", 1000)
        refused(ws, TooLarge, "a bundle holds at most 1,000 bytes", script)


# Straight to the routes --------------------------------------------------------------------------------------------


def kept(ws: Client) -> str:
    return ws._api.send_bytes(
        "POST",
        "/v1/bundles",
        bundles.pack({"a.py": b"print(1)"}),
        dict[str, str],
        headers={"content-type": "application/zip"},
    )["bundle"]


def ask(ws: Client, **changes: Any) -> JobRecord:
    spec = {"bundle": kept(ws), "entrypoint": "a.py", **changes.pop("spec", {})}
    return ws._api.send("POST", "/v1/jobs", JobRecord, {"kind": "script", "name": "x", "spec": spec, **changes})


def test_a_bundle_is_known_by_its_sha256(ws: Client) -> None:
    assert kept(ws) == hashlib.sha256(bundles.pack({"a.py": b"print(1)"})).hexdigest()


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"spec": {"entrypoint": "b.py"}}, InvalidRequest, r"a file of the bundle; got 'b\.py'; it has \['a\.py'\]"),
        ({"spec": {"entrypoint": "../a.py"}}, InvalidRequest, "an entrypoint is a file of the bundle"),
        ({"spec": {"entrypoint": "x" * 501}}, InvalidRequest, "entrypoint"),
        ({"spec": {"bundle": "0" * 64}}, NotFound, "no bundle 000.*as POST /v1/bundles"),
        ({"spec": {"bundle": "../" * 21 + "x"}}, InvalidRequest, "bundle"),
        ({"spec": {"spec_version": 2}}, InvalidRequest, "spec_version"),
        ({"spec": {"resources": {"cpus": "many"}}}, InvalidRequest, "cpus"),
        ({"spec": {"resources": {"memory": "8 parrots"}}}, InvalidRequest, "got '8 parrots'"),
        ({"spec": {"resources": {"time": "9" * 400 + "d"}}}, InvalidRequest, "time is seconds"),
        ({"spec": {"resources": {"tpus": 1}}}, InvalidRequest, "tpus"),
        ({"spec": {"retry": {"times": 1000}}}, InvalidRequest, "times"),
        ({"spec": {"args": ["x"] * 1001}}, InvalidRequest, "args"),
        ({"spec": {"grace_s": -1}}, InvalidRequest, "grace_s"),
        ({"spec": {"password": "x"}}, InvalidRequest, "password"),
        ({"kind": "train"}, InvalidRequest, "kind"),
        ({"state": "running"}, InvalidRequest, "state"),
        ({"parent": "nothing"}, JobNotFound, "no job 'nothing'"),
        ({"parent": "x" * 100}, JobNotFound, "no job"),
        ({"name": "a\0b"}, InvalidRequest, "name"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_dict_that_is_no_job_is_refused(ws: Client, changes: dict[str, Any], kind: type[MmsError], said: str) -> None:
    before = ws.jobs.counts()
    with pytest.raises(kind, match=said):
        ask(ws, **changes)
    assert ws.jobs.counts() == before


def test_a_body_that_is_no_zip_is_refused(ws: Client) -> None:
    for content in (b"", b"no zip", b"PK\3\4"):
        with pytest.raises(InvalidRequest, match="is a zip archive; this is none"):
            ws._api.send_bytes("POST", "/v1/bundles", content, dict, headers={"content-type": "application/zip"})
    packed = bundles.pack({"a.py": b""})
    for kind in ("application/json", "text/plain", ""):
        with pytest.raises(UnsupportedMediaType, match="is sent as application/zip"):
            ws._api.send_bytes("POST", "/v1/bundles", packed, dict, headers={"content-type": kind})
    headers = {"content-type": "Application/Zip; charset=binary"}
    assert ws._api.send_bytes("POST", "/v1/bundles", packed, dict, headers=headers)


def test_what_the_caller_says_of_the_interpreter_and_its_surroundings_does_not_count(ws: Client) -> None:
    record = ask(ws, spec={"python": "/bin/false", "inherited": {"LD_PRELOAD": "evil.so"}, "resources": {"cpus": 1}})

    assert record.spec["python"] == sys.executable
    assert "LD_PRELOAD" not in record.spec["inherited"]
    assert ws.jobs.get(record.id).wait(timeout_s=TIMEOUT_S, progress=False).logs() == "1\n"


def test_neither_tokens_nor_passwords_of_this_process_are_written_anywhere(
    ws: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MMS_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "HF_TOKEN", "NVIDIA_API_KEY", "CONDA_TOKEN"):
        monkeypatch.setenv(name, "very-secret-words")
    job = ws.jobs.submit("import os\nprint(sorted(os.environ))\n", resources=SMALL)
    told = job.wait(timeout_s=TIMEOUT_S, progress=False).logs()
    assert "PATH" in told
    assert "TOKEN" not in told
    assert "PGPASSWORD" not in told
    places = [folder]
    if ws.embedded:
        ws.backup(str(tmp_path / "place"))
        places.append(tmp_path / "place")
    # By another process: one that closes the catalog's file lets go its own locks on it.
    command = ["grep", "--recursive", "--files-with-matches", "--text", "very-secret-words", *map(str, places)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""


def test_a_log_is_read_in_pieces_that_cut_no_character(
    ws: Client, monkeypatch: pytest.MonkeyPatch, gate: Callable[[], mms.Job]
) -> None:
    text = "import os\nos.write(1, 'aé…😀'.encode() * 50 + b'\\xff|\\xf0\\x9f')\n"
    job = ws.jobs.submit(text, resources=SMALL)
    job.wait(timeout_s=TIMEOUT_S, progress=False)
    monkeypatch.setattr(logs, "PIECE_BYTES", 7)

    whole = b"a\xc3\xa9\xe2\x80\xa6\xf0\x9f\x98\x80" * 50 + b"\xff|\xf0\x9f"
    assert job.logs() == whole.decode(errors="replace")


def test_a_character_of_which_half_is_written_is_waited_for(ws: Client) -> None:
    text = "import os, time\nfor byte in '…😀é'.encode():\n    os.write(1, bytes([byte])); time.sleep(0.03)\n"
    job = ws.jobs.submit(text, resources=SMALL)
    assert "".join(job._printed()) == "…😀é"


@pytest.mark.parametrize("offset", [-1, 2**41, "x"])
def test_an_offset_that_is_none_is_refused(ws: Client, offset: Any) -> None:
    job = ask(ws, spec={"resources": {"cpus": 1}})
    with pytest.raises(InvalidRequest, match="offset"):
        ws._api.get(f"/v1/jobs/{job.id}/logs", dict, offset=offset)
    ws.jobs.get(job.id).wait(timeout_s=TIMEOUT_S, progress=False)


def test_jobs_that_no_engine_ran_are_neither_cancelled_nor_tried_again(ws: Client) -> None:
    job = ws.datasets.verify("pets", progress=False)
    with pytest.raises(Conflict, match="it is succeeded"):
        job.cancel()
    with pytest.raises(Conflict, match="is a verify; start it again as it was started"):
        job.retry()
    assert (job.attempts, job.logs()) == ([], "")
    for what in ("attempts", "logs"):
        with pytest.raises(JobNotFound):
            ws._api.get(f"/v1/jobs/nothing/{what}", list)


def test_who_may_only_look_submits_cancels_and_tries_nothing_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    tokens = {role: workspace.catalog.tokens.issue(role, role) for role in ("viewer", "editor")}
    with (
        serving(create_app(workspace, ServerSettings())) as url,
        mms.connect(url, token=tokens["editor"]) as editor,
        mms.connect(url, token=tokens["viewer"]) as viewer,
    ):
        job = editor.jobs.submit(OK, resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)
        seen = viewer.jobs.get(job.id)
        assert (seen.logs(), len(seen.attempts)) == ("1\n2\n", 1)
        for call in (lambda: viewer.jobs.submit(OK), seen.cancel, seen.retry):
            with pytest.raises(Forbidden, match=r"this takes the role 'editor'; the token 'viewer' has 'viewer'"):
                call()
        assert len(viewer.jobs.list()) == 1
    workspace.close()
