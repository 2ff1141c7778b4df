"""One workspace reached in both ways at once: embedded in this process, and through a real HTTP server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from over_http import serving

import mms_sdk as mms
import tiny_model
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_model.made_once(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def readable(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that the server may read sources below."""
    folder = tmp_path_factory.mktemp("readable")
    shutil.copytree(tiny.photos, folder / "photos")
    return folder


@pytest.fixture(scope="session")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace folder with the dataset `pets`, and the model `tiny` in two versions."""
    workspace = Workspace(tmp_path_factory.mktemp("client") / "workspace")
    shutil.copytree(tiny.workspace / "datasets", workspace.root / "datasets")
    assert [tiny_model.register(tiny, workspace) for _ in range(2)] == [1, 2]
    workspace.close()
    return workspace.root


@pytest.fixture(scope="session")
def embedded(folder: Path) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=folder) as ws:
        yield ws


@pytest.fixture(scope="session")
def over_http(folder: Path, readable: Path) -> Iterator[mms.WorkspaceClient]:
    workspace = Workspace(folder)
    token = workspace.catalog.tokens.issue("tests", "admin")
    app = create_app(workspace, ServerSettings(source_roots=(readable,)))
    with serving(app) as url, mms.connect(url, token=token) as ws:
        yield ws
    workspace.close()


@pytest.fixture(params=["embedded", "over_http"])
def ws(request: pytest.FixtureRequest) -> mms.WorkspaceClient:
    """The workspace, once each way."""
    found: mms.WorkspaceClient = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def both(embedded: mms.WorkspaceClient, over_http: mms.WorkspaceClient) -> tuple[mms.WorkspaceClient, ...]:
    """The same workspace both ways."""
    return embedded, over_http
