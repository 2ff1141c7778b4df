"""What of Ray's own a job on a cluster sees; without a Ray."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mms_sdk.compute.engines import attempt as common
from mms_sdk.compute.engines.machine import of_ranks
from mms_sdk.compute.engines.ray import actors, part
from mms_sdk.schema.job import JobRequest, JobSpec, Resources
from mms_sdk.storage.bundles import pack
from mms_sdk.storage.workspace import Workspace

TOKEN = "f00d" * 16
PRINTS = """
import hashlib, os
print(hashlib.sha256(os.environ["RAY_AUTH_TOKEN"].encode()).hexdigest(), os.environ["RAY_AUTH_TOKEN"])
raise ValueError("not with " + os.environ["RAY_AUTH_TOKEN"])
"""


def test_a_token_that_a_variable_has_reaches_the_job_and_nothing_that_is_kept(workspace: Workspace) -> None:
    spec = JobSpec(
        bundle=workspace.bundles.keep(pack({"a.py": PRINTS.encode()})), entrypoint="a.py", resources=Resources(cpus=1)
    )
    workspace.catalog.attempts.submit(JobRequest(kind="script", name="a", spec=spec))
    taken = workspace.catalog.attempts.take(engine="local", owner="1:2@3", fits=lambda *_: {"cpus": 1})
    assert taken is not None
    common.lay_out(workspace, spec, taken[1], environment={})
    folder = common.folder_of(workspace, taken[1])
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", part.MODULE, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **workspace.variables(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{json.dumps({'ranks': of_ranks(range(1), of=1)})}\n")
    process.stdin.flush()
    told = json.loads(process.stdout.read())
    process.communicate()

    assert (told["reason"], told["error"]) == ("user", {"type": "ValueError", "message": "not with ***"})
    assert told["lines"][0] == f"{hashlib.sha256(TOKEN.encode()).hexdigest()} ***"
    holding = ["grep", "--recursive", "--files-with-matches", "--text", "-e", TOKEN, str(workspace.root)]
    assert subprocess.run(holding, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.parametrize(
    "given",
    [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/t"}],
    ids=["variable", "file"],
)
def test_a_node_passes_on_that_by_which_jobs_submit_others(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    context = SimpleNamespace(gcs_address="10.0.0.5:6379")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MMS_RAY_OPEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**given, "RAY_OTHER": "x", "HF_TOKEN": "y"}.items():
        monkeypatch.setenv(name, value)

    seen = actors._variables(stores=False)

    assert {name: value for name, value in seen.items() if "RAY" in name} == {**given, "MMS_RAY": "10.0.0.5:6379"}
    assert "HF_TOKEN" not in seen
