"""Manifests: what is asked of a Kubernetes cluster, in the words of KubeRay, JobSet and Kubernetes itself.

Pure functions from what is asked to plain dictionaries, and from these to YAML. Nothing here speaks to a cluster. The
fields are those of `ray.io/v1` since KubeRay 1.5.1, `jobset.x-k8s.io/v1alpha2` since JobSet 0.7, `apps/v1` and `v1`.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mms_sdk.compute.engines.folder import COORDINATOR, RANK, RANKS
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cluster import PROXY_PORT, ClusterJob, ClusterService, Pods
from mms_sdk.settings import WORKSPACE_VARIABLE

Manifest = dict[str, Any]
SCRIPTS = "/mms"
"""Where the code lies in a pod, in its folder `code`."""
CLAIM = "/workspace"
"""Where the claim is mounted."""
WORKSPACE = f"{CLAIM}/mms"
"""The workspace on it; a folder of its own, which nobody but its user looks into."""
WORKERS = "workers"
_PORT = 8476  # of the first process, by which the others find one another; the one that JAX takes on TPUs
_DAY_S = 86400
_DRAIN_S = 45  # a server answers what is queued for up to 30 s
_START_S = 600  # what a Ray cluster may take beside the attempts of its job
_HEAD_CPUS, _HEAD_MEMORY = 2, 8 * 2**30  # of a head that only looks after the others
_RAY_MEMORY = 2 * 2**30  # of what Ray itself holds in each pod
_RAY_HERE = {"name": "MMS_RAY", "value": "127.0.0.1:6379"}  # where a process in the head finds its cluster
_SUBMITTER_CPUS, _SUBMITTER_MEMORY = 1, 2**30
_PROXY_CPUS, _PROXY_MEMORY = 1, 256 * 2**20
# What a process says that a signal ended: SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGTERM. None of its own doing.
_BY_SIGNAL = [134, 135, 137, 139, 143]
# Of a node's variables a job sees those of its workspace, and of object stores; others are secrets of the workspace.
_SEEN = re.compile(r"(MMS|AWS|GOOGLE|AZURE|HADOOP)_")
_SHELL_TAKES = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_PLAIN = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./@()'\[\]-]|:(?=[A-Za-z0-9/])| (?=[A-Za-z0-9/]))*")
_OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")  # which readers of YAML 1.1 take for the end of a line
_NOT_TEXTS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def of_job(job: ClusterJob) -> list[Manifest]:
    """The manifests of a job: its code, and a RayJob or a JobSet."""
    code = [_code(job)] if job.files else []
    return [*code, _ray_job(job) if job.engine == "kuberay" else _job_set(job)]


def of_service(service: ClusterService) -> list[Manifest]:
    """The manifests of a server: a RayCluster, whose head serves, or a Deployment; before it the way in, if any."""
    ways = [_proxy_settings(service), _way_in(service)] if service.tls else []
    return [*ways, _ray_server(service) if service.engine == "kuberay" else _deployment(service)]


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """Manifests as one YAML text that people read, and that YAML 1.1 and 1.2 read alike."""
    import yaml

    class Writer(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)  # the items of a list stand below its name

    Writer.add_representer(
        str, lambda writer, text: writer.represent_scalar("tag:yaml.org,2002:str", text, _style(text))
    )
    text: str = yaml.dump_all(
        manifests, Dumper=Writer, sort_keys=False, allow_unicode=True, width=2**31, explicit_start=len(manifests) > 1
    )
    return text


def _style(text: str) -> str | None:
    if "\n" in text and not _OTHER_BREAKS.search(text):
        return "|"
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXTS
    return None if plain else '"'


# A JobSet


def _job_set(job: ClusterJob) -> Manifest:
    spec: Manifest = {"suspend": True} if job.queue else {}
    spec |= {
        "ttlSecondsAfterFinished": _DAY_S if job.keep_s is None else job.keep_s,
        "network": {"enableDNSHostnames": True, "subdomain": _subdomain(job), "publishNotReadyAddresses": True},
        "failurePolicy": _failure_policy(job),
        "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": _indexed_job(job)}}],
    }
    return _manifest("jobset.x-k8s.io/v1alpha2", "JobSet", job, "job", spec)


def _failure_policy(job: ClusterJob) -> Manifest:
    # Neither what the code itself did nor a limit that it ran into is tried again.
    final = ["PodFailurePolicy"] if job.nodes == 1 else []
    final += ["DeadlineExceeded"] if job.time is not None else []
    policy: Manifest = {"maxRestarts": job.retries, "restartStrategy": "BlockingRecreate"}
    if final:
        policy["rules"] = [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": final}]
    return policy


def _indexed_job(job: ClusterJob) -> Manifest:
    spec: Manifest = {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
    }
    if job.time is not None:
        spec["activeDeadlineSeconds"] = math.ceil(job.time)
    if job.nodes == 1:
        # Of several, those that were left by one end with an error that says nothing of their own code.
        spec["podFailurePolicy"] = {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "worker", "operator": "NotIn", "values": _BY_SIGNAL},
                },
            ]
        }
    worker = _container("worker", job, command=_pod_command(job), more=_joining(job) if job.nodes > 1 else [])
    return spec | {"template": {"metadata": {"labels": _labels(job, "worker")}, "spec": _pod(job, [worker])}}


def _pod_command(job: ClusterJob) -> list[str]:
    if job.entrypoint is None:
        return list(job.command)
    script = f"{SCRIPTS}/code/{job.entrypoint}"
    starts = ["python", script] if job.nodes == 1 else ["python", "-P", "-m", "mms_sdk.compute.joined", script]
    return [*starts, *job.args]


def _subdomain(job: ClusterJob) -> str:
    # JobSet makes a Service of that name, and a server may be called as the job that trained for it.
    return f"{job.name}-pods"


def _joining(job: ClusterJob) -> list[Manifest]:
    # The names of pods, as JobSet gives them: <jobset>-<replicated job>-<job>-<pod>.<subdomain>.
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": COORDINATOR, "value": f"{job.name}-{WORKERS}-0-0.{_subdomain(job)}:{_PORT}"},
        {"name": RANKS, "value": str(job.nodes)},
        {"name": RANK, "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


# A Ray cluster


def _ray_job(job: ClusterJob) -> Manifest:
    spec: Manifest = {"suspend": True} if job.queue else {}
    spec |= {
        "entrypoint": _ray_entrypoint(job),
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.keep_s or 0,
    }
    if job.time is not None:
        spec["activeDeadlineSeconds"] = _ray_deadline_s(job)
    submitter = _container("ray-job-submitter", job, own=(_SUBMITTER_CPUS, _SUBMITTER_MEMORY, 0), bare=True)
    spec["submitterPodTemplate"] = {
        "metadata": {"labels": _labels(job, "submitter")},
        "spec": _pod(job, [submitter], bare=True),
    }
    head = _container("ray-head", job, own=(_HEAD_CPUS, _HEAD_MEMORY, 0), more=[_RAY_HERE])
    spec["rayClusterSpec"] = _ray_cluster(job, head, nodes=job.nodes, node=(job.cpus, job.memory, job.gpus))
    return _manifest("ray.io/v1", "RayJob", job, "job", spec)


def _ray_entrypoint(job: ClusterJob) -> str:
    if job.entrypoint is not None:
        return f"python {SCRIPTS}/submit.py"
    for word in job.command:
        if _SHELL_TAKES.fullmatch(word) is None:
            raise InvalidRequest(
                f"the command of a RayJob goes through two shells, which leave only words of A-Z a-z 0-9 and "
                f"_ @ % + = : , . / - as they are; got {word[:60]!r}; put it into a script of the image"
            )
    return shlex.join(job.command)


def _ray_deadline_s(job: ClusterJob) -> int:
    # MMS ends each attempt at a script in time, and tries again in the same cluster; this is for when it cannot.
    assert job.time is not None
    if job.entrypoint is None:
        return math.ceil(job.time)
    return min(2**31 - 1, math.ceil(job.time) * (job.retries + 1) + _START_S)


def _ray_cluster(
    asked: Pods, head: Manifest, *, nodes: int, node: tuple[int, int, int], max_nodes: int | None = None
) -> Manifest:
    # The head of a cluster is given no work: what fills its memory would end the cluster.
    cpus, memory, gpus = node
    groups = []
    if nodes or max_nodes:
        groups = [
            {
                "groupName": WORKERS,
                "replicas": nodes,
                "minReplicas": nodes,
                "maxReplicas": max_nodes or nodes,
                "rayStartParams": {},
                "template": {
                    "metadata": {"labels": _labels(asked, "worker")},
                    "spec": _pod(asked, [_container("ray-worker", asked, own=(cpus, memory + _RAY_MEMORY, gpus))]),
                },
            }
        ]
    return {
        "rayVersion": asked.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": max_nodes is not None,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": {
                "metadata": {"labels": _labels(asked, "head")},
                "spec": _pod(asked, [head], asks_cluster=max_nodes is not None),
            },
        },
        "workerGroupSpecs": groups,
    }


def _ray_server(service: ClusterService) -> Manifest:
    # Ray starts beside the server, whose end is that of the pod; KubeRay then makes another one.
    started = f"ulimit -n 65536; $KUBERAY_GEN_RAY_START_CMD & exec {shlex.join(_serving(service))}"
    own = (service.cpus, service.memory + _RAY_MEMORY, service.gpus)
    head = _container("ray-head", service, own=own, command=["/bin/bash", "-c", "--", started], more=[_RAY_HERE])
    spec = _ray_cluster(
        service,
        head,
        nodes=service.nodes,
        node=(service.node_cpus, service.node_memory, service.node_gpus),
        max_nodes=service.max_nodes,
    )
    if service.queue:
        spec = {"suspend": True, **spec}
    template = spec["headGroupSpec"]["template"]
    template["metadata"]["annotations"] = {"ray.io/overwrite-container-cmd": "true"}
    template["spec"] = _let_in(service, template["spec"])
    return _manifest("ray.io/v1", "RayCluster", service, "server", spec)


# A server without Ray


def _deployment(service: ClusterService) -> Manifest:
    # Before another pod opens the workspace, the one before it has closed it.
    server = _container("server", service, command=_serving(service), probed=service.port)
    labels = _labels(service, "server")
    pod = _let_in(service, _pod(service, [server]))
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": {name: labels[name] for name in labels if name != "app.kubernetes.io/managed-by"}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _manifest("apps/v1", "Deployment", service, "server", spec)


def _serving(service: ClusterService) -> list[str]:
    return ["mms", "serve", "--port", str(service.port), *service.models]


# The way to a server


def _way_in(service: ClusterService) -> Manifest:
    labels = _labels(service, "head" if service.engine == "kuberay" else "server")
    spec = {
        "selector": {name: labels[name] for name in ("app.kubernetes.io/instance", "app.kubernetes.io/component")},
        "ports": [{"name": "https", "port": 443, "targetPort": PROXY_PORT}],
    }
    metadata = _metadata(service, service.name, _labels(service, "server"))
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _proxy_settings(service: ClusterService) -> Manifest:
    metadata = _metadata(service, _proxy_name(service), _labels(service, "proxy"))
    text = _NGINX.format(port=PROXY_PORT, server=service.port)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"nginx.conf": text}}


def _proxy_name(service: ClusterService) -> str:
    return f"{service.name}-proxy"


def _let_in(service: ClusterService, pod: Manifest) -> Manifest:
    if not service.tls:
        return pod
    volumes = [
        {"name": "proxy", "configMap": {"name": _proxy_name(service)}},
        {"name": "tls", "secret": {"secretName": service.tls}},
        {"name": "drafts", "emptyDir": {}},
    ]
    return {**pod, "containers": [*pod["containers"], _proxy(service)], "volumes": [*pod["volumes"], *volumes]}


def _proxy(service: ClusterService) -> Manifest:
    container = _container("proxy", service, own=(_PROXY_CPUS, _PROXY_MEMORY, 0), bare=True)
    container["image"] = service.proxy_image
    container["command"] = ["nginx", "-e", "/dev/stderr", "-c", "/proxy/nginx.conf"]
    asked = {"httpGet": {"path": "/readyz", "port": PROXY_PORT, "scheme": "HTTPS"}, "timeoutSeconds": 10}
    return container | {
        "ports": [{"name": "https", "containerPort": PROXY_PORT}],
        "readinessProbe": asked,
        "volumeMounts": [
            {"name": "proxy", "mountPath": "/proxy", "readOnly": True},
            {"name": "tls", "mountPath": "/tls", "readOnly": True},
            {"name": "drafts", "mountPath": "/tmp"},
        ],
    }


# The server bounds bodies and times itself, and knows itself as localhost only. What streams is passed on as it comes.
_NGINX = """\
daemon off;
worker_processes 1;
pid /tmp/nginx.pid;

