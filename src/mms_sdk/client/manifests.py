"""What runs MMS on a Kubernetes cluster: manifests of a job, and of a server of models.

`job` and `service` write what `kubectl apply` takes, and speak to no cluster.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mms_sdk import html
from mms_sdk.client.code import code_of
from mms_sdk.compute.engines import manifests as written
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cluster import ClusterJob, ClusterService, suggest_label
from mms_sdk.schema.names import parse_model_ref
from mms_sdk.storage import files
from mms_sdk.storage.ids import new_id


class Manifests:
    """Manifests in the order in which they are applied; printed, they are YAML."""

    def __init__(self, manifests: Sequence[dict[str, Any]]) -> None:
        self._manifests = tuple(manifests)

    def __repr__(self) -> str:
        told = (f"{each['kind']} {each['metadata']['name']}" for each in self)
        return f"<manifests: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        return html.titled(repr(self)[1:-1], f"<pre>{escape(str(self))}</pre>")

    def __str__(self) -> str:
        return written.to_yaml(self._manifests)

    def __len__(self) -> int:
        return len(self._manifests)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._manifests)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._manifests[number]

    def save(self, to: str | os.PathLike[str]) -> Path:
        """Writes them as YAML, whole or not at all.

        Raises:
            InvalidRequest: It is a folder, or its folder does not exist.
            NotWritable, StorageFull: It cannot be written.
        """
        path = Path(to).expanduser()
        if path.is_dir() or not path.parent.is_dir():
            raise InvalidRequest(f"manifests are written to a file in a folder that is there; got {path}")
        files.replace(path, str(self).encode())
        return path


def job(
    script: str | os.PathLike[str] | None = None,
    *,
    engine: str,
    image: str,
    args: Sequence[str] = (),
    folder: str | os.PathLike[str] | None = None,
    command: Sequence[str] = (),
    name: str | None = None,
    key: str | None = None,
    **options: Any,
) -> Manifests:
    """The manifests of a job: a ConfigMap with its code, and a RayJob or a JobSet.

    Args:
        script: A path, or the text of a cell, as `ws.jobs.submit` takes it; or leave it out and give a command.
        engine: `jobset`, or `kuberay`.
        image: With Python, `mms-sdk` and what the code imports; for `kuberay` with Ray as well.
        args: What the script finds in `sys.argv`.
        folder: What goes along beside the script, which lies in it: code, not data.
        command: A command of the image, in place of a script.
        name: What it is called in the cluster; the script's name if left out.
        key: For `kuberay`: whoever applies the manifests again gets the job of the first time. Each call makes another
            one, if left out.
        options: The other fields of `ClusterJob`, e.g. `nodes=2, gpus=8, memory="64GiB", time="2h", claim="workspace"`.

    Raises:
        NotFound: There is no such script.
        InvalidRequest: What is asked for could not run.

    Example:
        ```python
        import mms_sdk as mms

        made = mms.manifests.job("train.py", engine="jobset", image="registry.example/mms:1.0", gpus=1, time="2h")
        print(made)
        ```
    """
    for what, words in (("args", args), ("command", command)):
        if isinstance(words, str):
            raise InvalidRequest(f"{what} is a list of texts; got the text {words[:60]!r}; put it into [ ]")
    asked: dict[str, Any] = {"engine": engine, "image": image, "args": tuple(map(str, args)), **options}
    if script is not None:
        code = code_of(script, folder)
        asked |= {"files": _unpacked(code.bundle), "entrypoint": code.entrypoint, "key": key or new_id()}
        name = name or suggest_label(code.name)
    elif name is None:
        raise InvalidRequest("a job that runs a command of the image has a name of its own; give name=, or --name")
    return Manifests(written.of_job(ClusterJob(name=name, command=tuple(map(str, command)), **asked)))


def service(*models: str, engine: str, image: str, name: str | None = None, **options: Any) -> Manifests:
    """The manifest of a server of a workspace: a Deployment, or a RayCluster whose head serves.

    Args:
        models: What it serves, each under its name, e.g. `flowers@champion`.
        engine: `deployment`, or `kuberay` for a server with a Ray cluster for its jobs.
        image: With Python and `mms-sdk`; for `kuberay` with Ray as well.
        name: What it is called in the cluster; the first model's name if left out.
        options: The other fields of `ClusterService`, e.g. `claim="workspace", gpus=1, memory="16GiB"`.

    Raises:
        InvalidRequest: What is asked for could not run.

    Example:
        ```python
        import mms_sdk as mms

        print(mms.manifests.service("flowers@champion", engine="deployment", image="mms:1.0", claim="workspace"))
        ```
    """
    name = name or (suggest_label(parse_model_ref(models[0]).name) if models else "mms")
    asked: dict[str, Any] = {"name": name, "engine": engine, "image": image, "models": models, **options}
    return Manifests(written.of_service(ClusterService(**asked)))


def _unpacked(bundle: bytes) -> dict[str, str | bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: _text(archive.read(name)) for name in archive.namelist()}


def _text(content: bytes) -> str | bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return content if "\0" in text else text
