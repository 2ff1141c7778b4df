"""Packages of a job's own, from wheels that are made here."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from mms_sdk.compute.engines import environments, local
from mms_sdk.compute.engines.folder import WORKER, attempt_folder, read
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Ended
from mms_sdk.storage.owners import pid_of
from mms_sdk.testing.engines import Jobs, until

WITHIN_S = 120.0
INDEX, NO_INDEX, LINKS = (f"PIP_{name}" for name in ("INDEX_URL", "NO_INDEX", "FIND_LINKS"))
USES = """
import jax, mms_sdk, mms_example, sys
print(mms_example.VERSION, sys.prefix != sys.base_prefix, jax.__version__)
"""
BACKEND = """
import time, pathlib
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    time.sleep(100)
def build_wheel(folder, config_settings=None, metadata_directory=None):
    import shutil
    return shutil.copy({wheel!r}, folder).rpartition("/")[2]
"""


def wheel(folder: Path, name: str, version: str, *, requires: str = "") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    told = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{f'Requires-Dist: {requires}' if requires else ''}\n"
    )
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\ndef main():\n    print('said by', VERSION)\n")
        archive.writestr(f"{info}/METADATA", told)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{name}-says = {name}:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def slow_source(folder: Path, name: str, mark: Path, built: Path) -> None:
    """A package whose first build does not end."""
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n',
        "slow.py": BACKEND.format(mark=str(mark), wheel=str(built)),
    }
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(f"{name}-1.0/{path}")
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        wheel(folder, "mms_example", version)
    wheel(folder, "mms_odd", "1.0", requires="jax<0.4")
    monkeypatch.setenv(LINKS, str(folder))
    monkeypatch.setenv(NO_INDEX, "1")
    return folder


def submit(jobs: Jobs, text: str, *requirements: str, **asked: object) -> str:
    return jobs.submit(text, requirements=requirements, **{"cpus": 1, **asked})


def made(jobs: Jobs) -> list[Path]:
    folder = jobs.workspace.root / "environments"
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def ended(jobs: Jobs, job: str) -> Ended:
    jobs.ended(job, within_s=WITHIN_S)
    found = jobs.attempts(job)[-1].ended
    assert found is not None
    return found


@pytest.mark.slow
def test_a_job_finds_what_it_requires_beside_what_there_is_and_the_next_one_at_once(jobs: Jobs, wheels: Path) -> None:
    import jax

    first = submit(jobs, USES, "mms-example<2")
    assert ended(jobs, first).reason == "succeeded", jobs.log(first)
    lines = jobs.log(first).decode().splitlines()
    assert lines[-1] == f"1.0 True {jax.__version__}"
    assert any("Successfully installed mms" in line for line in lines)
    text = (
        f"{USES}import subprocess, os\nprint(sys.executable == os.environ['VIRTUAL_ENV'] + '/bin/python', flush=True)\n"
    )
    again = submit(jobs, f"{text}subprocess.run(['mms_example-says'])\n", "mms_example<2")
    assert ended(jobs, again).reason == "succeeded"
    assert jobs.log(again).decode() == f"1.0 True {jax.__version__}\nTrue\nsaid by 1.0\n"
    told = read(attempt_folder(jobs.workspace.job_folder(again), 1) / "environment.json")
    assert told is not None
    assert (told["packages"]["mms-example"], told["packages"]["jax"]) == ("1.0", jax.__version__)
    assert len(made(jobs)) == 1

    newer = submit(jobs, USES, "mms-example")
    assert ended(jobs, newer).reason == "succeeded"
    assert jobs.log(newer).decode().splitlines()[-1].startswith("2.0 ")
    assert len(made(jobs)) == 2


@pytest.mark.slow
def test_of_several_at_once_one_makes_it(jobs: Jobs, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores_here", lambda: 4)
    ids = [submit(jobs, USES, "mms-example") for _ in range(4)]
    assert [ended(jobs, job).reason for job in ids] == ["succeeded"] * 4
    assert sum(b"Successfully installed" in jobs.log(job) for job in ids) == 1
    assert len(made(jobs)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("required", "said"),
    [
        ("mms-nowhere", "No matching distribution found for mms-nowhere"),
        ("mms-example==9.9", "from versions: 1.0, 2.0"),
        ("mms-odd", "mms-odd 1.0 depends on jax<0.4; The user requested (constraint) jax=="),
    ],
)
def test_what_cannot_be_installed_ends_it_with_what_pip_says_and_is_not_tried_again(
    jobs: Jobs, wheels: Path, required: str, said: str
) -> None:
    job = submit(jobs, "print('never')", required)
    end = ended(jobs, job)
    assert (end.reason, jobs.get(job).state, len(jobs.attempts(job))) == ("user", "failed", 1)
    assert end.detail.startswith("RequirementsFailed: ERROR: ")
    assert len(end.detail) < 2000
    assert said in end.detail
    assert "Traceback" not in jobs.log(job).decode()
    assert b"never" not in jobs.log(job)
    assert made(jobs) == []


@pytest.mark.slow
def test_without_a_network_it_is_tried_again(jobs: Jobs, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_INDEX)
    monkeypatch.setenv(INDEX, "http://127.0.0.1:9/packages")  # nobody listens at `discard`
    monkeypatch.setenv("PIP_RETRIES", "1")
    job = submit(jobs, "print('never')", "mms-nowhere", times=1)
    assert ended(jobs, job).reason == "infra"
    assert len(jobs.attempts(job)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("grace_s", [5.0, 0.0])
def test_one_that_is_cancelled_while_pip_runs_ends_soon_and_leaves_nothing(
    jobs: Jobs, wheels: Path, tmp_path: Path, grace_s: float
) -> None:
    slow_source(wheels, "mms_slow", tmp_path / "mark", wheel(tmp_path, "mms_slow", "1.0"))
    job = submit(jobs, "print('never')", "mms-slow", grace_s=grace_s)
    until((tmp_path / "mark").exists, "pip's build", within_s=WITHIN_S)
    began = time.monotonic()
    jobs.engine.cancel(job)
    assert jobs.ended(job).state == "cancelled"
    assert time.monotonic() - began < 10
    assert jobs.left(job) == []
    if grace_s:
        assert made(jobs) == []
    assert ended(jobs, submit(jobs, "import mms_slow", "mms-slow")).reason == "succeeded"


@pytest.mark.slow
def test_what_was_left_half_made_is_never_used(jobs: Jobs, wheels: Path, tmp_path: Path) -> None:
    slow_source(wheels, "mms_slow", tmp_path / "mark", wheel(tmp_path, "mms_slow", "1.0"))
    job = submit(jobs, "import mms_slow\nprint(mms_slow.VERSION)", "mms-slow", wait_s=0)
    until((tmp_path / "mark").exists, "pip's build", within_s=WITHIN_S)
    (half,) = made(jobs)
    worker = read(attempt_folder(jobs.workspace.job_folder(job), 1) / WORKER)
    assert worker is not None
    os.kill(pid_of(worker["owner"]), signal.SIGKILL)
    assert jobs.ended(job, within_s=WITHIN_S).state == "succeeded"
    assert [each.ended and each.ended.reason for each in jobs.attempts(job)] == ["infra", "succeeded"]
    assert jobs.log(job, 2).splitlines()[-1] == b"1.0"
    assert made(jobs) == [half]


@pytest.mark.slow
def test_a_job_that_is_submitted_within_one_has_the_packages_that_it_requires_itself(jobs: Jobs, wheels: Path) -> None:
    text = (
        "import mms_sdk as mms, mms_example\nwith mms.connect() as ws:\n"
        "    job = ws.jobs.submit('import sys\\nimport mms_example\\n')\n    print(job.id, job.record.spec['python'])\n"
    )
    job = submit(jobs, text, "mms-example")
    assert ended(jobs, job).reason == "succeeded"
    inner, python = jobs.log(job).decode().splitlines()[-1].split()
    assert python == sys.executable
    assert ended(jobs, inner).detail == "ModuleNotFoundError: No module named 'mms_example'"


@pytest.mark.slow
def test_what_the_interpreter_has_is_used_or_another_version_put_in_front_and_never_touched(
    jobs: Jobs, wheels: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    environments._lay_out(base)
    (packages,) = base.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheels / "mms_example-1.0-py3-none-any.whl") as archive:
        archive.extractall(packages)
    before = sorted(path.relative_to(base) for path in packages.rglob("*") if "__pycache__" not in path.parts)
    python = str(base / "bin" / "python")
    for required, version in (("mms-example", "1.0"), ("mms-example==2.0", "2.0"), (None, "1.0")):
        job = submit(jobs, "import mms_example\nprint(mms_example.VERSION)", *filter(None, [required]), python=python)
        assert ended(jobs, job).reason == "succeeded", jobs.log(job)
        assert jobs.log(job).decode().splitlines()[-1] == version
    assert before == sorted(path.relative_to(base) for path in packages.rglob("*") if "__pycache__" not in path.parts)


def test_another_version_of_what_mms_runs_on_is_refused() -> None:
    import jax

    environments.check([f"jax=={jax.__version__}", "mms-nowhere", "jax>=0.5", "jax==0.1; python_version < '3'"])
    for required in ("jax<0.5", "JAX==0.4.1", "numpy==1.0", "orbax.checkpoint==0.1", "jax @ https://example.org/a.whl"):
        with pytest.raises(InvalidRequest, match=r"a job runs on what MMS runs on: .* is .* here, and another one is"):
            environments.check([required])


def test_without_pip_nothing_can_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    environments.check([])
    with pytest.raises(InvalidRequest, match=r"has none; install it there: .* -m ensurepip"):
        environments.check(["einops"])


def test_environments_that_nobody_uses_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_KEPT", 3)
    for name, days in {
        "new": 0,
        "recent": 1,
        "third": 2,
        "old": 40,
        "in use": 41,
        "half-made": None,
        "mine": 50,
    }.items():
        (tmp_path / name).mkdir()
        if days is not None:
            (tmp_path / name / "made.json").write_text("{}")
            os.utime(tmp_path / name / "made.json", (time.time() - days * 86400,) * 2)
    with open(tmp_path / "in use.lock", "w") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        environments._remove_unused(tmp_path, but="mine")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"new", "recent", "in use", "mine"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["Looking", "ERROR: No matching distribution found for a"], "user"),
        (["WARNING: Retrying (1) after connection broken by 'NewConnectionError'", "ERROR: No matching"], "infra"),
        (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"], "infra"),
        ([], "user"),
    ],
)
def test_whose_doing_it_was_is_told_by_what_pip_says(said: list[str], reason: str) -> None:
    failed = environments._failed(said, 1)
    assert failed.reason == reason
    assert "Retrying" not in str(failed)
    assert str(failed) == (said[-1] if said else "pip ended with exit code 1")
    assert environments._failed(said, -9).reason == "infra"


def test_where_pip_looks_goes_along_without_passwords() -> None:
    given = {
        INDEX: "https://example.org/packages",
        f"PIP_EXTRA_{INDEX[4:]}": "https://a.example/packages https://me:secret@b.example/packages",
        LINKS: "/wheels",
        "PIP_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "PIP_PROXY": "http://me@proxy.example",
    }
    assert environment(given) == {INDEX: given[INDEX], LINKS: "/wheels"}


def test_the_interpreter_that_runs_jobs_is_the_one_that_packages_were_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environments.interpreter() == sys.executable
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "made.json").write_text(json.dumps({"python": "/usr/bin/python3"}))
    assert environments.interpreter() == "/usr/bin/python3"
