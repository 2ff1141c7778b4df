"""One app of a workspace with a served model and a token of each role, asked without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import tiny_model
from asgi_calls import Answer, Headers, Lifespan, ask
from tiny_model import Tiny

from mms_sdk.schema.access import ROLES
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Service:
    """An app and who may ask it."""

    app: Any
    workspace: Workspace
    tokens: dict[str, str]
    runner: asyncio.Runner

    def ask(
        self,
        method: str,
        path: str,
        *,
        role: str | None = "admin",
        json: Any = None,
        headers: Headers = (),
        body: Any = b"",
    ) -> Answer:
        """Sends a request as somebody of a role."""
        return self.runner.run(self.asking(method, path, role=role, json=json, headers=headers, body=body))

    async def asking(
        self,
        method: str,
        path: str,
        *,
        role: str | None = "admin",
        json: Any = None,
        headers: Headers = (),
        body: Any = b"",
    ) -> Answer:
        """The same, to await."""
        sent = list(headers)
        names = {name.lower() for name, _ in sent}
        if "host" not in names:
            sent.append(("host", "localhost"))
        if role is not None:
            sent.append(("authorization", f"Bearer {self.tokens[role]}"))
        if json is not None:
            body = orjson.dumps(json)
            if "content-type" not in names:
                sent.append(("content-type", "application/json"))
        return await ask(self.app, method, path, headers=sent, body=body)

    def but(self, **settings: Any) -> Service:
        """The same workspace behind an app with other settings; nothing is deployed there."""
        return replace(self, app=create_app(self.workspace, ServerSettings(**settings)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_model.made_once(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def service(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server's app, with `tiny@1` deployed as `tiny`."""
    workspace = Workspace(tmp_path_factory.mktemp("service") / "workspace")
    tiny_model.register(tiny, workspace)
    tokens = {role: workspace.catalog.tokens.issue(role, role) for role in ROLES}
    app = create_app(workspace, ServerSettings())
    with asyncio.Runner() as runner:
        lifespan = Lifespan(app)
        runner.run(lifespan.__aenter__())
        found = Service(app=app, workspace=workspace, tokens=tokens, runner=runner)
        made = found.ask("PUT", "/v1/deployments/tiny", json={"model": "tiny@1", "max_batch": 8})
        assert made.status == 200, made
        yield found
        runner.run(lifespan.__aexit__())
    workspace.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace."""
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    workspace.close()
