"""Models: signature, version and lineage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mms_sdk.schema.base import Schema
from mms_sdk.schema.names import Name

ARTIFACT_VERSION = 1


class TensorSpec(Schema):
    """One named tensor.

    Attributes:
        shape: Without the batch dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Signature(Schema):
    """What goes in and what comes out; both have a leading batch dimension that is not written here."""

    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)


class Lineage(Schema):
    """Where a version came from.

    Attributes:
        dataset: Reference with its snapshot number.
        job: Training job.
        step: Optimiser step of the checkpoint.
        packages: Versions of the libraries that made it.
        trainer: The options it was trained with.
    """

    dataset: str
    job: str
    step: int
    packages: dict[str, str] = {}
    trainer: dict[str, Any] = {}


class ModelCard(Schema):
    """The content of an artefact's `model.json`: everything needed to serve it but the weights.

    Attributes:
        kind: Kind of input that `host` turns into the signature's input.
        host: Preprocessing before the device, as step specifications.
        device: Preprocessing inside the StableHLO program, for people to read.
        labels: Class names in order of the scores.
    """

    artifact_version: int = ARTIFACT_VERSION
    task: Literal["classification"]
    kind: Literal["image"]
    signature: Signature
    host: tuple[dict[str, Any], ...]
    device: tuple[dict[str, Any], ...]
    labels: tuple[str, ...]
    metrics: dict[str, float]
    lineage: Lineage
    platforms: tuple[str, ...]
    parameters: int
    created_at: str


class ModelVersion(Schema):
    """One immutable, verified version of a model as the API shows it."""

    model: Name
    version: int
    created_at: str
    artifact: str
    bytes: int
    aliases: tuple[str, ...] = ()
    card: ModelCard
    location: str


class RegisterVersion(Schema):
    """Asks for a staged artefact to become the next version."""

    staged: str = Field(pattern=r"^[0-9A-Z]{26}$")


class SetAlias(Schema):
    """Asks for an alias to point at a version."""

    version: int = Field(ge=1, le=99_999_999)
