"""What is asked of a Kubernetes cluster: a job that runs to its end there, or a server of models."""

from __future__ import annotations

import difflib
import re
from math import prod
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.job import Resources
from mms_sdk.schema.names import parse_model_ref

JobEngine = Literal["kuberay", "jobset"]
ServiceEngine = Literal["kuberay", "deployment"]
MAX_FILES_BYTES = 900_000  # a ConfigMap takes 1 MiB, with its keys, and what is no text as base64
RAY_WITH_TOKENS = (2, 52)  # KubeRay refuses an older one where nobody is let in without a token
CATALOG = "MMS_CATALOG"
PROXY_PORT = 8443
_INT32 = 2**31 - 1
_MAX_VARIABLE_BYTES = 100_000  # Linux takes 128 KiB, name and value together

# RFC 1035, to which JobSet and KubeRay hold their names; 40, so that the pods of the largest job have names of 63.
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
# RFC 1123, of what is in the cluster already.
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,499}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"([^/]*)/([A-Za-z0-9._-]{1,253})")
_SETTINGS = ("MMS_DATASETS", "MMS_COMPILE_CACHE", "MMS_FETCH_NETWORKS", CATALOG)
_TPU = re.compile(r"(v\w+):(\d{1,3}(?:x\d{1,3}){1,2})")
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}

_FROM_SECRET = (
    f"keep its URL in a Secret and name that: secrets={{'{CATALOG}': 'SECRET/KEY'}}, or --secret {CATALOG}=SECRET/KEY"
)


class Tpu(Schema):
    """A slice of TPUs, as Google's Kubernetes engine knows it.

    Attributes:
        accelerator: Its `cloud.google.com/gke-tpu-accelerator`.
        topology: Its `cloud.google.com/gke-tpu-topology`.
        nodes: How many machines it has.
        chips: Of each machine.
    """

    accelerator: str
    topology: str
    nodes: int
    chips: int


