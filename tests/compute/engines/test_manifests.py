"""Manifests: what KubeRay, JobSet and Kubernetes take, what is held back, and what cannot run."""

from __future__ import annotations

import base64
import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kube_fields
import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from mms_sdk.compute.engines import manifests
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cluster import ClusterJob, ClusterService

KUBERNETES = "1.34"
CATALOG = {"MMS_CATALOG": "mms-catalog/url"}
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
VARIABLES = st.text("ABCxyz_", min_size=1, max_size=6)


def a_job(**options: Any) -> ClusterJob:
    told: dict[str, Any] = {
        "name": "train",
        "engine": "jobset",
        "image": "registry.example/team/mms:1.0",
        "files": {"train.py": "print('here')\n"},
        "entrypoint": "train.py",
    }
    if options.get("engine") == "kuberay":
        told |= {"claim": "workspace", "secrets": CATALOG, "ray_version": "2.55.1", "key": "once"}
    if "command" in options:
        told |= {"files": {}, "entrypoint": None}
    return ClusterJob(**told | options)


def a_service(**options: Any) -> ClusterService:
    told: dict[str, Any] = {
        "name": "flowers",
        "engine": "deployment",
        "image": "registry.example/team/mms:1.0",
        "claim": "workspace",
        "models": ["flowers@champion"],
    }
    if options.get("engine") == "kuberay":
        told |= {"ray_version": "2.55.1", "secrets": CATALOG}
    return ClusterService(**told | options)


ALL: dict[str, list[manifests.Manifest]] = {
    "a job of one pod": manifests.of_job(a_job(time="90s", claim="workspace")),
    "a job of several": manifests.of_job(
        a_job(nodes=4, gpus=8, queue="team", namespace="vision", claim="workspace", secrets=CATALOG, time=0.5)
    ),
    "a job on TPUs": manifests.of_job(a_job(tpu="v5e:4x4", service_account="reader")),
    "a command": manifests.of_job(a_job(command=["python", "-m", "project"], environment={"A": "on"})),
    "a Ray job": manifests.of_job(a_job(engine="kuberay", nodes=2, gpus=1, queue="team", time="2h")),
    "a Ray command": manifests.of_job(a_job(engine="kuberay", command=["python", "-m", "project"], claim=None)),
    "a server": manifests.of_service(a_service(queue="team", gpus=1)),
    "a server with a way in": manifests.of_service(a_service(tls="flowers-tls", namespace="vision")),
    "a server with Ray and a way in": manifests.of_service(a_service(engine="kuberay", tls="flowers-tls")),
    "a server with Ray": manifests.of_service(a_service(engine="kuberay", nodes=2, node_gpus=1, queue="team")),
    "a server with Ray that grows": manifests.of_service(a_service(engine="kuberay", max_nodes=4)),
}
EACH = pytest.mark.parametrize("made", ALL.values(), ids=ALL)


def pod_specs(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        if "containers" in found:
            yield found
        for value in found.values():
            yield from pod_specs(value)
    elif isinstance(found, list):
        for value in found:
            yield from pod_specs(value)


def only_pod(made: list[manifests.Manifest]) -> dict[str, Any]:
    (spec,) = pod_specs(made)
    return spec


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


# What they are


@EACH
def test_every_pod_is_one_that_kubernetes_takes(made: list[manifests.Manifest]) -> None:
    for spec in pod_specs(made):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@EACH
def test_every_other_manifest_is_what_its_kind_takes(made: list[manifests.Manifest]) -> None:
    for each in made:
        if each["kind"] in kube_fields.KINDS:
            assert kube_fields.misfits(each, kube_fields.KINDS[each["kind"]]) == []
            for path in kube_fields.NEEDED[each["kind"]]:
                value = each["spec"]
                for name in path.split("."):
                    value = value[name]
        elif each["kind"] == "JobSet":
            assert JobsetV1alpha2JobSet.from_dict(each).to_dict() == each
            (replicated,) = each["spec"]["replicatedJobs"]
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, **replicated["template"]}
            kubernetes_validate.validate(job, KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


def renamed(found: dict[str, Any], path: tuple[str, ...], name: str) -> dict[str, Any]:
    made = copy.deepcopy(found)
    holder = made
    for step in path[:-1]:
        holder = holder[step]
    holder[name] = holder.pop(path[-1])
    return made


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("spec", "entrypoint"), "entryPoint"),
        (("spec", "ttlSecondsAfterFinished"), "ttlSecondAfterFinished"),
        (("spec", "rayClusterSpec", "authOptions"), "authOption"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "rayStartParam"),
    ],
)
def test_a_slip_in_a_name_of_kuberay_is_found(path: tuple[str, ...], name: str) -> None:
    (_, job) = ALL["a Ray job"]
    assert kube_fields.misfits(job, kube_fields.KINDS["RayJob"]) == []
    assert len(kube_fields.misfits(renamed(job, path, name), kube_fields.KINDS["RayJob"])) == 1


