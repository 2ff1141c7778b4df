"""What a job ran in is kept with it, and told in both ways."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest, NotFound

SMALL = mms.Resources(cpus=1, gpus=0)
TIMEOUT_S = 20


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A script in a repository, changed since its commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    script = tmp_path / "repository" / "say.py"
    script.parent.mkdir()
    script.write_text("print('said')\n")
    who = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "--message=a"]):
        subprocess.run([*who, *words], cwd=script.parent, check=True)
    script.write_text("print('changed')\n")
    return script


def test_the_interpreter_the_packages_and_the_revision_are_told(ws: mms.WorkspaceClient, code: Path) -> None:
    job = ws.jobs.submit(code, resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)

    found = job.environment()

    assert found.attempt == 1
    assert found.python == f"{platform.python_implementation().lower()} {platform.python_version()}"
    assert found.platform == f"{platform.system()} {platform.release()} {platform.machine()}"
    assert found.packages["jax"] == importlib.metadata.version("jax")
    assert found.packages["mms-sdk"] == mms.__version__
    assert found.given["cpus"] == 1
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=code.parent, capture_output=True, text=True, check=True)
    assert found.revision is not None
    assert (found.revision.commit, found.revision.branch, found.revision.dirty) == (head.stdout.strip(), "main", True)
    assert "-print('said')\n+print('changed')\n" in found.diff
    assert job.facts()["code"] == f"{head.stdout[:10]} on main, changed since"
    again = job.retry().wait(timeout_s=TIMEOUT_S, progress=False).environment()
    assert (again.revision, again.diff) == (found.revision, found.diff)
    assert found.diff not in str(job.record)


def test_texts_have_the_same_hash_in_each_attempt_and_it_is_told_which(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    text = (
        "import os, signal, sys\nfrom pathlib import Path\nprint(hash('a'), flush=True)\n"
        "mark = Path(sys.argv[1])\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = ws.jobs.submit(text, args=[str(tmp_path / "mark")], resources=SMALL, retry=mms.Retry(1, wait_s=0))
    job.wait(timeout_s=TIMEOUT_S, progress=False)
    assert job.logs(attempt=1) == job.logs(attempt=2)
    seed = job.environment().hash_seed
    assert seed == job.environment(attempt=1).hash_seed
    command = [job.environment().executable, "-c", "print(hash('a'))"]
    env = {**os.environ, "PYTHONHASHSEED": str(seed)}
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == job.logs()

    own = ws.jobs.submit("print(1)\n", environment={"PYTHONHASHSEED": "7"}, resources=SMALL)
    assert own.wait(timeout_s=TIMEOUT_S, progress=False).environment().hash_seed == "7"


def test_the_seeds_of_trainings_within_it_are_told(ws: mms.WorkspaceClient, embedded: mms.WorkspaceClient) -> None:
    job = ws.jobs.submit("print(1)\n", resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)
    assert job.environment().seeds == {}
    assert embedded._workspace is not None
    recorded = embedded._workspace.catalog.jobs
    part = recorded.start("train", "pets", {"trainer": {"seed": 3}}, parent=job.id)
    recorded.finish(part.id, "succeeded")
    assert job.environment().seeds == {part.id: 3}


def test_the_same_key_stands_for_the_same_job_whatever_was_committed_meanwhile(
    ws: mms.WorkspaceClient, code: Path
) -> None:
    key = f"revision-{ws.embedded}"
    first = ws.jobs.submit(code, key=key, resources=SMALL)
    subprocess.run(["git", "checkout", "--quiet", "-b", "other"], cwd=code.parent, check=True)
    (code.parent / "more.py").touch()

    assert ws.jobs.submit(code, key=key, resources=SMALL).id == first.id
    first.wait(timeout_s=TIMEOUT_S, progress=False)
    revision = first.environment().revision
    assert revision is not None
    assert (revision.branch, revision.untracked) == ("main", ())


def test_what_no_engine_ran_has_no_environment(ws: mms.WorkspaceClient) -> None:
    job = ws.datasets.verify("pets", progress=False)
    with pytest.raises(NotFound, match=f"job {job.id}, a verify, has none"):
        job.environment()


def test_an_attempt_that_was_not_made_is_told(ws: mms.WorkspaceClient) -> None:
    job = ws.jobs.submit("print(1)\n", resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)
    with pytest.raises(NotFound, match=r"has no attempt 2; there are \[1\]"):
        job.environment(attempt=2)


def test_what_is_required_is_kept_with_the_job(ws: mms.WorkspaceClient) -> None:
    """One that waits behind another, and so makes no environment."""
    first = ws.jobs.submit("import time\ntime.sleep(20)\n")
    job = ws.jobs.submit("print(1)\n", requirements=["Ein_ops >= 0.8"])

    assert job.record.spec["requirements"] == ["ein-ops>=0.8"]
    assert job.environment().requirements == ("ein-ops>=0.8",)
    assert (job.environment().attempt, job.environment().packages) == (0, {})
    for each in (job, first):
        each.cancel()


@pytest.mark.parametrize(
    ("requirements", "said"),
    [
        ("einops", r"a list of texts; got the text 'einops'; put it into \[ \]"),
        (["-r requirements.txt"], "options are settings of pip"),
        (["./wheel.whl"], "name the folder of your own wheels in pip's configuration file"),
        (["a @ https://me:hidden@example.org/a.whl"], "put it into ~/.netrc"),
        (["jax<0.5"], "a job runs on what MMS runs on: jax is .* here"),
        (["a"] * 101, "at most 100 of them"),
        ([None], "it is a text, got None"),
    ],
)
def test_what_cannot_be_required_is_refused(ws: mms.WorkspaceClient, requirements: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        ws.jobs.submit("print(1)\n", requirements=requirements)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "revision", [{"commit": "main"}, {"branch": "x" * 251}, {"untracked": ["x"] * 21}, {"who": "me"}]
)
def test_a_revision_that_is_none_is_refused(ws: mms.WorkspaceClient, revision: dict[str, object]) -> None:
    spec = {"bundle": "0" * 64, "entrypoint": "a.py", "revision": revision}
    with pytest.raises(InvalidRequest, match=r"spec\.revision\."):
        ws._api.send("POST", "/v1/jobs", dict, {"kind": "script", "name": "a", "spec": spec})
