"""The tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_model
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_model.made_once(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="session")
def predictor(tiny: Tiny) -> Predictor:
    """The tiny model, ready, for batches of 1, 2, 3 and 5."""
    return Predictor(tiny.artifact, buckets=(1, 2, 3, 5))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A new workspace."""
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    workspace.close()