def test_a_slip_in_a_name_of_jobset_or_of_kubernetes_is_found() -> None:
    (_, job) = ALL["a job of several"]
    slip = renamed(job, ("spec", "failurePolicy"), "falurePolicy")
    assert JobsetV1alpha2JobSet.from_dict(slip).to_dict() != slip
    pod = renamed(only_pod(ALL["a job on TPUs"]), ("restartPolicy",), "restartPolice")
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolice"):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": pod}, KUBERNETES, strict=True)


@EACH
def test_nothing_runs_as_root_or_becomes_it_and_no_token_is_mounted_unasked(made: list[manifests.Manifest]) -> None:
    for spec in pod_specs(made):
        user = spec["securityContext"]
        assert user["runAsNonRoot"] is True and user["runAsUser"] == user["fsGroup"] == 1000
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        grows = made[-1]["spec"].get("enableInTreeAutoscaling", False)  # Ray's autoscaler asks the cluster for pods
        assert grows or "serviceAccountName" in spec or spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert {**limits, "cpu": requests["cpu"]} == requests
            assert "cpu" not in limits


@EACH
def test_all_that_is_made_says_whose_it_is(made: list[manifests.Manifest]) -> None:
    for each in made:
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == labels["app.kubernetes.io/name"] == "mms"
        assert labels["app.kubernetes.io/instance"] == re.sub("-(code|proxy)$", "", each["metadata"]["name"])


# A JobSet


