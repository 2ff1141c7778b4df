"""A job asks the server of its workspace by itself, for as long as it runs, and nobody sees its token."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from over_http import serving

import mms_sdk as mms
from mms_sdk.errors import Forbidden, InvalidRequest, JobFailed, Unauthenticated
from mms_sdk.service.app import create_app
from mms_sdk.service.known_tokens import KEPT_S
from mms_sdk.settings import server_url
from mms_sdk.storage.job_tokens import close_to_jobs, open_to_jobs
from mms_sdk.storage.workspace import Workspace

SMALL = mms.Resources(cpus=1, gpus=0)
TIMEOUT_S = 40
ASKS = """
import os, sys
from pathlib import Path
import mms_sdk as mms
from mms_sdk.errors import Forbidden

ws = mms.connect(os.environ["MMS_URL"])
Path(sys.argv[1]).write_text(os.environ["MMS_TOKEN"])
print(ws.jobs.get(os.environ["MMS_JOB"]).state, os.environ["MMS_URL"], os.environ["MMS_TOKEN"])
try:
    ws.quotas.set("default", cpus=1)
except Forbidden:
    print("no admin")
inner = ws.jobs.submit("import os\\nprint(os.environ['MMS_TOKEN'])\\n", resources=mms.Resources(cpus=1, gpus=0))
print(inner.id)
raise ValueError("not with " + os.environ["MMS_TOKEN"])
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Workspace, str]]:
    workspace = Workspace(tmp_path / "ws")
    with serving(create_app(workspace)) as url:
        open_to_jobs(workspace.root, url)
        yield workspace, url
        close_to_jobs(workspace.root)
    workspace.close()


def test_a_job_asks_as_an_editor_until_it_ends_and_its_token_is_nowhere(
    served: tuple[Workspace, str], tmp_path: Path
) -> None:
    workspace, url = served
    seen = tmp_path / "token"
    with mms.connect(url, token=workspace.catalog.tokens.issue("ann", "editor")) as ws:
        job = ws.jobs.submit(ASKS, args=[str(seen)], resources=SMALL)
        with pytest.raises(JobFailed, match=r"ValueError: not with \*\*\*;"):
            job.wait(timeout_s=TIMEOUT_S, progress=False)
        told, refused, inner = job.logs().splitlines()[:3]
        assert told == f"running {url} ***"
        assert refused == "no admin"
        assert ws.jobs.get(inner).wait(timeout_s=TIMEOUT_S, progress=False).logs() == "***\n"  # one of its own
    token = seen.read_text()
    assert token.startswith(f"mms_job_{job.id}.1.")
    signature = token.rpartition(".")[2]
    found = ["grep", "--recursive", "--files-with-matches", "--text", "-e", signature, str(workspace.root)]
    assert subprocess.run(found, capture_output=True, text=True, check=False).stdout == ""
    time.sleep(KEPT_S)
    with mms.connect(url, token=token) as ended, pytest.raises(Unauthenticated):
        ended.jobs.list()


def test_one_that_runs_is_refused_what_takes_an_admin(served: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, url = served
    text = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "part = Path(sys.argv[1] + '.part')\npart.write_text(os.environ['MMS_TOKEN'])\npart.rename(sys.argv[1])\n"
        "time.sleep(60)\n"
    )
    seen = tmp_path / "token"
    with mms.connect(workspace=workspace.root) as ws:  # submitted without a server, as somebody who may do everything
        job = ws.jobs.submit(text, args=[str(seen)], resources=SMALL)
        deadline = time.monotonic() + TIMEOUT_S
        while not seen.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with mms.connect(url, token=seen.read_text()) as asking:
            assert asking.jobs.get(job.id).state in ("starting", "running")
            with pytest.raises(Forbidden, match=f"the token 'job {job.id}' has 'editor'"):
                asking.quotas.set("default", cpus=1)
        job.cancel()
        with pytest.raises(JobFailed):
            job.wait(timeout_s=TIMEOUT_S, progress=False)
        time.sleep(KEPT_S)
        headers = {"authorization": f"Bearer {seen.read_text()}"}
        assert httpx2.get(f"{url}/v1/jobs", headers=headers).status_code == 401


def test_where_none_serves_a_job_has_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MMS_TOKEN", "somebody's own")
    text = "import os\nprint(os.environ.get('MMS_URL'), os.environ.get('MMS_TOKEN'))\n"
    with mms.connect(workspace=tmp_path / "ws") as ws:
        job = ws.jobs.submit(text, resources=SMALL).wait(timeout_s=TIMEOUT_S, progress=False)
        assert job.logs() == "None None\n"


@pytest.mark.parametrize("told", ["localhost:1", "ftp://x", "javascript:"])
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("MMS_URL", told)
    with pytest.raises(InvalidRequest, match=r"\$MMS_URL begins with http"):
        server_url()