class Pods(Asked):
    """What a job and a service have in common: the pods they run in.

    Attributes:
        name: What they are called in the cluster.
        image: With Python, `mms-sdk` and what the code imports; for `kuberay` with Ray as well.
        namespace: Where they run; that of whoever applies the manifests, if left out.
        service_account: As which they run. Its token is mounted only where one is named.
        user: The number of the user in them, who is not root; files on the claim belong to the group of that number.
        claim: The volume claim on which the workspace lies; None for a workspace that goes with its pod.
        environment: Variables, seen by everybody who may look at the manifests.
        secrets: Variables whose values lie in a Secret of the cluster: its name and key, as `SECRET/KEY`.
        cpus: Cores of a pod that works.
        gpus: GPUs of a pod that works.
        memory: Of a pod that works, e.g. `64GiB`, or bytes; beyond it, the pod is ended.
        queue: The Kueue queue in which they wait; None for a cluster without.
        ray_version: Which Ray the image has, e.g. `2.55.1`; for `kuberay`.
    """

    by_place = ("name",)

    name: str
    image: str
    namespace: str | None = None
    service_account: str | None = None
    user: Annotated[int, Field(ge=1, le=_INT32)] = 1000
    claim: str | None = None
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    cpus: Annotated[int, Field(ge=1, le=1024)] = 4
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    memory: Annotated[int, Field(ge=2**20, le=2**60)] = 16 * 2**30
    queue: str | None = None
    ray_version: str | None = None

    @field_validator("name")
    @classmethod
    def _label(cls, name: str) -> str:
        if _LABEL.fullmatch(name) is None:
            raise ValueError(
                f"a name in a cluster has 1 to 40 of a-z 0-9 -, begins with a letter and does not end with -; "
                f"got {name[:80]!r}; try {suggest_label(name)!r}"
            )
        return name

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, asked: Any) -> Any:
        return Resources._bytes(asked)

    @field_validator("image", "proxy_image", check_fields=False)
    @classmethod
    def _pulled(cls, image: str) -> str:
        if _IMAGE.fullmatch(image) is None:
            raise ValueError(f"an image is e.g. registry.example/team/mms:1.0; got {image[:80]!r}")
        return image

    @field_validator("namespace")
    @classmethod
    def _space(cls, name: str | None) -> str | None:
        if name is not None and _NAMESPACE.fullmatch(name) is None:
            raise ValueError(f"a namespace has 1 to 63 of a-z 0-9 - and begins and ends without -; got {name[:80]!r}")
        return name

    @field_validator("service_account", "claim", "tls", check_fields=False)
    @classmethod
    def _there(cls, name: str | None) -> str | None:
        return None if name is None else _in_cluster(name)

    @field_validator("queue")
    @classmethod
    def _labelled(cls, name: str | None) -> str | None:
        if name is not None and len(name) > 63:
            raise ValueError(
                f"the name of a queue stands in a label, which has at most 63 characters; got {name[:80]!r}"
            )
        return None if name is None else _in_cluster(name)

    @field_validator("environment")
    @classmethod
    def _shown(cls, asked: dict[str, str]) -> dict[str, str]:
        for name, value in asked.items():
            _check_variable(name)
            _check_text(value, f"the value of {name}")
            if name == CATALOG:
                raise ValueError(f"the URL of a catalog may hold a password, which a manifest does not; {_FROM_SECRET}")
            if (size := len(f"{name}{value}".encode())) > _MAX_VARIABLE_BYTES:
                raise ValueError(f"a variable has at most {_MAX_VARIABLE_BYTES:,} bytes; {name[:60]!r} has {size:,}")
        return asked

    @field_validator("secrets")
    @classmethod
    def _hidden(cls, asked: dict[str, str]) -> dict[str, str]:
        for name, place in asked.items():
            _check_variable(name)
            found = _SECRET.fullmatch(place)
            if found is None:  # it may be the secret itself, and is not repeated
                raise ValueError(f"a secret is named, as SECRET/KEY; what is given for {name} is no such name")
            _in_cluster(found[1])
        return asked

    @field_validator("ray_version")
    @classmethod
    def _with_tokens(cls, version: str | None) -> str | None:
        if version is None:
            return None
        found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})\.\d{1,4}", version)
        if found is None or (int(found[1]), int(found[2])) < RAY_WITH_TOKENS:
            least = ".".join(map(str, RAY_WITH_TOKENS))
            raise ValueError(
                f"Ray lets nobody in without a token from {least}.0 on; got {version[:40]!r}; use an image with a "
                f"later one, and say which"
            )
        return version

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if twice := sorted(self.environment.keys() & self.secrets.keys()):
            raise ValueError(f"a variable has one value; {twice[0]} is among environment and secrets")
        return self

    def _check_ray(self) -> None:
        if self.ray_version is None:
            raise ValueError(
                "KubeRay is told which Ray the image has; ray_version is missing; give what `ray --version` says there"
            )

    def _check_shared(self, why: str) -> None:
        if self.claim is not None and CATALOG not in self.secrets:
            raise ValueError(f"a workspace that several pods open has its catalog in PostgreSQL; {why}; {_FROM_SECRET}")