events {{
  worker_connections 1024;
}}

http {{
  access_log off;
  server_tokens off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;

  server {{
    listen {port} ssl;
    ssl_certificate /tls/tls.crt;
    ssl_certificate_key /tls/tls.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;

    location / {{
      proxy_pass http://127.0.0.1:{server};
      proxy_http_version 1.1;
      proxy_set_header Host localhost;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""


# What all of them have in common


def _manifest(api: str, kind: str, asked: Pods, component: str, spec: Manifest) -> Manifest:
    labels = _labels(asked, component)
    if asked.queue:
        labels["kueue.x-k8s.io/queue-name"] = asked.queue
    return {"apiVersion": api, "kind": kind, "metadata": _metadata(asked, asked.name, labels), "spec": spec}


def _metadata(asked: Pods, name: str, labels: Mapping[str, str]) -> Manifest:
    space = {"namespace": asked.namespace} if asked.namespace else {}
    return {"name": name, **space, "labels": dict(labels)}


def _labels(asked: Pods, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "mms",
        "app.kubernetes.io/instance": asked.name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "mms",
    }


def _pod(asked: Pods, containers: list[Manifest], *, bare: bool = False, asks_cluster: bool = False) -> Manifest:
    # `bare` without code and workspace; `asks_cluster` with the right to: Ray's autoscaler makes and ends pods.
    spec: Manifest = {"restartPolicy": "Always" if _stays(asked) else "Never"}
    if asked.service_account:
        spec["serviceAccountName"] = asked.service_account
    elif not asks_cluster:
        spec["automountServiceAccountToken"] = False
    spec["terminationGracePeriodSeconds"] = asked.grace_s if isinstance(asked, ClusterJob) else _DRAIN_S
    if isinstance(asked, ClusterJob) and asked.tpus:
        spec["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": asked.tpus.accelerator,
            "cloud.google.com/gke-tpu-topology": asked.tpus.topology,
        }
    spec["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": asked.user,
        "runAsGroup": asked.user,
        "fsGroup": asked.user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec["containers"] = containers
    if not bare and (volumes := _volumes(asked)):
        spec["volumes"] = volumes
    return spec


def _stays(asked: Pods) -> bool:
    # Ray's pods are replaced as a whole.
    return isinstance(asked, ClusterService) and asked.engine == "deployment"


def _volumes(asked: Pods) -> list[Manifest]:
    volumes: list[Manifest] = []
    if isinstance(asked, ClusterJob) and asked.files:
        items = [{"key": key, "path": path} for path, key in _keys(asked).items()]
        volumes.append({"name": "code", "configMap": {"name": _code_name(asked), "items": items}})
    if asked.claim:
        volumes.append({"name": "workspace", "persistentVolumeClaim": {"claimName": asked.claim}})
    if _shares_memory(asked):
        volumes.append({"name": "memory", "emptyDir": {"medium": "Memory"}})
    return volumes


def _shares_memory(asked: Pods) -> bool:
    # NCCL's, of which a pod has 64 MiB otherwise; a Ray cluster gets its own by KubeRay.
    return isinstance(asked, ClusterJob) and asked.engine == "jobset" and asked.gpus > 0


def _container(
    name: str,
    asked: Pods,
    *,
    own: tuple[int, int, int] | None = None,
    command: Sequence[str] = (),
    more: Sequence[Manifest] = (),
    probed: int | None = None,
    bare: bool = False,
) -> Manifest:
    # `own`: cores, bytes and GPUs, where they are not those asked for; `bare`: without code, workspace and variables.
    cpus, memory, gpus = own or (asked.cpus, asked.memory, asked.gpus)
    container: Manifest = {"name": name, "image": asked.image}
    if command:
        container["command"] = [_unexpanded(word) for word in command]
    if not bare:
        container["env"] = [*_variables(asked, cpus), *more]
    container["resources"] = _resources(asked, cpus, memory, gpus)
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if probed is not None:
        container |= _probes(probed)
    if not bare and (mounts := _mounts(asked)):
        container["volumeMounts"] = mounts
    return container


def _variables(asked: Pods, cpus: int) -> list[Manifest]:
    # XLA's CPU client takes NPROC for the number of its threads; of a node it would see all cores.
    shown = {"PYTHONUNBUFFERED": "1", "NPROC": str(cpus), "OMP_NUM_THREADS": str(cpus)}
    if asked.claim:
        shown[WORKSPACE_VARIABLE] = WORKSPACE
    shown |= asked.environment
    hidden = ((name, *place.split("/")) for name, place in asked.secrets.items())
    return [
        *({"name": name, "value": _unexpanded(value)} for name, value in shown.items() if name not in asked.secrets),
        *({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for name, secret, key in hidden),
    ]


def _resources(asked: Pods, cpus: int, memory: int, gpus: int) -> Manifest:
    # Memory is held to what is asked for, so that a node never runs out of it. A core that is idle may be used.
    bound: dict[str, str | int] = {"memory": _quantity(memory)}
    if gpus:
        bound["nvidia.com/gpu"] = gpus
    elif isinstance(asked, ClusterJob) and asked.tpus:
        bound["google.com/tpu"] = asked.tpus.chips
    return {"requests": {"cpu": cpus, **bound}, "limits": bound}


def _quantity(count: int) -> str:
    # The shortest of those that say it exactly: 16Gi, 8G, 1500M.
    units = {1: "", **{1024**power: f"{sign}i" for power, sign in enumerate("KMGTP", 1)}}
    units |= {1000**power: sign for power, sign in enumerate("kMGTP", 1)}
    return min((f"{count // unit}{sign}" for unit, sign in units.items() if count % unit == 0), key=len)


def _probes(port: int) -> Manifest:
    # From within, since the server listens on the loopback address. It is ready once its models are warm.
    def asks(path: str) -> Manifest:
        told = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/{path}', timeout=5)"
        return {"exec": {"command": ["python", "-c", told]}, "timeoutSeconds": 10}

    return {
        "startupProbe": {**asks("healthz"), "periodSeconds": 5, "failureThreshold": 360},  # half an hour
        "readinessProbe": {**asks("readyz"), "periodSeconds": 10},
        "livenessProbe": {**asks("healthz"), "periodSeconds": 30},
    }


def _mounts(asked: Pods) -> list[Manifest]:
    mounts: list[Manifest] = []
    if isinstance(asked, ClusterJob) and asked.files:
        mounts.append({"name": "code", "mountPath": SCRIPTS, "readOnly": True})
    if asked.claim:
        mounts.append({"name": "workspace", "mountPath": CLAIM})
    if _shares_memory(asked):
        mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    return mounts


def _unexpanded(text: str) -> str:
    # Kubernetes puts variables in place of $(NAME), and takes $$ for a $.
    return re.sub(r"\$(?=[$(])", "$$", text)


# Code


def _code(job: ClusterJob) -> Manifest:
    texts, others = {}, {}
    for path, key in _keys(job).items():
        content = _driver(job) if path == "submit.py" else job.files[path.removeprefix("code/")]
        if isinstance(content, str):
            texts[key] = content
        else:
            others[key] = base64.b64encode(content).decode()
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, _code_name(job), _labels(job, "code")),
    }
    return made | ({"data": texts} if texts else {}) | ({"binaryData": others} if others else {})


def _code_name(job: ClusterJob) -> str:
    return f"{job.name}-code"


def _keys(job: ClusterJob) -> dict[str, str]:
    # A key of a ConfigMap has no slash, and of other signs few: where each file lies stands beside its key.
    paths = [*(["submit.py"] if job.engine == "kuberay" and job.entrypoint else []), *(f"code/{p}" for p in job.files)]
    keys: dict[str, str] = {}
    for path in paths:
        key = plain = re.sub(r"[^A-Za-z0-9._-]", ".", path.removeprefix("code/"))[-200:]
        number = 1
        while key in keys.values() or key in (".", "..") or key.startswith(".."):
            number += 1
            key = f"{number}.{plain.lstrip('.')}"
        keys[path] = key
    return keys


def _driver(job: ClusterJob) -> str:
    # In a file and not on a command line, since that of a RayJob goes through two shells.
    told = {name: value for name, value in job.environment.items() if not name.startswith("MMS_")}
    secrets = [name for name in job.secrets if not _SEEN.match(name)]
    resources = {
        "nodes": job.nodes,
        "processes": job.processes,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "memory": job.memory,
        "time": job.time,
    }
    options = {
        "folder": f"{SCRIPTS}/code",
        "args": list(job.args),
        "name": job.name,
        "key": job.key,
        "environment": told,
        "secrets": secrets,
        "on": "ray",
    }
    lines = "".join(f"    {name}={value!r},\n" for name, value in options.items() if value)
    counted = ", ".join(f"{name}={value!r}" for name, value in resources.items() if value is not None)
    needs, keeps = "", ""
    if secrets:
        needs = "import os\n\n"
        keeps = f"for name in {secrets!r}:\n    ws.secrets.set(name, os.environ[name])\n"
    return (
        "# Submits the job to the Ray cluster in whose head this runs, and follows it to its end.\n"
        f"{needs}import mms_sdk as mms\n\n"
        f"ws = mms.connect()\n{keeps}"
        "job = ws.jobs.submit(\n"
        f"    {f'{SCRIPTS}/code/{job.entrypoint}'!r},\n"
        f"{lines}"
        f"    resources=mms.Resources({counted}),\n"
        f"    retry=mms.Retry({job.retries}),\n"
        ")\n"
        "job.watch()\n"
    )
