"""`mms serve`: the app behind a socket, with a token it makes itself."""

from __future__ import annotations

import gc
import shlex
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mms_sdk.compute.inference.predictor import BUCKETS
from mms_sdk.errors import InvalidRequest, Unavailable
from mms_sdk.schema.names import parse_model_ref
from mms_sdk.service.app import create_app
from mms_sdk.service.connections import ACCEPTED_AT_ONCE, bounded, is_silent, most_connections
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.guard import App
from mms_sdk.service.listening import BehindProxy, Listening
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings, server_url
from mms_sdk.storage import files, job_tokens
from mms_sdk.storage.workspace import Workspace

TOKEN_FILE = "server.token"
_TOKEN_NAME = "server"
_WAITING = 2048
HEADERS_TIMEOUT_S = 10.0  # how long a connection may be open before the headers of its next request are complete
UNREAD_TIMEOUT_S = 10.0  # how long an answer may lie there of which the client takes nothing


def serve(
    workspace: Workspace,
    *,
    listening: Listening = Listening(),  # noqa: B008
    models: Sequence[str] = (),
    source_roots: Sequence[Path] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves a workspace until it is told to stop (SIGINT or SIGTERM, which drain).

    Args:
        workspace: What is served.
        listening: Where, and with TLS or not.
        models: References deployed under their model's name, besides what was deployed before.
        source_roots: Folders that ingests and bulk predictions may read.
        say: Told the address and where the token is.

    Raises:
        InvalidRequest: The certificate is none, or others can read its key; or `$MMS_URL` is none of a server.
        ModelNotFound, Damaged: A model that was named does not exist or is not what was registered.
        Unavailable: The port or socket is taken.
    """
    listening.check_tls()
    server_url()  # what it cannot be is said now, and not once models are loaded
    refs = [parse_model_ref(model) for model in models]
    if doubled := [name for name, times in Counter(ref.name for ref in refs).items() if times > 1]:
        raise InvalidRequest(f"each model is served once, under its name; got {doubled[0]!r} more than once")
    # Bound first, because loading models takes longer than being told that a port is taken.
    with listening.bound() as bound:
        for ref in refs:
            row = workspace.catalog.models.resolve(ref)
            workspace.artifact(row["artifact"], digest=row["digest"], what=f"model {row['model']}@{row['version']}")
            workspace.catalog.deployments.keep(
                ref.name, model=row["model"], version=row["version"], max_batch=BUCKETS[-1]
            )
        if kept := [name for name, *_ in workspace.catalog.deployments.list()]:
            say(f"loading and warming {', '.join(kept)} …")
        token = own_token(workspace)
        names = ServerSettings().allowed_hosts.union(listening.names)
        settings = ServerSettings(source_roots=tuple(source_roots), allowed_hosts=names)
        deployments = Deployments(workspace, settings, keep=True)
        streams = Streams()
        app: App = create_app(workspace, settings, deployments=deployments, streams=streams)
        if listening.proxies:
            app = BehindProxy(app, listening.proxies, only=not listening.secure)
        config = uvicorn.Config(
            app,
            loop="asyncio" if listening.secure else "auto",  # uvloop would read on where a handshake is to begin
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            ssl_certfile=listening.tls_cert,
            ssl_keyfile=listening.tls_key,
            timeout_graceful_shutdown=30,
            h11_max_incomplete_event_size=64 * 1024,
        )

        def announce() -> None:
            _announce(listening.address_of(bound), workspace, deployments, token, say)

        server = _Server(config, announce, streams)
        try:
            server.run([bound])
        finally:
            job_tokens.close_to_jobs(workspace.root)
        if not server.started:
            raise Unavailable(f"the server of {workspace.root} could not start; what is above says why")
        say("stopped; what had been asked was answered")


def own_token(workspace: Workspace) -> Path | None:
    """The file, readable by its owner only, with the token of this machine's server; made on first use.

    None if that token was rotated since, and is good: who did it has the new text, and the file is not touched.
    """
    path, tokens = workspace.root / TOKEN_FILE, workspace.catalog.tokens
    if path.is_file():
        if tokens.find(path.read_text().strip()):
            return path
        if tokens.is_good(_TOKEN_NAME):
            return None
    files.replace(path, tokens.issue(_TOKEN_NAME, "admin").encode() + b"\n")
    return path


def _announce(
    bound: str, workspace: Workspace, deployments: Deployments, token: Path | None, say: Callable[[str], None]
) -> None:
    if (url := server_url() or bound).startswith("http"):  # no job comes through a Unix socket
        job_tokens.open_to_jobs(workspace.root, url)
    say(f"MMS serves {workspace.root} at {bound}")
    way, socket_path = ("", "") if not bound.startswith("unix:") else ("--unix-socket ", bound.removeprefix("unix:"))
    asked = "http://localhost" if way else bound
    for each in deployments.list():
        say(f"  {each.name} ({each.model}@{each.version}): POST {asked}/v1/models/{each.name}:predict")
    if token is None:
        say(
            f"  the token {_TOKEN_NAME!r} was rotated, and {workspace.root / TOKEN_FILE} has its old text; write the "
            f"new one there, or delete the file: then there is another token, and the rotated one is worth nothing"
        )
        return
    say(f"  the token is in {token}; try:")
    what = f"{asked}/v1/deployments"
    if served := deployments.list():
        what = f"-H 'Content-Type: image/png' --data-binary @PICTURE.png {asked}/v1/models/{served[0].name}:predict"
    through = f"{way}{shlex.quote(socket_path)} " if way else ""
    say(f'  curl {through}-H "Authorization: Bearer $(cat {shlex.quote(str(token))})" {what}')


class _Server(uvicorn.Server):
    """A server that says where it listens, once it does, and does not wait for those who connect and say nothing."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams
        self._announce = announce
        self._silent: dict[Any, tuple[Any, float]] = {}
        self._unread: dict[Any, tuple[int, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True  # uvicorn would drain and then kill the process by it, which looks like a failure
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        tls, self.config.ssl = self.config.ssl, None  # the connections see to it themselves
        if tls is not None:
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self.config.http_protocol_class = bounded(self.config.http_protocol_class, most_connections(), tls)
        await super().startup(sockets)
        # The libraries and models loaded by now stay until the end. Looking through them for garbage over and over
        # would hold every request up for a tenth of a second each time.
        gc.collect()
        gc.freeze()
        if self.started:
            for listening in sockets or ():
                listening.listen(_WAITING)  # they may be many while few are accepted at a time
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.drain()  # they would be waited for as requests that are not answered yet
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._close_silent()
            self._abort_unread()
        return await super().on_tick(counter)

    def _close_silent(self) -> None:
        # uvicorn waits for the headers of a request as long as they take; enough connections that send none would keep
        # everybody else out. One with the same finished request as before, or none, has been silent since then.
        now, before, self._silent = time.monotonic(), self._silent, {}
        for connection in self.server_state.connections:
            if not is_silent(connection):
                continue
            request = getattr(connection, "cycle", None)
            seen, since = before.get(connection, (None, now))
            self._silent[connection] = (request, since if seen is request else now)
            if now - self._silent[connection][1] > HEADERS_TIMEOUT_S:
                connection.transport.close()

    def _abort_unread(self) -> None:
        # uvicorn waits for whoever is to read an answer as long as that takes, a stream's too, and meanwhile the
        # connection is one that is being answered, which nothing else ends.
        now, before, self._unread = time.monotonic(), self._unread, {}
        connections: set[Any] = self.server_state.connections
        for connection in connections:
            size = connection.wire.get_write_buffer_size()
            if not size:
                continue
            seen, since = before.get(connection, (size, now))
            self._unread[connection] = (size, now if size < seen else since)
            if now - self._unread[connection][1] > UNREAD_TIMEOUT_S:
                connection.wire.abort()
