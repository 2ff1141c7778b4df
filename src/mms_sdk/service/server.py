"""`mms serve`: the app on a loopback port, with a token it makes itself."""

from __future__ import annotations

import gc
import ipaddress
import shlex
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mms_sdk.compute.inference.predictor import BUCKETS
from mms_sdk.errors import InvalidRequest, Unavailable
from mms_sdk.schema.names import parse_model_ref
from mms_sdk.service.app import create_app
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings, server_url
from mms_sdk.storage import files, job_tokens
from mms_sdk.storage.workspace import Workspace

TOKEN_FILE = "server.token"
HEADERS_TIMEOUT_S = 10.0  # how long a connection may be open before the headers of its next request are complete


def serve(
    workspace: Workspace,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    models: Sequence[str] = (),
    source_roots: Sequence[Path] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves a workspace until it is told to stop (SIGINT or SIGTERM, which drain).

    Args:
        workspace: What is served.
        host: A loopback address; others need TLS and users, which come with a later version.
        port: Where to listen; 0 for any free port.
        models: References deployed under their model's name, besides what was deployed before.
        source_roots: Folders that ingests and bulk predictions may read.
        say: Told the address and where the token is.

    Raises:
        InvalidRequest: The host is not a loopback address, or `$MMS_URL` is none of a server.
        ModelNotFound, Damaged: A model that was named does not exist or is not what was registered.
        Unavailable: The port is taken.
    """
    _check_loopback(host)
    server_url()  # what it cannot be is said now, and not once models are loaded
    refs = [parse_model_ref(model) for model in models]
    if doubled := [name for name, times in Counter(ref.name for ref in refs).items() if times > 1]:
        raise InvalidRequest(f"each model is served once, under its name; got {doubled[0]!r} more than once")
    # Bound first, because loading models takes longer than being told that a port is taken.
    with _bind(host, port) as listening:
        for ref in refs:
            row = workspace.catalog.models.resolve(ref)
            workspace.artifact(row["artifact"], digest=row["digest"], what=f"model {row['model']}@{row['version']}")
            workspace.catalog.deployments.keep(
                ref.name, model=row["model"], version=row["version"], max_batch=BUCKETS[-1]
            )
        if kept := [name for name, *_ in workspace.catalog.deployments.list()]:
            say(f"loading and warming {', '.join(kept)} …")
        token = own_token(workspace)
        settings = replace(ServerSettings(), source_roots=tuple(source_roots))
        deployments = Deployments(workspace, settings, keep=True)
        streams = Streams()
        app = create_app(workspace, settings, deployments=deployments, streams=streams)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="on",
            limit_concurrency=1024,
            timeout_graceful_shutdown=30,
            h11_max_incomplete_event_size=64 * 1024,
        )
        server = _Server(config, lambda bound: _announce(bound, workspace, deployments, token, say), streams)
        try:
            server.run([listening])
        finally:
            job_tokens.close_to_jobs(workspace.root)
        if not server.started:
            raise Unavailable(f"the server of {workspace.root} could not start; what is above says why")
        say("stopped; what had been asked was answered")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended does not hold it
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise Unavailable(
            f"a server needs a free port from 1 to 65535, or 0 for any; {host}:{port} is taken or not allowed "
            f"({error}); choose another with --port"
        ) from error
    return bound


def own_token(workspace: Workspace) -> Path:
    """The file, readable by its owner only, with the token of this machine's server; made on first use."""
    path = workspace.root / TOKEN_FILE
    if path.is_file() and workspace.catalog.tokens.find(path.read_text().strip()):
        return path
    files.replace(path, workspace.catalog.tokens.issue("server", "admin").encode() + b"\n")
    return path


def _announce(
    bound: str, workspace: Workspace, deployments: Deployments, token: Path, say: Callable[[str], None]
) -> None:
    job_tokens.open_to_jobs(workspace.root, server_url() or bound)
    say(f"MMS serves {workspace.root} at {bound}")
    for each in deployments.list():
        say(f"  {each.name} ({each.model}@{each.version}): POST {bound}/v1/models/{each.name}:predict")
    say(f"  the token is in {token}; try:")
    what = f"{bound}/v1/deployments"
    if served := deployments.list():
        what = f"-H 'Content-Type: image/png' --data-binary @PICTURE.png {bound}/v1/models/{served[0].name}:predict"
    say(f'  curl -H "Authorization: Bearer $(cat {shlex.quote(str(token))})" {what}')


def _check_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidRequest(
            f"without TLS a server listens on a loopback address; got {host!r}; use 127.0.0.1, and a reverse proxy or "
            f"an SSH tunnel to reach it from elsewhere"
        )


class _Server(uvicorn.Server):
    """A server that says where it listens, once it does, and does not wait for those who connect and say nothing."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None], streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams
        self._announce = announce
        self._silent: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True  # uvicorn would drain and then kill the process by it, which looks like a failure
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The libraries and models loaded by now stay until the end. Looking through them for garbage over and over
        # would hold every request up for a tenth of a second each time.
        gc.collect()
        gc.freeze()
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.drain()  # they would be waited for as requests that are not answered yet
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._close_silent()
        return await super().on_tick(counter)

    def _close_silent(self) -> None:
        # uvicorn waits for the headers of a request as long as they take; enough connections that send none would keep
        # everybody else out. One with the same finished request as before, or none, has been silent since then.
        now, before, self._silent = time.monotonic(), self._silent, {}
        for connection in self.server_state.connections:
            request = getattr(connection, "cycle", None)
            if request is not None and not request.response_complete:
                continue
            seen, since = before.get(connection, (None, now))
            self._silent[connection] = (request, since if seen is request else now)
            if now - self._silent[connection][1] > HEADERS_TIMEOUT_S:
                connection.transport.close()