class ClusterJob(Pods):
    """A job that runs to its end in a cluster.

    Attributes:
        engine: `jobset` for pods that find one another, `kuberay` for a Ray cluster of its own.
        files: The code by its path, as text or bytes.
        entrypoint: The script among them.
        args: What the script finds in `sys.argv` behind its name.
        command: A command of the image, in place of a script.
        nodes: How many pods work; as many as the slice has machines, where there is one.
        processes: Of each node; on `jobset` one, to which JAX gives all devices of its pod.
        tpu: A slice of TPUs, e.g. `v5e:4x4`, on `jobset`.
        time: Most that one attempt may take, e.g. `2h`, or seconds; beyond it, it is ended.
        retries: Further attempts after what was none of its own doing.
        key: By which the workspace knows the job again when its Ray cluster is replaced; with another key it is
            another job.
        keep_s: Seconds that what has ended stays. On `jobset` the pods with their logs, a day if left out; on
            `kuberay` the Ray cluster with its GPUs, 0 if left out.
        grace_s: Seconds between asking a pod to stop and ending it.
    """

    engine: JobEngine
    files: dict[str, str | bytes] = {}
    entrypoint: str | None = None
    args: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    command: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    tpu: str | None = None
    time: Annotated[float, Field(gt=0, le=_INT32, allow_inf_nan=False)] | None = None
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    key: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")] | None = None
    keep_s: Annotated[int, Field(ge=0, le=_INT32)] | None = None
    grace_s: Annotated[int, Field(ge=0, le=3600)] = 30

    @field_validator("engine", mode="before")
    @classmethod
    def _known(cls, engine: Any) -> Any:
        return _one_of(engine, get_args(JobEngine), "a job is rendered for")

    @field_validator("files")
    @classmethod
    def _small(cls, files: dict[str, str | bytes]) -> dict[str, str | bytes]:
        for path, content in files.items():
            _check_text(path, "the path of a file")
            if not path or path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
                raise ValueError(f"the path of a file leads into the folder of the code; got {path[:80]!r}")
            if isinstance(content, str):
                _check_text(content, f"the file {path}")
        size = sum(len(path.encode()) + _written_bytes(content) for path, content in files.items())
        if size > MAX_FILES_BYTES:
            raise ValueError(
                f"code in a manifest has at most {MAX_FILES_BYTES:,} bytes; this has {size:,}; build it into the image "
                f"and give a command of it, or name what is no code in the folder's .mmsignore"
            )
        return files

    @field_validator("args", "command")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            _check_text(word, "an argument")
        return words

    @field_validator("time", mode="before")
    @classmethod
    def _seconds(cls, asked: Any) -> Any:
        return Resources._seconds(asked)

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, asked: Any) -> Any:
        if not isinstance(asked, dict) or not isinstance(asked.get("tpu"), str):
            return asked
        counted = _slice_of(asked["tpu"]).nodes
        nodes = asked.get("nodes", counted)
        if nodes != counted:
            raise ValueError(
                f"a slice says how many nodes there are; {asked['tpu']} has {counted}, and nodes={nodes!r:.60}; leave "
                f"nodes out"
            )
        return {**asked, "nodes": nodes}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.command) == (self.entrypoint is not None):
            raise ValueError("a job runs a script, or a command of the image; give one of the two")
        if self.entrypoint is not None and self.entrypoint not in self.files:
            raise ValueError(f"a script is among the files that go along; {self.entrypoint[:80]!r} is not")
        if self.engine == "kuberay":
            self._check_kuberay()
        else:
            self._check_jobset()
        return self

    def _check_kuberay(self) -> None:
        self._check_ray()
        if self.tpu is not None:
            raise ValueError(f"a slice of TPUs is for jobset, whose pods know their place in it; got {self.tpu!r}")
        if self.gpus % self.processes:
            raise ValueError(
                f"GPUs divide over the processes of a node; got gpus={self.gpus} for processes={self.processes}"
            )
        if self.entrypoint is not None and self.claim is None:
            raise ValueError("the head and the nodes of a Ray cluster share the workspace; name a claim to keep it on")
        if self.entrypoint is not None and self.key is None:
            raise ValueError("a workspace knows a job of a Ray cluster that is replaced by its key; give one")
        self._check_shared("of a Ray cluster the head and the nodes do")

    def _check_jobset(self) -> None:
        if self.processes != 1:
            raise ValueError(
                f"a pod of a JobSet is one process, to which JAX gives all its devices; got processes="
                f"{self.processes}; ask for more nodes, or for kuberay"
            )
        if self.tpu is not None and self.gpus:
            raise ValueError(f"a node has TPUs or GPUs; got tpu={self.tpu} and gpus={self.gpus}")
        if self.nodes > 1:
            self._check_shared(f"this job has {self.nodes:,}")

    @property
    def tpus(self) -> Tpu | None:
        """The slice of TPUs that is asked for."""
        return None if self.tpu is None else _slice_of(self.tpu)


