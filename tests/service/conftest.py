"""One app of a workspace with a served model and a token of each role, asked without a network."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

import tiny_model
from asgi_calls import Lifespan, Service
from mms_sdk.schema.access import ROLES
from mms_sdk.service import server as server_module
from mms_sdk.service.app import create_app
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_model.made_once(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all requests."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def service(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, runner: asyncio.Runner) -> Iterator[Service]:
    """A server's app, with `tiny@1` deployed as `tiny` and the dataset `pets`."""
    workspace = Workspace(tmp_path_factory.mktemp("service") / "workspace")
    tiny_model.register(tiny, workspace)
    shutil.copytree(tiny.workspace / "datasets", workspace.root / "datasets")
    tokens = {role: workspace.catalog.tokens.issue(role, role) for role in ROLES}
    app = create_app(workspace, ServerSettings(wrong_tokens_burst=10**6))
    lifespan = Lifespan(app)
    runner.run(lifespan.begin())
    service = Service(app=app, workspace=workspace, tokens=tokens, runner=runner)
    made = service.ask("PUT", "/v1/deployments/tiny", json={"model": "tiny@1", "max_batch": 8})
    assert made.status == 200, made
    yield service
    runner.run(lifespan.end())
    workspace.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace."""
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    workspace.close()


@pytest.fixture
def at(empty: Workspace, service: Service) -> Iterator[Service]:
    """An app of an empty workspace."""
    app = create_app(empty)
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    yield replace(service, app=app, workspace=empty, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})
    service.runner.run(lifespan.end())


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    """A port on which the app of `service` answers."""
    announced: list[str] = []
    options = {"lifespan": "off", "log_level": "critical", "proxy_headers": False, "server_header": False}
    config = uvicorn.Config(service.app, host="127.0.0.1", port=0, **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "HEADERS_TIMEOUT_S", 1.0)
        patch.setattr(server_module, "UNREAD_TIMEOUT_S", 1.0)
        patch.setattr(server_module.gc, "freeze", lambda: None)  # the process of the tests goes on after it
        server = server_module._Server(
            config, lambda: announced.append(str(server.servers[0].sockets[0].getsockname()[1])), Streams()
        )
        thread = threading.Thread(target=server.run, name="test-server")
        thread.start()
        while not announced:
            assert thread.is_alive()
            time.sleep(0.01)
        yield int(announced[0])
        server.should_exit = True
        thread.join()