def test_the_pods_of_a_jobset_are_told_of_one_another() -> None:
    _, made = ALL["a job of several"]
    (replicated,) = made["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (1, 4, 4)
    assert (spec["completionMode"], spec["backoffLimit"], spec["activeDeadlineSeconds"]) == ("Indexed", 0, 1)
    told = variables(spec["template"]["spec"]["containers"][0])
    host = f"{made['metadata']['name']}-{replicated['name']}-0-0.{made['spec']['network']['subdomain']}"
    assert told["MMS_COORDINATOR"] == f"{host}:8476"
    assert told["MMS_RANKS"] == "4"
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert told["MMS_RANK"] == {"fieldRef": {"fieldPath": path}}
    assert made["spec"]["network"] == {
        "enableDNSHostnames": True,
        "subdomain": "train-pods",
        "publishNotReadyAddresses": True,
    }


def test_the_one_pod_of_a_job_joins_nobody() -> None:
    (container,) = only_pod(ALL["a job of one pod"])["containers"]
    assert container["command"] == ["python", "/mms/code/train.py"]
    assert not any(name.startswith("MMS_RANK") for name in variables(container))


def test_what_waits_in_a_queue_begins_when_kueue_says() -> None:
    for name in ("a job of several", "a Ray job", "a server with Ray"):
        made = ALL[name][-1]
        assert made["spec"]["suspend"] is True
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert ALL["a server"][-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in ALL["a job of one pod"][-1]["spec"]


def test_neither_an_error_of_the_code_nor_a_limit_is_tried_again() -> None:
    spec = ALL["a job of one pod"][-1]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy", "DeadlineExceeded"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    disrupted, failed = job["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert failed["action"] == "FailJob"
    assert {137, 143} <= set(failed["onExitCodes"]["values"]) and 1 not in failed["onExitCodes"]["values"]
    assert failed["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    several = ALL["a job of several"][-1]["spec"]
    assert several["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["DeadlineExceeded"]
    assert "rules" not in manifests.of_job(a_job(nodes=2, retries=0))[-1]["spec"]["failurePolicy"]


@pytest.mark.parametrize(
    ("asked", "accelerator", "topology", "nodes", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5e:2x4", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5e:4x4", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v6e:16x16", "tpu-v6e-slice", "16x16", 64, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v4:4x4x4", "tpu-v4-podslice", "4x4x4", 16, 4),
    ],
)
def test_a_slice_of_tpus_says_where_and_how_many(
    asked: str, accelerator: str, topology: str, nodes: int, chips: int
) -> None:
    made = manifests.of_job(a_job(tpu=asked))
    spec = only_pod(made)
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert spec["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert made[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == nodes


def test_the_longest_names_are_names_of_pods_and_hosts() -> None:
    made = manifests.of_job(a_job(name="a" * 40, nodes=4096, claim="w", secrets=CATALOG))[-1]
    assert len(f"{made['metadata']['name']}-workers-0-4095-abcde") <= 63
    assert len(made["metadata"]["name"]) <= 47  # of a RayJob, with what KubeRay puts behind it


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("8GB", "8G"),
        ("16GiB", "16Gi"),
        ("1.5GB", "1500M"),
        ("512MiB", "512Mi"),
        (2**20 + 1, "1048577"),
        ("1TiB", "1Ti"),
    ],
)
def test_memory_is_written_as_it_was_asked_for(asked: int | str, written: str) -> None:
    held = only_pod(manifests.of_job(a_job(memory=asked)))["containers"][0]["resources"]
    assert held["limits"]["memory"] == held["requests"]["memory"] == written


# A Ray cluster


def test_a_ray_cluster_takes_a_token_and_its_head_no_work() -> None:
    for name in ("a Ray job", "a server with Ray"):
        spec = ALL[name][-1]["spec"]
        spec = spec.get("rayClusterSpec", spec)
        assert (spec["rayVersion"], spec["authOptions"]) == ("2.55.1", {"mode": "token"})
        assert spec["enableInTreeAutoscaling"] is False
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        (group,) = spec["workerGroupSpecs"]
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    grows = ALL["a server with Ray that grows"][-1]["spec"]
    assert grows["enableInTreeAutoscaling"] is True
    assert (grows["workerGroupSpecs"][0]["minReplicas"], grows["workerGroupSpecs"][0]["maxReplicas"]) == (0, 4)


def test_a_ray_job_ends_with_its_cluster() -> None:
    spec = ALL["a Ray job"][-1]["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (3, True)
    assert spec["ttlSecondsAfterFinished"] == 0
    assert spec["activeDeadlineSeconds"] >= 4 * 7200  # its attempts follow one another in one cluster
    assert (
        manifests.of_job(a_job(engine="kuberay", command=["true"], time="2h"))[-1]["spec"]["activeDeadlineSeconds"]
        == 7200
    )


@given(args=st.lists(TEXTS, max_size=4), environment=st.dictionaries(VARIABLES, TEXTS, max_size=2))
@settings(max_examples=50)
def test_whatever_the_arguments_what_is_submitted_to_ray_has_them(args: list[str], environment: dict[str, str]) -> None:
    # RayJob's entrypoint is put into a shell of the submitter, and into one of the head.
    secrets = CATALOG | {"HF_TOKEN": "team/hf", "AWS_ACCESS_KEY_ID": "store/id"}
    asked = a_job(engine="kuberay", args=args, environment=environment, secrets=secrets, nodes=2, processes=3, cpus=6)
    code, made = manifests.of_job(asked)
    assert shlex.split(made["spec"]["entrypoint"]) == made["spec"]["entrypoint"].split()
    submitted: dict[str, Any] = {}

    def submit(script: str, **options: Any) -> SimpleNamespace:
        submitted.update(options, script=script)
        return SimpleNamespace(watch=lambda: None)

    kept: dict[str, str] = {}
    workspace = SimpleNamespace(jobs=SimpleNamespace(submit=submit), secrets=SimpleNamespace(set=kept.__setitem__))
    fake = SimpleNamespace(connect=lambda: workspace, Resources=dict, Retry=lambda times: times)
    system = SimpleNamespace(environ={"HF_TOKEN": "of the pod"})
    text = code["data"]["submit.py"].replace("import mms_sdk as mms", "").replace("import os\n", "")
    exec(compile(text, "submit.py", "exec"), {"mms": fake, "os": system})
    assert kept == {"HF_TOKEN": "of the pod"}
    assert submitted.pop("secrets") == ["HF_TOKEN"]
    assert submitted.pop("args", []) == args
    assert submitted.pop("environment", {}) == environment
    assert submitted.pop("resources") == {"nodes": 2, "processes": 3, "cpus": 6, "gpus": 0, "memory": 16 * 2**30}
    told = {"folder": "/mms/code", "name": "train", "key": "once", "on": "ray", "retry": 3}
    assert submitted == told | {"script": "/mms/code/train.py"}


@pytest.mark.parametrize("word", ["a;b", "$(id)", "`id`", "two words", "", "a\nb", "~", "*", "'"])
def test_a_command_that_two_shells_would_change_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="two shells"):
        manifests.of_job(a_job(engine="kuberay", command=["echo", word]))


def test_a_server_beside_ray_is_the_process_of_its_head() -> None:
    head = ALL["a server with Ray"][-1]["spec"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    *shell, line = head["spec"]["containers"][0]["command"]
    assert shell == ["/bin/bash", "-c", "--"]
    assert line.endswith(" $KUBERAY_GEN_RAY_START_CMD & exec mms serve --port 8765 flowers@champion")


# A server


def test_a_server_is_one_pod_that_is_asked_from_within() -> None:
    (made,) = ALL["a server"]
    assert (made["spec"]["replicas"], made["spec"]["strategy"]) == (1, {"type": "Recreate"})
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = only_pod([made])["containers"]
    assert container["command"] == ["mms", "serve", "--port", "8765", "flowers@champion"]
    assert "/readyz" in container["readinessProbe"]["exec"]["command"][-1]
    assert variables(container)["MMS_WORKSPACE"] == "/workspace/mms"
    assert container["volumeMounts"] == [{"name": "workspace", "mountPath": "/workspace"}]


@pytest.mark.parametrize("name", ["a server with a way in", "a server with Ray and a way in"])
def test_a_way_in_leads_to_the_proxy_beside_the_server(name: str) -> None:
    settings_, way, made = ALL[name]
    template = made["spec"].get("template") or made["spec"]["headGroupSpec"]["template"]
    assert way["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    server, proxy = template["spec"]["containers"]
    (port,) = way["spec"]["ports"]
    assert port["targetPort"] == proxy["ports"][0]["containerPort"] == 8443
    assert "proxy_pass http://127.0.0.1:8765;" in settings_["data"]["nginx.conf"]
    assert "env" not in proxy and all(mount["name"] != "workspace" for mount in proxy["volumeMounts"])
    held = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in [*server["volumeMounts"], *proxy["volumeMounts"]]} == held
    assert {"name": "tls", "secret": {"secretName": "flowers-tls"}} in template["spec"]["volumes"]


# Variables, arguments and files


def expanded(text: str, known: dict[str, str]) -> str:
    """As Kubernetes puts variables into commands and values: `$(NAME)`, and `$$` for one `$`."""
    found, at = "", 0
    while at < len(text):
        if text[at] == "$" and text[at + 1 : at + 2] == "$":
            found, at = found + "$", at + 2
        elif text[at] == "$" and (name := re.match(r"\(([^)]*)\)", text[at + 1 :])):
            found, at = found + known.get(name[1], f"$({name[1]})"), at + 1 + name.end()
        else:
            found, at = found + text[at], at + 1
    return found


@given(value=TEXTS | st.text("$()AB", max_size=12))
def test_what_a_process_sees_is_what_was_asked_for(value: str) -> None:
    container = only_pod(manifests.of_job(a_job(args=[value], environment={"SEEN": value})))["containers"][0]
    assert expanded(container["command"][-1], {"A": "other", "AB": "other"}) == value
    assert expanded(variables(container)["SEEN"], {"A": "other", "AB": "other"}) == value


def test_a_secret_is_named_and_goes_before_what_mms_says() -> None:
    made = manifests.of_job(a_job(secrets={"TOKEN": "team.secrets/api_key", "NPROC": "tuning/threads"}))
    told = variables(only_pod(made)["containers"][0])
    assert told["TOKEN"] == {"secretKeyRef": {"name": "team.secrets", "key": "api_key"}}
    assert told["NPROC"] == {"secretKeyRef": {"name": "tuning", "key": "threads"}}


def mounted(made: list[manifests.Manifest], folder: Path) -> None:
    """The folder of the code as a pod finds it."""
    code, *_ = made
    held = {key: text.encode() for key, text in code.get("data", {}).items()}
    held |= {key: base64.b64decode(text) for key, text in code.get("binaryData", {}).items()}
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) and not key.startswith("..") for key in held)
    spec = next(pod_specs([each for each in made if each["kind"] != "ConfigMap"]))
    items = next(volume for volume in spec["volumes"] if volume["name"] == "code")["configMap"]["items"]
    assert sorted(item["key"] for item in items) == sorted(held)
    for item in items:
        path = folder / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held[item["key"]])


