"""`mms.manifests` and `mms engine render`: from a script, a command or a model to what `kubectl apply` takes."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from over_http import serving

import mms_sdk as mms
from mms_sdk import cli
from mms_sdk.errors import InvalidRequest, NotFound, Unavailable
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace

IMAGE = "registry.example/team/mms:1.0"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "Fit_1.py"
    path.write_text("import sys\nprint(sys.argv)\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["engine", "render", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_script_comes_along_under_its_name(script: Path) -> None:
    made = mms.manifests.job(script, engine="jobset", image=IMAGE, args=["--lr", "1e-3"])
    assert repr(made) == "<manifests: ConfigMap fit-1-code, JobSet fit-1>"
    assert made[0]["data"] == {"Fit_1.py": script.read_text()}
    assert list(yaml.safe_load_all(str(made))) == list(made)
    assert len(made) == 2


def test_a_notebook_shows_their_text(script: Path) -> None:
    script.write_text("print('<script>alert(1)</script>')\n")
    shown = mms.manifests.job(script, engine="jobset", image=IMAGE)._repr_html_()
    assert "kind: JobSet" in shown and "<script>" not in shown


def test_a_folder_comes_along_without_what_it_ignores(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "net").mkdir(parents=True)
    (folder / "train.py").write_text("import net\n")
    (folder / "net/__init__.py").write_text("")
    (folder / "table.bin").write_bytes(b"\xff\0")
    (folder / "weights.ckpt").write_text("")
    (folder / ".mmsignore").write_text("*.ckpt\n")
    code, _ = mms.manifests.job(folder / "train.py", folder=folder, engine="jobset", image=IMAGE)
    assert code["data"] == {"train.py": "import net\n", "net.__init__.py": ""}
    assert code["binaryData"] == {"table.bin": "/wA="}


def test_a_cell_and_a_command_take_the_place_of_a_script() -> None:
    made = mms.manifests.job("import jax\nprint(jax.devices())\n", engine="jobset", image=IMAGE)
    assert repr(made) == "<manifests: ConfigMap cell-code, JobSet cell>"
    (made,) = mms.manifests.job(command=["nvidia-smi"], engine="jobset", image=IMAGE, name="look", gpus=1)
    assert made["kind"] == "JobSet"
    with pytest.raises(InvalidRequest, match="give name="):
        mms.manifests.job(command=["nvidia-smi"], engine="jobset", image=IMAGE)


def test_each_rendering_for_ray_is_a_job_of_its_own_unless_a_key_says_otherwise(script: Path) -> None:
    options = {"claim": "w", "ray_version": "2.55.1", "secrets": {"MMS_CATALOG": "mms/url"}}

    def submitted(**more: str) -> str:
        made = mms.manifests.job(script, engine="kuberay", image=IMAGE, **options, **more)
        return str(made[0]["data"]["submit.py"])

    assert submitted() != submitted()
    assert submitted(key="nightly") == submitted(key="nightly")


def test_what_does_not_fit_is_refused(script: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"args is a list of texts; got the text '--lr 1'"):
        mms.manifests.job(script, engine="jobset", image=IMAGE, args="--lr 1")
    with pytest.raises(InvalidRequest, match="did you mean memory"):
        mms.manifests.job(script, engine="jobset", image=IMAGE, memry="8GB")
    with pytest.raises(NotFound, match="there is no file"):
        mms.manifests.job(script.with_name("no.py"), engine="jobset", image=IMAGE)
    with pytest.raises(InvalidRequest, match="a model name"):
        mms.manifests.service("a b", engine="deployment", image=IMAGE, claim="w")


def test_a_service_is_called_as_its_model() -> None:
    (made,) = mms.manifests.service("my_model@3", engine="deployment", image=IMAGE, claim="w")
    assert (made["kind"], made["metadata"]["name"]) == ("Deployment", "my-model")
    (made,) = mms.manifests.service(engine="kuberay", image=IMAGE, claim="w", ray_version="2.55.1")
    assert (made["kind"], made["metadata"]["name"]) == ("RayCluster", "mms")


def test_they_are_saved_whole_into_a_folder_that_is_there(script: Path, tmp_path: Path) -> None:
    made = mms.manifests.job(script, engine="jobset", image=IMAGE)
    assert made.save(tmp_path / "job.yaml").read_text() == str(made)
    for wrong in (tmp_path, tmp_path / "no/job.yaml"):
        with pytest.raises(InvalidRequest, match="a folder that is there"):
            made.save(wrong)


def test_the_command_line_says_the_same(capsys: pytest.CaptureFixture[str], script: Path, tmp_path: Path) -> None:
    words = ["--for", "jobset", "--image", IMAGE, "--nodes", "2", "--cpus", "8", "--gpus", "4", "--memory", "64GiB"]
    words += ["--time", "2h", "--retries", "5", "--keep", "2h", "--grace", "60s", "--queue", "team"]
    words += ["--namespace", "vision", "--service-account", "reader", "--user", "1001", "--env", "A=b=c"]
    words += ["--claim", "workspace", "--secret", "MMS_CATALOG=mms/url", str(script), "--nodes", "of the script"]
    wanted = mms.manifests.job(
        script,
        engine="jobset",
        image=IMAGE,
        args=["--nodes", "of the script"],
        nodes=2,
        cpus=8,
        gpus=4,
        memory="64GiB",
        time="2h",
        retries=5,
        keep_s=7200,
        grace_s=60,
        queue="team",
        namespace="vision",
        service_account="reader",
        user=1001,
        environment={"A": "b=c"},
        claim="workspace",
        secrets={"MMS_CATALOG": "mms/url"},
    )
    assert run(capsys, "job", *words) == (0, str(wanted), "")
    code, out, _ = run(capsys, "job", "--json", *words)
    assert (code, json.loads(out)) == (0, list(wanted))
    to = tmp_path / "job.yaml"
    code, out, _ = run(capsys, "job", "--to", str(to), *words)
    assert (code, to.read_text()) == (0, str(wanted))
    assert str(to) in out


def test_the_command_line_renders_services_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--for", "kuberay", "--image", IMAGE, "--claim", "w", "--ray-version", "2.55.1", "--port", "9000"]
    words += ["--nodes", "1", "--max-nodes", "3", "--node-cpus", "16", "--node-gpus", "2", "--node-memory", "32GiB"]
    words += ["--secret", "MMS_CATALOG=mms/url", "flowers@champion"]
    wanted = mms.manifests.service(
        "flowers@champion",
        engine="kuberay",
        image=IMAGE,
        claim="w",
        ray_version="2.55.1",
        port=9000,
        nodes=1,
        max_nodes=3,
        node_cpus=16,
        node_gpus=2,
        node_memory="32GiB",
        secrets={"MMS_CATALOG": "mms/url"},
    )
    assert run(capsys, "service", *words) == (0, str(wanted), "")
    code, out, _ = run(
        capsys, "job", "--for", "jobset", "--image", IMAGE, "--name", "look", "--command", "sh", "-c", "echo $HOME; id"
    )
    (container,) = yaml.safe_load(out)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert (code, container["command"]) == (0, ["sh", "-c", "echo $HOME; id"])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "KIND"),
        (["deployment"], 2, "there is no kind 'deployment'"),
        (["job", "--image", "i", "x.py"], 2, "--for"),
        (["job", "--for", "jobset", "x.py"], 2, "--image"),
        (["job", "--for", "jobset", "--image", "i"], 2, "SCRIPT"),
        (["job", "--for", "jobset", "--image", "i", "no.py"], 1, "there is no file"),
        (["job", "--for", "nomad", "--image", "i", "--name", "n", "--command", "true"], 1, "kuberay or jobset"),
        (["job", "--for", "jobset", "--image", "i", "--nodes", "-2", "x.py"], 2, "--nodes"),
        (["job", "--for", "jobset", "--image", "i", "--name", "n", "--env", "A", "--command", "true"], 2, "NAME=VALUE"),
        (["service", "--for", "jobset", "--image", "i", "--claim", "w"], 1, "a server has none"),
        (["service", "--for", "deployment", "--image", "i"], 1, "claim: it is missing"),
        (["service", "--for", "deployment", "--image", "i", "--claim", "w", "--replica", "2"], 2, "--replica"),
    ],
)
def test_words_that_do_not_fit_are_told_without_a_trace(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert told in err and "Traceback" not in err


def test_the_way_to_the_options_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine"]) == 2
    assert "mms engine render" in capsys.readouterr().err


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Any]:
    """Starts the proxy of a server: its settings, with free ports and a folder of its own."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    started: list[subprocess.Popen[bytes]] = []
    tls = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    tls += ["-addext", "subjectAltName=DNS:localhost"]
    tls += ["-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")]

    def start(server: int) -> int:
        subprocess.run(tls, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        text = mms.manifests.service(engine="deployment", image=IMAGE, claim="w", tls="tls", port=server)[0]["data"][
            "nginx.conf"
        ]
        text = text.replace("/tmp/", f"{tmp_path}/").replace("/tls/", f"{tmp_path}/")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{port}")
        (tmp_path / "nginx.conf").write_text(text)
        started.append(subprocess.Popen([program, "-e", "/dev/stderr", "-c", str(tmp_path / "nginx.conf")]))
        return port

    yield start
    for each in started:
        each.terminate()
        each.wait(timeout=30)


def test_the_proxy_leads_to_a_server_that_knows_itself_as_localhost_only(
    nginx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    token = workspace.catalog.tokens.issue("tests", "admin")
    with serving(create_app(workspace, ServerSettings())) as url:
        port = nginx(int(url.rpartition(":")[2]))
        trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))

        def asked(path: str, **headers: str) -> int:
            wanted = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
            try:
                with urllib.request.urlopen(wanted, context=trusted, timeout=30) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as refused:
                return refused.code

        for _ in range(100):
            try:
                assert asked("/readyz") == 200
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        assert asked("/v1/jobs") == 401
        assert asked("/v1/jobs", Authorization=f"Bearer {token}") == 200
        assert asked("/v1/jobs", Authorization=f"Bearer {token}", Origin="https://evil.example") == 403
        with (
            pytest.raises(Unavailable, match="certificate"),
            mms.connect(f"https://localhost:{port}", token=token) as ws,
        ):
            ws.jobs.list()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        with mms.connect(f"https://localhost:{port}", token=token) as ws:
            assert list(ws.jobs) == []
    workspace.close()
