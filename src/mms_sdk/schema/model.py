"""Models: signature, version and lineage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mms_sdk.schema.base import Schema
from mms_sdk.schema.dataset import Column
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
        task: Name of what it was trained for.
        kind: Kind of input that `host` turns into the signature's input.
        columns: What a row is made of, as the training data has it, without the values of categories. Versions made
            before other kinds than pictures were have none.
        target: Name of the column that is answered; None where rows say themselves what the answer is.
        options: The task's own, e.g. `horizon` and `quantiles`, but for those that are code.
        host: Preprocessing before the device, as step specifications.
        device: Preprocessing inside the StableHLO program, for people to read.
        labels: Class names in order of the scores; none where the output is no score of classes.
        chosen_by: Which of its metrics said that it is the best of its run.
    """

    artifact_version: int = ARTIFACT_VERSION
    task: str
    kind: Literal["image", "text", "audio", "series", "embedding", "table"]
    columns: tuple[Column, ...] = ()
    target: str | None = "label"
    options: dict[str, Any] = {}
    signature: Signature
    host: tuple[dict[str, Any], ...]
    device: tuple[dict[str, Any], ...]
    labels: tuple[str, ...]
    metrics: dict[str, float]
    chosen_by: str | None = None
    lineage: Lineage
    platforms: tuple[str, ...]
    parameters: int
    created_at: str

    @property
    def ranks(self) -> bool:
        """Whether each output is one score for each label, so that classes can be ranked."""
        return bool(self.labels) and self.signature.outputs[0].shape == (len(self.labels),)


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
