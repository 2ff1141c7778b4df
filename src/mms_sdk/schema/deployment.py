"""Deployments: a version served under a name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mms_sdk.schema.base import Schema
from mms_sdk.schema.model import Signature
from mms_sdk.schema.names import Name

DeploymentState = Literal["warming", "ready", "failed"]


class CreateDeployment(Schema):
    """Asks for a model version to be served under a name; an existing deployment is switched over.

    Attributes:
        model: Reference, e.g. `flowers@champion`.
        max_batch: Rows computed at once.
    """

    model: str
    max_batch: int = Field(default=64, ge=1, le=64)


class Deployment(Schema):
    """A deployment as the API shows it.

    Attributes:
        buckets: Batch sizes with a compiled program.
        compiles_after_ready: Programs compiled while serving; stays 0.
    """

    name: Name
    model: Name
    version: int
    state: DeploymentState
    signature: Signature
    labels: tuple[str, ...]
    buckets: tuple[int, ...]
    requests: int
    rows: int
    compiles_after_ready: int
    ready_after_s: float