class ClusterService(Pods):
    """A server of a workspace and its models, which goes on until it is deleted.

    Attributes:
        engine: `deployment` for one pod, `kuberay` for the head of a Ray cluster whose nodes are for jobs.
        models: What it serves, each under its name, e.g. `flowers@champion`.
        port: Where it listens in its pod, on the loopback address.
        tls: The Secret, of type `kubernetes.io/tls`, by which a proxy beside it lets others of the cluster in; None
            for no proxy.
        proxy_image: Of that proxy, which is nginx as a user that is not root.
        nodes: On `kuberay`, how many pods there are for jobs.
        max_nodes: On `kuberay`, as how many there may be where Ray asks for more; None for as many as `nodes`.
        node_cpus: Cores of each of them.
        node_gpus: GPUs of each of them.
        node_memory: Of each of them.
    """

    engine: ServiceEngine
    claim: str
    models: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    port: Annotated[int, Field(ge=1024, le=65535)] = 8765
    tls: str | None = None
    proxy_image: str = "nginxinc/nginx-unprivileged:1.28"
    nodes: Annotated[int, Field(ge=0, le=4096)] = 0
    max_nodes: Annotated[int, Field(ge=1, le=4096)] | None = None
    node_cpus: Annotated[int, Field(ge=1, le=1024)] = 4
    node_gpus: Annotated[int, Field(ge=0, le=64)] = 0
    node_memory: Annotated[int, Field(ge=2**20, le=2**60)] = 16 * 2**30

    @field_validator("engine", mode="before")
    @classmethod
    def _known(cls, engine: Any) -> Any:
        if engine == "jobset":
            raise ValueError("a JobSet runs to its end, and a server has none; render it for deployment")
        return _one_of(engine, get_args(ServiceEngine), "a service is rendered for")

    @field_validator("models")
    @classmethod
    def _refs(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        names = [parse_model_ref(model).name for model in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each model is served once, under its name; got {twice[0]!r} more than once")
        return models

    @field_validator("node_memory", mode="before")
    @classmethod
    def _node_bytes(cls, asked: Any) -> Any:
        return Resources._bytes(asked)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.port == PROXY_PORT:
            raise ValueError(f"{PROXY_PORT} is the proxy's; got port={self.port}; choose another")
        if self.engine == "deployment" and (self.nodes or self.max_nodes):
            raise ValueError("a deployment is one pod; nodes for jobs are those of a Ray cluster; ask for kuberay")
        if self.max_nodes is not None and self.max_nodes < max(1, self.nodes):
            raise ValueError(f"max_nodes is at least nodes; got {self.max_nodes} and {self.nodes}")
        if self.max_nodes is not None and self.queue is not None:
            raise ValueError("Kueue admits a Ray cluster of a size that stays; leave out max_nodes, or the queue")
        if self.engine == "kuberay":
            self._check_ray()
            if self.nodes or self.max_nodes:
                self._check_shared("jobs on its nodes do beside the server")
        return self


def suggest_label(text: str) -> str:
    """The name in a cluster that is nearest to a text."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("-0123456789")[:40].strip("-")
    return name or "job"


def _check_variable(name: str) -> None:
    if _VARIABLE.fullmatch(name) is None:
        raise ValueError(f"a variable's name is of A-Z a-z 0-9 _ and begins with no digit; got {name[:60]!r}")
    if name.startswith("MMS_") and name not in _SETTINGS:
        raise ValueError(f"of MMS's own variables a pod is given {', '.join(_SETTINGS)}; got {name[:60]!r}")
    if name.startswith("RAY_AUTH"):
        raise ValueError(f"a Ray cluster is given its token by KubeRay; got {name[:60]!r}; leave it out")


def _check_text(text: str, what: str) -> None:
    # What no process, file or YAML can have.
    if "\0" in text:
        raise ValueError(f"{what} has no byte 0; got {text[:60]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is text that can be written as UTF-8; got {text[:60]!r}") from error


def _in_cluster(name: str) -> str:
    if _SUBDOMAIN.fullmatch(name) is None:
        raise ValueError(
            f"what is in a cluster has a name of a-z 0-9 - . that begins and ends with a letter or digit; "
            f"got {name[:80]!r}"
        )
    return name


def _one_of(asked: Any, known: tuple[str, ...], rule: str) -> Any:
    if asked in known:
        return asked
    near = difflib.get_close_matches(str(asked), known, n=1)
    raise ValueError(f"{rule} {' or '.join(known)}; got {str(asked)[:60]!r}" + (f"; try {near[0]!r}" if near else ""))


def _written_bytes(content: str | bytes) -> int:
    return len(content.encode(errors="surrogatepass")) if isinstance(content, str) else 4 * (len(content) // 3 + 1)


def _slice_of(asked: str) -> Tpu:
    # Google's "About TPUs in GKE": a machine has 4 chips; of v5e and v6e slices of up to 8 are one machine.
    found = _TPU.fullmatch(asked)
    generation, topology = (found[1], found[2]) if found else ("", "")
    sides = [int(side) for side in topology.split("x") if side]
    chips = prod(sides)
    flat = generation in ("v5e", "v6e")
    if generation not in _SLICES or (topology not in _FLAT if flat else len(sides) != 3 or chips % 4 or not chips):
        raise ValueError(
            f"a slice of TPUs is v5e or v6e with one of {', '.join(_FLAT)}, or v4 or v5p with three sides, e.g. "
            f"v5e:4x4 or v5p:2x2x2; got {asked[:60]!r}"
        )
    per_node = chips if flat and chips <= 8 else 4
    return Tpu(accelerator=_SLICES[generation], topology=topology, nodes=chips // per_node, chips=per_node)