def test_the_code_runs_where_it_is_mounted(tmp_path: Path) -> None:
    script = "import sys\nfrom net.layers import WIDTH\nprint(WIDTH, sys.argv[1:])\n"
    files: dict[str, str | bytes] = {
        "train.py": script,
        "net/layers.py": "WIDTH = 64\n",
        "net.layers.py": "",  # the same key, were a slash a dot
        "net/ü b.bin": b"\0\xff",
        "submit.py": "",
    }
    made = manifests.of_job(a_job(files=files, args=["--lr", "$HOME"]))
    mounted(made, tmp_path)
    assert {path.relative_to(tmp_path / "code").as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(
        files
    )
    assert (tmp_path / "code/net/ü b.bin").read_bytes() == b"\0\xff"
    (container,) = only_pod(made)["containers"]
    command = [sys.executable, *(word.replace("/mms", str(tmp_path)) for word in container["command"][1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "64 ['--lr', '$HOME']\n"


# YAML

# What a plain scalar is but a text, by the core schema of YAML 1.2 (chapter 10.3.2), which Go's readers take too.
NOT_TEXT = re.compile(
    r"~|null|Null|NULL||true|True|TRUE|false|False|FALSE|[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
    r"|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
)
WORDS = [
    "on",
    "No",
    "y",
    "1e3",
    "0o17",
    "0x1f",
    "1_000",
    "12:30",
    "2001-01-01",
    "null",
    "~",
    "=",
    "<<",
    "a: b",
    "#",
    "- a",
]


@EACH
def test_the_yaml_says_the_same(made: list[manifests.Manifest]) -> None:
    assert list(yaml.safe_load_all(manifests.to_yaml(made))) == made


@given(text=TEXTS | st.sampled_from(WORDS) | st.text("\n \t\x85\u2028:-#'\"|>&*!%@{}[]ab", max_size=12))
@settings(max_examples=300)
def test_any_text_comes_back_from_yaml(text: str) -> None:
    made = [{"kind": "Any", "data": {"one": text, "list": [text, {text: text}]}}]
    written = manifests.to_yaml(made)
    assert yaml.safe_load(written) == made[0]
    for event in yaml.parse(written):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            assert NOT_TEXT.fullmatch(event.value) is None
        if isinstance(event, yaml.ScalarEvent) and event.style == "|":
            assert event.value.splitlines() == event.value.removesuffix("\n").split("\n")  # one kind of line end


def test_a_script_stays_legible() -> None:
    text = "import sys\n\n\ndef main():\n    print('a: b', {1: 2})  # not a remark of YAML\n\n\nmain()\n"
    written = manifests.to_yaml(manifests.of_job(a_job(files={"train.py": text}))[:1])
    assert "\n".join(f"    {line}" if line else "" for line in text.splitlines()) in written
    assert "train.py: |\n" in written


# What cannot run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "kubray"}, "kuberay or jobset; got 'kubray'; try 'kuberay'"),
        ({"name": "Train_1"}, "got 'Train_1'; try 'train-1'"),
        ({"name": "train\n"}, "a name in a cluster"),
        ({"name": "a: {b: c}"}, "a name in a cluster"),
        ({"name": "a" * 41}, "1 to 40"),
        ({"name": "1st"}, "try 'st'"),
        ({"image": "mms:1 # x"}, "an image is"),
        ({"image": ""}, "an image is"),
        ({"namespace": "a.b"}, "a namespace has"),
        ({"claim": "no_claim"}, "got 'no_claim'"),
        ({"queue": "a" * 64}, "at most 63 characters"),
        ({"queue": "a\nb"}, "got 'a\\nb'"),
        ({"service_account": "a" * 300}, "in a cluster has a name"),
        ({"user": 0}, "user: it is at least 1"),
        ({"nodes": 0}, "nodes: it is at least 1"),
        ({"nodes": -1}, "nodes: it is at least 1"),
        ({"cpus": -2}, "cpus: it is at least 1"),
        ({"gpus": -1}, "gpus: it is at least 0"),
        ({"memory": "-3GB"}, "memory is bytes"),
        ({"memory": 0}, "memory: it is at least"),
        ({"time": "-1s"}, "time is seconds"),
        ({"time": 3e9}, "time: it is at most 2147483647"),
        ({"retries": -1}, "retries: it is at least 0"),
        ({"keep_s": -1}, "keep_s: it is at least 0"),
        ({"environment": {"A B": "x"}}, "a variable's name"),
        ({"environment": {"A": "x\0"}}, "no byte 0"),
        ({"environment": {"A": "\ud800"}}, "UTF-8"),
        ({"environment": {"A": "x" * 200_000}}, "at most 100,000 bytes"),
        ({"environment": {"MMS_TOKEN": "x"}}, "of MMS's own variables"),
        ({"environment": {"MMS_CATALOG": "postgresql://a:b@c/d"}}, "keep its URL in a Secret"),
        ({"environment": {"RAY_AUTH_TOKEN": "x"}}, "given its token by KubeRay"),
        ({"environment": {"A": "x"}, "secrets": {"A": "b/c"}}, "a variable has one value"),
        ({"secrets": {"A": "No Name/key"}}, "got 'No Name'"),
        ({"args": ["\0"]}, "no byte 0"),
        ({"processes": 2}, "a pod of a JobSet is one process"),
        ({"tpu": "v5e:3x3"}, "got 'v5e:3x3'"),
        ({"tpu": "h100:2x2"}, "a slice of TPUs is"),
        ({"tpu": "v5e:4x4", "nodes": 2}, "has 4, and nodes=2"),
        ({"tpu": "v5e:2x2", "gpus": 1}, "TPUs or GPUs"),
        ({"tpu": "v5p:2x2x2", "engine": "kuberay"}, "is for jobset"),
        ({"entrypoint": None}, "give one of the two"),
        ({"entrypoint": "other.py"}, "'other.py' is not"),
        ({"files": {"train.py": "", "../x": ""}}, "leads into the folder"),
        ({"files": {"train.py": "#" * 900_001}}, "at most 900,000 bytes"),
        ({"files": {"train.py": "", "b": b"\0" * 800_000}}, "build it into the image"),
        ({"engine": "kuberay", "gpus": 3, "processes": 2}, "got gpus=3 for processes=2"),
        ({"engine": "kuberay", "ray_version": None}, "ray_version is missing"),
        ({"engine": "kuberay", "ray_version": "2.51.0"}, "from 2.52.0 on; got '2.51.0'"),
        ({"engine": "kuberay", "ray_version": "nightly"}, "got 'nightly'"),
        ({"engine": "kuberay", "claim": None}, "name a claim"),
        ({"engine": "kuberay", "key": None}, "give one"),
        ({"engine": "kuberay", "key": "a b"}, "pattern"),
        ({"engine": "kuberay", "secrets": {}}, "of a Ray cluster the head and the nodes do"),
        ({"nodes": 2, "claim": "workspace"}, "has its catalog in PostgreSQL; this job has 2"),
        ({"memry": "1GB"}, "memry"),
    ],
)
def test_a_job_that_could_not_run_is_refused_with_the_reason(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        a_job(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "jobset"}, "a JobSet runs to its end, and a server has none; render it for deployment"),
        ({"engine": "k8s"}, "kuberay or deployment; got 'k8s'"),
        ({"models": ["a; rm -rf /"]}, "a model name"),
        ({"models": ["a@1", "a@2"]}, "got 'a' more than once"),
        ({"port": 80}, "port: it is at least 1024"),
        ({"port": 8443}, "8443 is the proxy's"),
        ({"tls": "my tls"}, "got 'my tls'"),
        ({"proxy_image": "a b"}, "an image is"),
        ({"time": "1h"}, "time"),
        ({"nodes": 1}, "a deployment is one pod"),
        ({"claim": None}, "claim"),
        ({"engine": "kuberay", "max_nodes": 2, "queue": "team"}, "leave out max_nodes, or the queue"),
        ({"engine": "kuberay", "nodes": 3, "max_nodes": 2}, "got 2 and 3"),
        ({"engine": "kuberay", "nodes": 1, "secrets": {}}, "jobs on its nodes do"),
        ({"engine": "kuberay", "node_memory": "many"}, "memory is bytes"),
    ],
)
def test_a_server_that_could_not_run_is_refused_with_the_reason(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        a_service(**options)


ASKED = [
    "name",
    "image",
    "namespace",
    "service_account",
    "claim",
    "queue",
    "tpu",
    "ray_version",
    "key",
    "memory",
    "time",
]


@given(
    field=st.sampled_from(ASKED),
    value=st.text(max_size=20) | st.text("ab1-._/:@x \n", max_size=9) | st.integers() | st.floats() | st.none(),
    engine=st.sampled_from(["jobset", "kuberay"]),
)
@settings(max_examples=150)
def test_whatever_is_asked_for_is_rendered_or_refused_in_our_own_words(field: str, value: Any, engine: str) -> None:
    try:
        made = manifests.of_job(a_job(**{"engine": engine, field: value}))
    except InvalidRequest as refused:
        assert refused.message.startswith("ClusterJob does not fit")
    else:
        assert list(yaml.safe_load_all(manifests.to_yaml(made))) == made
        for spec in pod_specs(made):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_what_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as refused:
        a_job(secrets={"PASSWORD": "hunter2"})
    assert "PASSWORD" in str(refused.value) and "hunter2" not in str(refused.value)
    with pytest.raises(InvalidRequest) as refused:
        a_job(environment={"MMS_CATALOG": "postgresql://a:hunter2@c/d"})
    assert "hunter2" not in str(refused.value)
