"""The command line: what it prints, what it returns, and what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

import mms_sdk as mms
from mms_sdk import cli
from mms_sdk.errors import JobFailed, NotWritable
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer


@pytest.fixture(autouse=True)
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted command ends the jobs of its process: here those of its own test, and no other's."""
    monkeypatch.setattr("mms_sdk.service.jobs._runners", WeakSet())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "ws"))
    Workspace(tmp_path / "ws").close()
    return tmp_path / "ws"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_help_loads_no_heavy_library() -> None:
    probe = (
        "import sys\n"
        "from mms_sdk import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'jax', 'flax', 'orbax', 'zarr', 'pandas', 'numpy', 'fastapi', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "datasets" in done.stdout


def test_every_verb_has_help_and_takes_json(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = cli.make_parser().parse_args(["help"]).verbs.choices
    for verb in verbs:
        code, out, _ = run(capsys, "help", verb)
        assert code == 0
        assert "--json" in out


def test_an_empty_workspace_says_so_and_is_an_empty_list_in_json(
    capsys: pytest.CaptureFixture[str], workspace: Path
) -> None:
    for verb in ("datasets", "models", "jobs"):
        assert run(capsys, verb)[:2] == (0, f"no {verb} yet in {workspace}\n")
        code, out, _ = run(capsys, verb, "--json")
        assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tran"], 2, "mms: there is no verb 'tran'; did you mean train? more: mms --help\n"),
        (["zzz"], 2, "there is no verb 'zzz'; there are status, demo, datasets"),
        (["status", "--wrkspace", "x"], 2, "--wrkspace is no option of mms status; did you mean --workspace? more:"),
        (["status", "x"], 2, "'x' is one word too many for mms status"),
        (["--nothing"], 2, "--nothing is no option of mms;"),
        (["train"], 2, "usage: mms train DATASET; the following arguments are required: dataset;"),
        (["datasets", "ingest", "a", "b", "--profile", "rw"], 2, "there is no --profile 'rw'; did you mean raw?"),
        (["datasets", "ingest", "p", "a/1.jpg", "a/2.jpg"], 2, "got 2; put a pattern in quotes"),
        (["datasets", "watch", "p", "a/1.jpg", "a/2.jpg"], 2, "mms datasets watch p 'a/*.jpg'"),
        (["backups", "/nowhere/at all"], 1, "no folder /nowhere/at all; check the name"),
        (["datasets", "show"], 2, "usage: mms datasets"),
        (["datasets", "list", "flowers"], 2, "usage: mms datasets"),
        (["datasets", "show", "flowers", "photos"], 2, "usage: mms datasets"),
        (["datasets", "shwo", "flowers"], 2, "did you mean show?"),
        (["models", "--alias", "champion"], 2, "name it: mms models MODEL"),
        (["train", "flowers", "--learning-rate", "-1"], 2, "a number above 0"),
        (["train", "flowers", "--learning-rate", "nan"], 2, "a number above 0"),
        (["serve", "flowers", "flowers@2"], 1, "got 'flowers' more than once"),
        (["datasets", "ingest", "flowers"], 2, "usage: mms datasets"),
        (["datasets", "show", "flowers"], 1, "no dataset 'flowers'"),
        (["datasets", "show", "../etc"], 1, "a dataset name has"),
        (["datasets", "show", "flowers@0"], 1, "a dataset reference is"),
        (["datasets", "ingest", "flowers", "nowhere"], 1, "is not there"),
        (["models", "flowers"], 1, "no model 'flowers'"),
        (["jobs", "01ABC"], 1, "no job '01ABC'"),
        (["logs", "01ABC"], 1, "no job '01ABC'"),
        (["stop", "01ABC"], 1, "no job '01ABC'"),
        (["retry", "01ABC"], 1, "no job '01ABC'"),
        (["logs"], 2, "usage: mms logs JOB"),
        (["logs", "01ABC", "--attempt", "0"], 2, "a whole number from 1"),
        (["run"], 2, "usage: mms run SCRIPT"),
        (["run", "nowhere.py"], 1, "nowhere.py; give its path"),
        (["run", "--env", "A", "x.py"], 2, "a variable is NAME=VALUE; got 'A'"),
        (["run", "--memory", "8 parrots", "x.py"], 1, "Resources does not fit: memory: memory is bytes, or a number"),
        (["run", "--time", "soon", "x.py"], 1, "got 'soon'"),
        (["run", "--cpus", "0", "x.py"], 2, "a whole number from 1"),
        (["run", "--retries", "101", "x.py"], 1, "Retry does not fit: times"),
        (["run", "--prioritty", "1", "x.py"], 2, "--prioritty is no option of mms run; did you mean --priority?"),
        (["predict", "flowers", "x.png"], 1, "no model 'flowers'"),
        (["predict", "flowers", "a", "b", "--to", "x.parquet"], 2, "--to takes one"),
        (["predict", "flowers", "a", "b", "--on", "local"], 2, "--on takes one"),
        (["predict", "flowers", "a", "--to", "x.parquet", "--on", "local"], 2, "leave one of them out"),
        (["predict", "flowers", "a", "--on", "spark"], 2, "--on"),
        (["evaluate", "flowers", "a", "--to", "x.html", "--on", "local"], 2, "with --on, leave it out"),
        (["datasets", "ingest", "flowers", ".", "--on", "spark"], 1, "on= is one of 'local', 'ray'"),
        (["train", "flowers", "--epochs", "0"], 2, "a whole number from 1"),
        (["train", "flowers", "--mesh", "data"], 2, "a mesh is e.g."),
        (["plan", "flowers"], 1, "no dataset 'flowers'"),
        (["plan", "flowers", "--prices", "2.5"], 2, "prices are e.g. h100=2.5"),
        (["serve", "--host", "0.0.0.0"], 1, "loopback"),
        (["status", "--url", "ftp://x"], 1, "http://"),
        (["status", "--url", "http://127.0.0.1:9"], 1, "token"),
        (["help", "frob"], 2, "a verb is one of"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_mistake_is_one_message_without_a_traceback(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = run(capsys, *words)
    assert got == code
    assert said in err
    assert "Traceback" not in out + err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    ["status", "datasets", "datasets show x", "datasets clean x --step drop-missing", "jobs", "models", "verify"],
)
@pytest.mark.parametrize("named", ["option", "variable"])
def test_what_brings_nothing_in_makes_no_workspace_of_a_mistyped_name(
    words: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typo = tmp_path / "typo"
    monkeypatch.setenv("MMS_WORKSPACE", str(typo if named == "variable" else tmp_path / "right"))
    code, _, err = run(capsys, *words.split(), *(["--workspace", str(typo)] if named == "option" else []))
    assert code == 1
    assert f"there is none in {typo}; name another" in err
    assert "mms datasets ingest NAME SOURCE" in err
    assert list(tmp_path.iterdir()) == []


def test_an_ingest_makes_its_workspace_and_looking_makes_the_default_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text("n\n" + "".join(f"{at}\n" for at in range(20)))
    words = ("--workspace", str(tmp_path / "new"))
    assert run(capsys, "datasets", "ingest", "x", str(tmp_path / "x.csv"), *words)[0] == 0
    assert "x@1" in run(capsys, "datasets", *words)[1]
    monkeypatch.delenv("MMS_WORKSPACE", raising=False)
    monkeypatch.setattr("mms_sdk.settings.HOME_WORKSPACE", tmp_path / "home")
    assert run(capsys, "jobs")[:2] == (0, f"no jobs yet in {tmp_path / 'home'}\n")


def test_a_workspace_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Any, flags: int, *more: Any) -> int:
        if str(path).endswith("catalog.sqlite") and flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *more)

    opened = os.open
    monkeypatch.setattr(os, "open", read_only)
    for verb in ("status", "datasets", "jobs"):
        code, out, err = run(capsys, verb)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert f"{workspace}/catalog.sqlite cannot be written: Read-only file system; give this user" in err
    with pytest.raises(NotWritable, match=r"catalog\.sqlite cannot be written: Read-only file system; give"):
        mms.connect()


def test_status_counts_all_jobs(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    opened = Workspace(workspace)
    ended = [opened.catalog.jobs.start("ingest", "x", {}).id for _ in range(130)]
    for job in ended:
        opened.catalog.jobs.finish(job, "succeeded")
    opened.catalog.jobs.start("ingest", "x", {})
    opened.close()
    assert json.loads(run(capsys, "status", "--json")[1])["jobs"] == "1 running, 131 recorded"


def test_a_script_is_run_watched_and_its_log_is_read_again(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    script = tmp_path / "say.py"
    script.write_text("import os, sys\nprint(*sys.argv[1:], os.environ['COLOUR'])\n")
    words = ("run", "--cpus", "1", "--gpus", "0", "--env", "COLOUR=green=blue", "--watch")
    code, out, err = run(capsys, *words, str(script), "--lr", "1e-3", "--json", "-h")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "--lr 1e-3 --json -h green=blue"
    assert "script say" in out
    assert "succeeded" in out
    code, out, _ = run(capsys, *words, "--json", "--key", "k", str(script), "x")
    told = json.loads(out)
    assert (code, told["state"], told["kind"], told["spec"]["args"]) == (0, "succeeded", "script", ["x"])
    assert json.loads(run(capsys, *words, "--json", "--key", "k", str(script), "x")[1])["id"] == told["id"]

    assert run(capsys, "logs", told["id"])[:2] == (0, "x green=blue\n")
    assert run(capsys, "logs", told["id"], "--follow")[:2] == (0, "x green=blue\n")
    assert json.loads(run(capsys, "logs", told["id"], "--json")[1]) == "x green=blue\n"
    assert run(capsys, "logs", told["id"], "--attempt", "1")[0] == 0
    code, _, err = run(capsys, "logs", told["id"], "--attempt", "2")
    assert (code, "has no attempt 2; there are [1]" in err) == (1, True)

    again = json.loads(run(capsys, "retry", told["id"], "--json")[1])
    assert (again["id"] != told["id"], again["spec"]["args"]) == (True, ["x"])
    assert run(capsys, "logs", again["id"], "--follow")[:2] == (0, "x green=blue\n")
    code, _, err = run(capsys, "stop", again["id"])
    assert (code, "it is succeeded" in err) == (1, True)
    assert [job["state"] for job in json.loads(run(capsys, "jobs", "--json")[1])] == ["succeeded"] * 3


def test_a_job_that_fails_ends_the_watching_with_its_reason_and_1(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('the rule')\n")
    code, out, err = run(capsys, "run", "--watch", str(tmp_path / "fails.py"))
    assert code == 1
    assert "ValueError: the rule" in out
    assert err.startswith("mms: job ")
    assert len(err.splitlines()) == 1


def test_a_job_that_runs_is_stopped(capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(60)\n")
    runs, waits = (json.loads(run(capsys, "run", "--json", str(tmp_path / "sleeps.py"))[1])["id"] for _ in range(2))
    for job in (waits, runs):
        code, out, _ = run(capsys, "stop", job)
        assert (code, job in out) == (0, True)
        with mms.connect() as ws, pytest.raises(JobFailed, match="it was cancelled"):
            ws.jobs.get(job).wait(timeout_s=60, progress=False)


def test_a_run_makes_its_workspace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("print(1)\n")
    words = ("run", "--watch", "--workspace", str(tmp_path / "new"), str(tmp_path / "x.py"))
    code, out, _ = run(capsys, *words)
    assert (code, out.splitlines()[0]) == (0, "1")


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_version", interrupted)
    assert run(capsys, "version")[0] == 130


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m mms_sdk.cli help train | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_counts_what_it_read_and_names_a_damaged_file(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    for number in range(8):
        path = tmp_path / "photos" / ("even" if number % 2 == 0 else "odd") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(path)
    assert run(capsys, "datasets", "ingest", "shades", str(tmp_path / "photos"))[0] == 0
    code, out, _ = run(capsys, "datasets", "verify", "shades", "--json")
    (part,) = (workspace / "datasets" / "shades" / "parts").iterdir()
    assert code == 0
    assert json.loads(out)["result"] == {
        "snapshots": 1,
        "parts": 1,
        "bytes": sum(path.stat().st_size for path in part.rglob("*") if path.is_file()),
    }

    label = part / "data.zarr" / "label" / "c" / "0"
    damaged = bytearray(label.read_bytes())
    damaged[0] ^= 1
    label.write_bytes(damaged)

    code, _, err = run(capsys, "datasets", "verify", "shades")
    assert code == 1
    assert str(label) in err
    assert "backup" in err


@pytest.mark.usefixtures("workspace")
def test_doctor_looks_at_everything_and_shows_no_secret(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    run(capsys, "status")
    (workspace / "server.token").write_text("mms_secret")
    code, out, _ = run(capsys, "doctor", "--json")
    found = {row["what"]: row for row in json.loads(out)}
    assert code == 0
    assert {"python", "jax", "devices", "workspace", "permissions", "free disk"} <= found.keys()
    assert found["devices"]["ok"] == "yes"
    assert "mms_secret" not in out
    workspace.chmod(0o755)
    assert "chmod 700" in run(capsys, "doctor")[1]


def test_doctor_says_where_a_workspace_would_be_made_and_how_to_name_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = run(capsys, "doctor", "--json", "--workspace", str(tmp_path / "typo"))[1]

    seen = {row["what"]: row["seen"] for row in json.loads(out)}["workspace"]
    assert seen.startswith(f"there is none at {tmp_path / 'typo'}; ")
    assert "--workspace" in seen
    assert not (tmp_path / "typo").exists()


def test_doctor_names_the_database_of_the_catalog_and_not_its_password(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    shutil.rmtree(workspace)
    monkeypatch.setenv("MMS_CATALOG", postgres.make_database())
    Workspace(workspace, catalog=os.environ["MMS_CATALOG"]).close()
    run(capsys, "status")

    good = run(capsys, "doctor", "--json")[1]
    monkeypatch.delenv("MMS_CATALOG")
    bad = run(capsys, "doctor", "--json")[1]

    assert {row["what"]: row["seen"] for row in json.loads(good)}["catalog"].startswith("postgresql:///mms_")
    assert "set MMS_CATALOG to its URL" in {row["what"]: row["seen"] for row in json.loads(bad)}["workspace"]
    assert postgres.password not in good + bad
    assert not (workspace / "catalog.sqlite").exists()


# The words in order, on a few pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures; one dark one lies among the bright, and one file is no picture."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    rng = np.random.default_rng(0)
    for number in range(80):
        name, low = ("dark", 0) if number % 2 else ("bright", 150)
        path = folder / name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(low, low + 100, (8, 8)).astype(np.uint8)).save(path)
    shutil.copy(folder / "dark" / "01.png", folder / "bright" / "odd.png")
    (folder / "dark" / "note.png").write_text("no picture")
    return folder


def test_ingest_says_what_was_left_out_and_that_a_picture_lies_in_two_classes(
    capsys: pytest.CaptureFixture[str], workspace: Path, photos: Path
) -> None:
    code, out, _ = run(capsys, "datasets", "ingest", "shades", str(photos))
    told = dict((*line.split(None, 1), "")[:2] for line in out.splitlines() if line)

    assert code == 0
    assert "82 found, 80 kept" in out
    assert told["drop-unreadable"].strip().startswith("1  dark/note.png: this is not a readable picture")
    assert "1 × the same picture in two classes" in out
    code, out, _ = run(capsys, "datasets", "rejects", "shades", "--json")
    left_out = json.loads(out)
    assert {reject["source"] for reject in left_out} < {"dark/note.png", "dark/01.png", "bright/odd.png"}
    assert (code, len(left_out)) == (0, 2)
    assert workspace.is_dir()


def test_a_dataset_is_looked_after_from_the_command_line(
    capsys: pytest.CaptureFixture[str], workspace: Path, photos: Path
) -> None:
    for _ in range(2):
        assert run(capsys, "datasets", "ingest", "shades", str(photos))[0] == 0
    assert workspace.is_dir()

    code, out, _ = run(capsys, "datasets", "tag", "shades@1", "paper")
    assert code == 0
    assert out.splitlines()[0].split() == ["snapshot", "tags", "rows", "deleted", "parts", "created", "message"]
    assert "paper" in out.splitlines()[2]
    code, out, _ = run(capsys, "datasets", "diff", "shades", "paper")
    assert (code, out.splitlines()) == (
        0,
        ["snapshots     shades@1 → shades@2", "rows added    0", "rows deleted  0"],
    )
    assert json.loads(run(capsys, "datasets", "diff", "shades", "paper", "--json")[1])["newer"] == 2
    assert run(capsys, "datasets", "compact", "shades")[1] == "1 part: nothing to put together\n"
    assert json.loads(run(capsys, "datasets", "compact", "shades", "--json")[1])["result"]["parts"] == 1
    assert run(capsys, "datasets", "verify", "shades")[1].startswith("2 snapshots, 1 part, ")
    assert json.loads(run(capsys, "datasets", "expire", "shades", "--keep", "1", "--json")[1]) == {"expired": []}
    assert run(capsys, "datasets", "gc", "shades", "--grace", "0")[1] == "nothing to remove\n"
    assert run(capsys, "datasets", "show", "shades@paper")[1].startswith("dataset")
    code, _, err = run(capsys, "datasets", "tag", "shades", "7")
    assert (code, "a tag is not a number" in err) == (1, True)


@pytest.mark.slow
def test_one_of_everything_is_tried_with_the_options_of_a_training(
    capsys: pytest.CaptureFixture[str], workspace: Path, photos: Path
) -> None:
    assert run(capsys, "datasets", "ingest", "shades", str(photos))[0] == 0
    options = ("--model", "mlp", "--batch-size", "16", "--accumulate", "2", "--precision", "bf16", "--ema", "0.9")
    words = ("train", "shades", "--check", *options, "--freeze", "layers/0", "--balanced", "--clip-norm", "1")

    code, out, err = run(capsys, *words)
    told = json.loads(run(capsys, *words, "--json")[1])

    assert (code, err) == (0, "")
    assert out.startswith("<one of everything on shades@1")
    assert "a checkpoint" in out
    learnt = next(each["told"] for each in told["findings"] if each["what"] == "a training step")
    assert re.search(r"([\d,]+) of ([\d,]+) values learnt", learnt)
    assert json.loads(run(capsys, "jobs", "--json")[1])[0]["kind"] == "ingest"
    code, _, err = run(capsys, "train", "shades", "--model", "mlp", "--freeze", "nothing", "--check")
    assert (code, "'nothing' finds none among" in err) == (1, True)


def test_a_training_is_planned_for_devices_that_are_not_there(
    capsys: pytest.CaptureFixture[str], workspace: Path, photos: Path
) -> None:
    assert run(capsys, "datasets", "ingest", "shades", str(photos))[0] == 0
    words = ["plan", "shades", "--model", "mlp", "--batch-size", "8", "--target", "h100:8"]

    code, out, _ = run(capsys, *words, "--prices", "h100=2.5,v5e=1.2")
    told = json.loads(run(capsys, *words, "--json")[1])
    chosen = json.loads(run(capsys, *words, "--choose", "--json")[1])

    assert code == 0
    assert out.startswith("target            h100:8: 8 devices")
    assert "cost" in out
    assert (told["devices"], told["options"]["mesh"], told["cost"]) == (8, {"data": 8}, None)
    assert len(chosen["tried"]) == 4
    assert run(capsys, *words, "--choose")[1].startswith("mesh")
    code, _, err = run(capsys, *words, "--mesh", "data=3")
    assert (code, "a mesh uses every device" in err) == (1, True)
    assert run(capsys, "plan", "shades", "--target", "h900")[2].startswith("mms: a target is 'local', or one of a100")
    assert json.loads(run(capsys, "jobs", "--json")[1])[0]["kind"] == "ingest"  # a plan is no job


@pytest.mark.slow
def test_a_run_that_is_ended_from_outside_is_resumed_registered_and_asked(
    capsys: pytest.CaptureFixture[str], workspace: Path, photos: Path, tmp_path: Path
) -> None:
    assert run(capsys, "datasets", "ingest", "shades", str(photos))[0] == 0
    words = [sys.executable, "-m", "mms_sdk.cli", "train", "shades", "--model", "mlp", "--patience", "9999"]
    environment = {**os.environ, "MMS_WORKSPACE": str(workspace)}
    process = subprocess.Popen(
        [*words, "--epochs", "9999"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = next(line for line in process.stderr if "epoch" in line)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    (job,) = json.loads(run(capsys, "jobs", "--json", "--limit", "1")[1])
    assert "val/loss" in seen
    assert (process.returncode, out) == (143, "")
    assert f"mms: terminated; the job is {job['id']}; resume='{job['id']}'" in err
    assert "Traceback" not in err
    assert (job["kind"], job["state"]) == ("train", "cancelled")
    done = job["progress"]["done"]

    more = str(done + 2)
    words = ["train", "shades", "--model", "mlp", "--patience", "9999", "--epochs", more, "--resume", job["id"]]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "shades@1" in out
    assert "test/accuracy" in out

    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    pictures = [str(photos / "dark" / "03.png"), str(bad), str(photos / "bright" / "02.png")]
    code, out, _ = run(capsys, "predict", "shades", *pictures)
    dark, failed, bright = (line.rpartition("png ")[2].strip() for line in out.splitlines())
    assert code == 1  # a part has no answer
    assert dark.startswith("dark ")
    assert bright.startswith("bright ")
    assert "no answer: this is not a readable picture" in failed
    code, out, _ = run(capsys, "predict", "shades", "--json", *pictures[:2])
    assert (code, json.loads(out)[pictures[0]]["ranked"][0]["label"]) == (1, "dark")

    code, _, err = run(capsys, "predict", "shades", str(photos), "--to", str(tmp_path / "out.csv"))
    assert (code, list(tmp_path.glob("out*"))) == (1, [])
    assert "a Parquet file, e.g. predictions.parquet" in err
    code, out, _ = run(capsys, "predict", "shades", str(photos), "--to", str(tmp_path / "out.parquet"))
    assert code == 0
    assert "1 of them without a prediction, e.g. dark/note.png: this is not a readable picture" in out


def test_a_table_comes_in_by_what_its_name_ends_with(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("n,kind\n" + "".join(f"{at},{'ab'[at % 2]}\n" for at in range(20)) + "1\n")
    code, out, _ = run(capsys, "datasets", "ingest", "rows", str(tmp_path / "rows.csv"), "--label", "kind")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["a", "10", "█" * 24] in lines
    assert ["b", "10", "█" * 24] in lines
    assert "21 found, 20 kept" in out
    assert "rows.csv, row 21: it has 1 values, the header has 2" in out
    assert workspace.is_dir()


def test_what_is_shown_of_a_dataset_fits_a_terminal_and_json_has_all_of_it(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, hostile = "東京都千代田区 " * 40, "\x1b[2J<b>"
    titles = ["name", "number", *(f"a title that goes on and on {at}" for at in range(60))]
    rows = [f"{long if at % 2 else hostile},{at}.5," + ",".join(["1.25"] * 60) for at in range(20)]
    (tmp_path / "wide.csv").write_text("\n".join([",".join(titles), *rows]))
    assert run(capsys, "datasets", "ingest", "wide", str(tmp_path / "wide.csv"), "--label", "name")[0] == 0
    assert run(capsys, "datasets", "tag", "wide", "a-tag-that-is-as-long-as-a-tag-may-be-so-that-it-is-cut-off")[0] == 0
    words = ("list", "show wide", "head wide", "describe wide", "snapshots wide", "diff wide 1", "rejects wide")
    more = ("verify wide", "compact wide", "gc wide")

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for line in (*words, *more):
        code, out, err = run(capsys, "datasets", *line.split())
        assert (code, err) == (0, "")
        assert max(map(cell_len, out.splitlines())) <= 80, line
        assert all(each.isprintable() for each in out.splitlines()), line
    for line in (*words, *more):
        code, out, _ = run(capsys, "datasets", *line.split(), "--json")
        assert code == 0
        json.loads(out, parse_constant=pytest.fail)  # no NaN, no Infinity
    head = json.loads(run(capsys, "datasets", "head", "wide", "--rows", "4", "--json")[1])
    assert [(row["label"], row["number"]) for row in head[:2]] == [(hostile, 0.5), (long, 1.5)]
    assert cli.to_json({"a": [float("nan"), float("-inf"), 0.5]}) == {"a": [None, None, 0.5]}
    shown = json.loads(run(capsys, "datasets", "show", "wide", "--json")[1])
    assert shown["layout"]["parts"] == 1
    assert len(shown["layout"]["columns"]) == len(shown["columns"]) == 62 + 3
    code, _, err = run(capsys, "datasets", "head", "wide", "--rows", "0")
    assert (code, "a whole number from 1" in err) == (2, True)
    assert workspace.is_dir()


def test_files_and_tar_files_come_in_by_what_their_names_end_with(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "mails.tar", "w") as shard:
        for label in ("ham", "spam"):
            (tmp_path / "mails" / label).mkdir(parents=True)
            (tmp_path / "class").write_text(label)
            for number in range(4):
                path = tmp_path / "mails" / label / f"{number}.txt"
                path.write_text(f"{label} {number % 3}")  # the last is the first again
                shard.add(path, f"{label}-{number}.txt")
                shard.add(tmp_path / "class", f"{label}-{number}.cls")
    (tmp_path / "mails" / "ham" / "bad.txt").write_bytes(b"\xff")

    for source, label, found in (
        (f"{tmp_path}/mails/**/*.txt", ["--label", "folder"], 9),
        (f"{tmp_path}/mails.tar", [], 8),
    ):
        code, out, err = run(capsys, "datasets", "ingest", f"mails-{found}", source, *label)
        assert (code, "mms:" in err) == (0, False), err
        told = dict((*line.split(None, 1), "")[:2] for line in out.splitlines() if line)
        assert (told["ham"].split()[0], told["spam"].split()[0], told[str(found)]) == ("3", "3", "found, 6 kept")
        assert told["text"].split()[0] == "text"
    assert workspace.is_dir()


def test_datasets_are_cleaned_joined_and_put_end_to_end(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "orders.csv").write_text("customer,amount\n" + "".join(f"{at % 4},{at}\n" for at in range(20)))
    (tmp_path / "customers.csv").write_text("id,city\n" + "".join(f"{at},city {at}\n" for at in range(3)))
    for name in ("orders", "customers"):
        assert run(capsys, "datasets", "ingest", name, str(tmp_path / f"{name}.csv"))[0] == 0
    assert workspace.is_dir()

    steps = ("--step", "keep-where 'amount < 18'", "--step", "clip amount max=9", "--step", "convert amount uint8")
    code, out, _ = run(capsys, "datasets", "clean", "orders", *steps, "--json")
    told = json.loads(out)
    assert (code, told["rows"], told["snapshot"]) == (0, 18, 2)
    assert [step["step"] for step in told["provenance"]["cleaning"]["steps"]] == ["keep-where", "clip", "convert"]
    assert "orders@1, row 18" in run(capsys, "datasets", "rejects", "orders")[1]
    code, out, _ = run(capsys, "datasets", "join", "both", "orders", "customers@1", "--on", "customer=id", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 14)
    code, out, _ = run(capsys, "datasets", "join", "all", "orders", "customers", "--on", "customer=id", "--how", "left")
    assert (code, out.splitlines()[1].split()[:2]) == (0, ["rows", "18"])
    code, out, _ = run(capsys, "datasets", "concat", "twice", "both", "both@1", "orders", "--missing", "null", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 46)
    step = ("--step", "drop-duplicates customer,amount keep=last", "--step", "drop-missing columns=amount")
    step += ("--step", "impute amount by=value value=3")
    assert json.loads(run(capsys, "datasets", "clean", "orders", *step, "--json")[1])["rows"] == 13


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean", "orders"], "--step drop-missing"),
        (["clean", "orders", "--step", "drop-all"], "a step is one of clip, convert, drop-constant"),
        (["clean", "orders", "--step", "'"], "a step is one of"),
        (["clean", "orders", "--step", "clip age min=low"], "Clip does not fit: min"),
        (["clean", "orders", "--step", "clip age max=3 1 2"], "fields of Clip are given by name"),
        (["join", "a", "b"], "usage: mms datasets join NAME LEFT RIGHT"),
        (["join", "a", "b", "c"], "--on KEY"),
        (["join", "a", "b", "c", "d", "--on", "x"], "usage: mms datasets join NAME LEFT RIGHT"),
        (["concat", "a", "b"], "usage: mms datasets concat NAME DATASET DATASET..."),
        (["show", "a", "b", "c"], "usage: mms datasets show NAME"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_words_that_do_not_fit_an_action_say_how_they_would(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, _, err = run(capsys, "datasets", *words)
    assert (code, said in err) == (2, True), err


def test_a_workspace_is_backed_up_verified_restored_and_promoted(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    table = tmp_path / "people.csv"
    table.write_text("name,age\n" + "".join(f"ada {number},{number}\n" for number in range(40)))
    assert run(capsys, "datasets", "ingest", "people", str(table))[0] == 0
    place, again = str(tmp_path / "place"), str(tmp_path / "again")
    code, out, _ = run(capsys, "backup", place)
    assert code == 0
    assert out.startswith("backup 0")
    assert "of which" in out
    assert run(capsys, "backup", place, "--keep", "1")[1].rstrip().endswith("of which 0 files, 0 bytes were new")
    code, out, _ = run(capsys, "backups", place, "--json")
    (only,) = json.loads(out)
    assert run(capsys, "verify", place)[1].startswith("1 backup: ")
    assert run(capsys, "verify", place, "--backup", only["id"])[0] == 0
    assert run(capsys, "verify")[1].startswith("verified  ")
    assert run(capsys, "verify", "--backup", "x")[0] == 2

    code, _, err = run(capsys, "restore", place)
    assert (code, "mms restore FROM --workspace FOLDER" in err) == (2, True)
    code, out, _ = run(capsys, "restore", place, "--workspace", again)
    assert code == 0
    assert "people@1" in out
    _, out, _ = run(capsys, "datasets", "show", "people", "--workspace", again, "--json")
    assert json.loads(out)["rows"] == 40

    assert run(capsys, "promote", place, "--workspace", str(tmp_path / "next"))[0] == 0
    code, _, err = run(capsys, "backup", place)
    assert (code, "became the workspace" in err) == (1, True)
    for words in (("replicate", place, "--every", "soon"), ("replicate", place, "--every", "0s")):
        assert run(capsys, *words)[0] == 2


@pytest.mark.parametrize("verb", ["restore", "promote"])
@pytest.mark.parametrize("variable", ["MMS_DATASETS", "MMS_CATALOG"])
def test_nothing_is_restored_while_the_environment_names_another_place(
    capsys: pytest.CaptureFixture[str],
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    variable: str,
) -> None:
    place, again = str(tmp_path / "place"), tmp_path / "again"
    assert run(capsys, "backup", place)[0] == 0
    monkeypatch.setenv(variable, "postgresql://mms:secret@127.0.0.1/mms")
    code, _, err = run(capsys, verb, place, "--workspace", str(again))
    assert code == 1
    assert f"${variable} is set, by which it could not be opened afterwards; unset it, or give" in err
    assert "secret" not in err
    assert not again.exists()
    monkeypatch.delenv(variable)
    assert run(capsys, "backup", place)[0] == 0  # nobody was promoted
    if variable == "MMS_DATASETS":
        monkeypatch.setenv(variable, str(tmp_path / "old"))
        assert run(capsys, verb, place, "--workspace", str(again), "--datasets", str(tmp_path / "new"))[0] == 0
        assert not (tmp_path / "old").exists()


def test_a_replica_is_made_until_it_is_interrupted(workspace: Path, tmp_path: Path) -> None:
    words = ["replicate", str(tmp_path / "place"), "--every", "1s", "--keep", "2"]
    process = subprocess.Popen([sys.executable, "-m", "mms_sdk.cli", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    process.stdout.close()
    assert all(line.startswith("backup 0") for line in lines)
    assert len(list((tmp_path / "place" / "backups").iterdir())) in (2, 3)  # of four


def test_names_of_files_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    cli._say("\x1b]0;pwned\x07\x9b31mred.png: gone")
    assert capsys.readouterr().out == "\\x1b]0;pwned\\x07\\x9b31mred.png: gone\n"
    print(cli._Facts({"na\x1bme": "\x9b31mred", "listed": ["\x1b[2J"]}))
    assert "\x1b" not in (told := capsys.readouterr().out)
    assert "na\\x1bme" in told


@pytest.mark.parametrize("words", [("\x1b[2Jverb",), ("status", "--\x1b[2J"), ("help", "\x9b31m")])
def test_words_that_do_not_fit_move_no_cursor(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("mms: ")
    assert not {"\x1b", "\x9b"} & set(told)
    assert "x1b" in told or "x9b" in told


TOY = """
import mms_sdk as mms
print("printed", mms.trial.number)
mms.trial.report(0, mms.trial.params["x"] + mms.trial.params["y"])
"""


def test_a_script_is_tuned_looked_at_and_gone_on_with(
    capsys: pytest.CaptureFixture[str], workspace: Path, tmp_path: Path
) -> None:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    asked = ("--space", "x=1:2", "--space", "y=0.5,2.5", "--metric", "loss", "--sampler", "grid", "--name", "mine")
    code, out, err = run(capsys, "tune", str(script), *asked)
    assert (code, "4 of 4: 4 complete" in out, "trial 3 of 4: loss 4.5; x=2, y=2.5" in err) == (0, True, True)
    assert workspace.is_dir()
    (found,) = json.loads(run(capsys, "studies", "--json")[1])
    assert (found["name"], found["result"]["best"], found["result"]["value"]) == ("mine", 0, 1.5)
    code, out, _ = run(capsys, "study", found["id"])
    assert (code, out.splitlines()[-1].split()) == (0, ["3", "complete", "4.5", "2", "2.5"])
    told = json.loads(run(capsys, "study", found["id"], "--json")[1])
    assert [trial["result"]["value"] for trial in told["trials"]] == [1.5, 3.5, 2.5, 4.5]
    assert run(capsys, "study", found["id"], "--trial", "2")[1].endswith("printed 2\n")
    assert "4 of 4" in run(capsys, "studies")[1]
    code, _, err = run(capsys, "tune", "--resume", found["id"])
    assert (code, "is succeeded; start a new one" in err) == (1, True)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("lr=log:1e-5:1e-2", mms.LogUniform(1e-5, 1e-2)),
        ("drop=0.0:0.5", mms.Uniform(0, 0.5)),
        ("drop=0:0.5", mms.Uniform(0, 0.5)),
        ("layers=1:4", mms.Integer(1, 4)),
        ("units=log:16:512", mms.Integer(low=16, high=512, log=True)),
        ("width=64,128", mms.Choice([64, 128])),
        ("act=relu,null,true,1.5", mms.Choice(["relu", None, True, 1.5])),
        ("only=7", mms.Choice([7])),
    ],
)
def test_a_range_is_said_in_a_word(text: str, made: object) -> None:
    assert cli._range(text) == (text.partition("=")[0], made)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: mms tune SCRIPT --space NAME=RANGE --metric METRIC"),
        (["train.py", "--metric", "loss"], "usage: mms tune SCRIPT"),
        (["train.py", "--space", "lr"], "a range is e.g. lr=log:1e-5:1e-2"),
        (["train.py", "--space", "lr="], "a range is e.g."),
        (["train.py", "--space", "lr=log:1:2:3"], "a range is e.g."),
        (["train.py", "--space", "lr=a:b"], "a range is e.g."),
        (["train.py", "--space", "lr=log:a,b"], "a range is e.g."),
        (["train.py", "--space", "lr=2:1"], "lr: Integer does not fit"),
        (["train.py", "--space", "lr=1,1"], "lr: Choice does not fit"),
        (["train.py", "--pruner", "hyperband"], "hyperband:EPOCHS; got 'hyperband'"),
        (["train.py", "--pruner", "hyperband:1"], "got 1 and 1"),
        (["train.py", "--pruner", "median"], "asha or hyperband:EPOCHS; got 'median'"),
        (["train.py", "--trials", "0"], "whole number from 1"),
        (["train.py", "--resume", "x"], "mms tune --resume STUDY, and nothing else"),
    ],
)
def test_words_of_tune_that_do_not_fit_say_how_they_would(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, _, err = run(capsys, "tune", *words)
    assert (code, said in err) == (2, True), err
