"""A cluster from outside: `python -m mms_sdk.compute.engines.ray.door ADDRESS` is a process that is connected to it.

Ray ends a process that has lost its cluster for a minute, and a process is connected to one cluster at a time. Neither
is to befall a server, or a notebook that uses Ray itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from mms_sdk.compute.engines.ray.cluster import NAMESPACE, Cluster, Connected, Node, as_json
from mms_sdk.errors import InvalidRequest, MissingExtra, Unavailable
from mms_sdk.settings import RAY_OPEN_VARIABLE, RAY_VARIABLE, ray_may_be_open

MODULE = "mms_sdk.compute.engines.ray.door"
_LISTENS_WITHIN_S = 2.0
_OPENED_WITHIN_S = 90.0
_ANSWERED_WITHIN_S = 30.0
_AGAIN_AFTER_S = 5.0  # what cannot be reached is not asked more often
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_KNOCK = f"import sys; from {MODULE} import opens; print(opens(sys.argv[1]))"


class Door:
    """A cluster, by its address; see `Cluster`. The process is started when it is first needed, and anew once it ended.

    Args:
        address: `host:port` of its head.

    Raises:
        InvalidRequest: It is no such address.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not port.isdecimal():
            raise InvalidRequest(
                f"a Ray cluster is host:port of its head, of which this machine is a node, e.g. 10.0.0.5:6379; got "
                f"{address[:100]!r}; set ${RAY_VARIABLE} to that"
            )
        self._address = address
        self._asking = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed: Callable[[], object] = lambda: None
        self._shut_until = 0.0
        self._why = ""

    def nodes(self) -> list[Node]:
        """See `Cluster`."""
        return [Node(**each) for each in self._ask("nodes")]

    def start(self, actor: str, folder: str, variables: Mapping[str, str]) -> None:
        """See `Cluster`."""
        self._ask("start", actor, folder, dict(variables))

    def says(self, actor: str) -> str | None:
        """See `Cluster`."""
        said: str | None = self._ask("says", actor)
        return said

    def stop(self, actor: str) -> None:
        """See `Cluster`."""
        self._ask("stop", actor)

    def close(self) -> None:
        """Ends the process; what runs in the cluster goes on."""
        with self._asking:
            self._closed()
            self._process = None

    def _ask(self, what: str, *words: Any) -> Any:
        with self._asking:
            process = self._opened()
            answer = _answer(process, [what, *words], _ANSWERED_WITHIN_S)
            if answer is None:
                raise self._shut("it does not answer")
        if "error" in answer:
            raise Unavailable(f"the Ray cluster at {self._address} cannot do it: {answer['error']}")
        return answer["value"]

    def _opened(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if time.monotonic() < self._shut_until:
            raise Unavailable(self._why)
        if not _listens(self._address):
            raise self._shut("nothing listens there")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # an interrupt in a terminal is not for it
        )
        self._closed()  # of one that has ended
        self._process = process
        self._closed = weakref.finalize(self, _end, process)
        answer = _answer(process, None, _OPENED_WITHIN_S)
        if answer is None:
            raise self._shut("nothing answers there")
        if "missing" in answer:
            raise MissingExtra("ray", extra="ray")
        if "error" in answer:
            raise self._shut(answer["error"])
        return process

    def _shut(self, why: str) -> Unavailable:
        self._closed()
        self._process = None
        self._why = f"the Ray cluster at {self._address} cannot be used: {why}"
        self._shut_until = time.monotonic() + _AGAIN_AFTER_S
        return Unavailable(self._why)


def _listens(address: str) -> bool:
    # Ray itself would take half a minute to find out.
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENS_WITHIN_S).close()
    except (OSError, OverflowError):
        return False
    return True


def _answer(process: subprocess.Popen[str], asked: Any, within_s: float) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if asked is not None:
            process.stdin.write(f"{json.dumps(asked)}\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], within_s)[0]:
            return None
        line = process.stdout.readline()
    except OSError:  # it has ended
        return None
    return json.loads(line) if line else None


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not written is for nobody any more
                stream.close()
    process.kill()
    process.wait()


def main(address: str) -> None:
    """Opens the door to a cluster, and passes on what it is asked for until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer

    def say(**told: Any) -> None:
        answers.write(f"{json.dumps(told)}\n")
        answers.flush()

    try:
        import ray
    except ImportError:
        return say(missing="ray")
    try:
        if why := _unsafe(address):
            return say(error=why)
        if not opens(address):
            return say(
                error="it does not take our token; RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH name the cluster's own"
            )
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001 (whatever it is, the one who asked is told)
        return say(error=_told(error))
    say(value=None)
    cluster = Connected()
    for line in sys.stdin:
        what, *words = json.loads(line)
        try:
            say(value=_done(cluster, what, words))
        except Exception as error:  # noqa: BLE001
            say(error=_told(error))
    return None


def opens(address: str) -> bool:
    """Whether a cluster answers this process, with the token that it has, or without one."""
    import ray.exceptions
    from ray import _raylet

    of_ray: Any = _raylet
    refused = getattr(ray.exceptions, "AuthenticationError", ())  # older versions ask for no token
    try:
        of_ray.GcsClient(address=address).internal_kv_keys(b"", timeout=_LISTENS_WITHIN_S * 10)
    except refused:
        return False
    return True


def _done(cluster: Cluster, what: str, words: list[Any]) -> Any:
    value = getattr(cluster, what)(*words)
    return as_json(value) if what == "nodes" else value


def _unsafe(address: str) -> str:
    # Whoever reaches a Ray without tokens runs what he likes on it.
    seen = {name: value for name, value in os.environ.items() if name not in _TOKEN_VARIABLES}
    knock = [sys.executable, "-c", _KNOCK, address]
    tried = subprocess.run(
        knock,
        env={**seen, "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = tried.stdout.split()[-1:]
    if said == ["False"]:
        return ""
    if said != ["True"]:
        return "nothing that is Ray answers there"
    if ray_may_be_open() and _is_private(address):
        return ""
    return (
        "it opens to anybody, without a token; start it with RAY_AUTH_MODE=token and a token file that only you read; "
        f"a cluster that nobody else reaches, on a private network, may be used as it is with ${RAY_OPEN_VARIABLE}=1"
    )


def _is_private(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(each).is_private for each in found)


def _told(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"[:1000]
    token = os.environ.get("RAY_AUTH_TOKEN")
    return text.replace(token, "…") if token else text


if __name__ == "__main__":
    main(sys.argv[1])
