"""Functions that run as jobs: `@mms.remote(cpus=1)`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mms_sdk.client.code import Code
from mms_sdk.client.jobs import Job
from mms_sdk.client.workspace import WorkspaceClient, connect
from mms_sdk.compute.call import ARGUMENTS, module_of
from mms_sdk.compute.functions import text_of
from mms_sdk.compute.values import pack
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import EngineName, Resources, Retry
from mms_sdk.schema.quota import DEFAULT_PROJECT
from mms_sdk.storage import bundles


class RemoteFunction:
    """A function that runs here when it is called, and as a job when it is submitted.

    It travels as its text: of what is around it only modules come along, imported again. Arguments and what it returns
    are None, truth values, numbers, texts, lists, tuples, dictionaries by text, and arrays.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options

    def __repr__(self) -> str:
        return f"<remote function {self._function.__name__}{inspect.signature(self._function)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it here."""
        return self._function(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Job:
        """Calls it in a job of the workspace that `connect()` opens; `job.value()` is what it returns.

        Raises:
            InvalidRequest: It does not take these arguments, needs what is around it, or they are nothing that travels.
        """
        return self.submit_to(connect(), *args, **kwargs)

    def submit_to(self, workspace: WorkspaceClient, /, *args: Any, **kwargs: Any) -> Job:
        """Likewise in a job of another workspace."""
        name = self._function.__name__
        try:
            inspect.signature(self._function).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidRequest(f"{name} is called with what it takes; {self!r}: {error}") from error
        files = {
            f"{name}.py": module_of(name, text_of(self._function)).encode(),
            ARGUMENTS: pack((args, kwargs), what=f"the arguments of {name}"),
        }
        folder = _folder_of(self._function)
        code = Code(kind="function", name=name[:63], entrypoint=f"{name}.py", bundle=bundles.pack(files), folder=folder)
        return workspace.jobs.submit(code, **self._options)


def _folder_of(function: Callable[..., Any]) -> Path:
    # That of its file; a notebook's cells lie in none that is there.
    path = Path(inspect.getfile(function))
    return path.parent if path.is_file() else Path()


def remote(
    *,
    on: EngineName = "local",
    nodes: int = 1,
    processes: int = 1,
    cpus: int | None = None,
    gpus: int | None = None,
    memory: int | str | None = None,
    time: float | str | None = None,
    mesh: Mapping[str, int] | None = None,
    retry: Retry | None = None,
    environment: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    requirements: Sequence[str] = (),
    priority: int = 0,
    preemptible: bool = False,
    project: str = DEFAULT_PROJECT,
) -> Callable[[Callable[..., Any]], RemoteFunction]:
    """Makes of a function one that can be submitted as a job.

    Args:
        on: The engine that runs it: `local` or `ray`.
        nodes: Machines; what else is asked for is of each of them.
        processes: On each node, as one `jax.distributed` cluster; the first one's value is the job's.
        cpus: Cores it takes; all if left out.
        gpus: GPUs it takes; all if left out.
        memory: Most it may hold, e.g. `8GB`, or bytes.
        time: Most an attempt may take, e.g. `2h`, or seconds.
        mesh: What trainers in it take for their mesh that name none.
        retry: When it is tried again.
        environment: Variables that it sees beside the usual ones.
        secrets: Names of secrets that it sees as variables, too.
        requirements: Packages that it needs beside those of the interpreter, e.g. `["einops>=0.8"]`.
        priority: Of those that wait, the highest is next.
        preemptible: Whether it is stopped, and waits again, where one of a higher priority finds no room.
        project: Whose quota it counts against.

    Raises:
        InvalidRequest: The resources do not fit.

    Example:
        ```python
        import mms_sdk as mms

        @mms.remote(cpus=1)
        def total(numbers):
            return sum(numbers)

        job = total.submit([1, 2, 3])
        job.value()  # 6, once it is done
        ```
    """
    asked: dict[str, Any] = {"cpus": cpus, "gpus": gpus, "memory": memory, "time": time}
    options = {
        "on": on,
        "resources": Resources(nodes=nodes, processes=processes, **asked),
        "mesh": mesh,
        "retry": retry,
        "environment": environment,
        "secrets": secrets,
        "requirements": requirements,
        "priority": priority,
        "preemptible": preemptible,
        "project": project,
    }
    return lambda function: RemoteFunction(function, options)
