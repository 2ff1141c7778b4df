"""Models: registering what was trained, and looking at versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mms_sdk import html
from mms_sdk.client.api import Api
from mms_sdk.client.evaluations import Evaluation, listed
from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.lineage import MODEL
from mms_sdk.schema.model import ModelCard
from mms_sdk.schema.model import ModelVersion as VersionRecord
from mms_sdk.schema.names import check_name, parse_model_ref
from mms_sdk.storage.workspace import Workspace

_SPLITS = {"test": 0, "val": 1, "train": 2}


class Exportable(Protocol):
    """What can be registered: a trained checkpoint, such as `result.best`."""

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        """Writes a sealed artefact into an empty folder."""


class ModelVersion:
    """One immutable version of a model."""

    def __init__(self, api: Api, record: VersionRecord) -> None:
        self._api = api
        self.record = record

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        what = f"{len(self.labels)} classes" if self.labels else self.record.card.task
        return f"<model {self.ref}: {what}; {told}>"

    def _repr_html_(self) -> str:
        return html.facts(f"model {self.ref}", self.facts())

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        card = self.record.card
        return {
            "model": self.ref,
            **{name: f"{value:.4f}" for name, value in self.metrics.items()},
            "aliases": ", ".join(self.record.aliases) or "–",
            "classes": ", ".join(card.labels),
            "trained on": card.lineage.dataset,
            "trained by": f"job {card.lineage.job}, step {card.lineage.step}",
            "parameters": f"{card.parameters:,}",
            "input": f"{card.kind} {card.signature.inputs[0].shape}",
            "size": f"{self.record.bytes / 2**20:.2f} MiB",
            "location": self.record.location,
        }

    @property
    def ref(self) -> str:
        """e.g. `flowers@3`."""
        return f"{self.record.model}@{self.record.version}"

    @property
    def reference(self) -> str:
        """By which jobs name what they read, e.g. `model:flowers@3`."""
        return f"{MODEL}{self.ref}"

    @property
    def model(self) -> str:
        """The model's name."""
        return self.record.model

    @property
    def version(self) -> int:
        """From 1."""
        return self.record.version

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of the scores."""
        return self.record.card.labels

    @property
    def metrics(self) -> dict[str, float]:
        """As they were registered."""
        return self.record.card.metrics

    @property
    def evaluations(self) -> Table[Evaluation]:
        """What was measured of it, newest first."""
        path = f"/v1/models/{self.model}/versions/{self.version}/evaluations"
        return listed(self._api, self._api.get(path, list[JobRecord]), title=f"evaluations of {self.ref}")

    @property
    def location(self) -> Path:
        """Where the artefact lies."""
        return Path(self.record.location)


def ref_of(model: str | ModelVersion) -> str:
    """The reference of a version, or the reference itself."""
    return model.ref if isinstance(model, ModelVersion) else model


class Models:
    """All models of a workspace."""

    def __init__(self, api: Api, workspace: Workspace | None) -> None:
        self._api = api
        self._workspace = workspace

    def list(self, name: str | None = None) -> Table[ModelVersion]:
        """Versions, newest first: of one model, or of all.

        Raises:
            ModelNotFound: There is no model of that name.
        """
        path = "/v1/models" if name is None else f"/v1/models/{check_name(name, what='model')}/versions"
        found = [ModelVersion(self._api, record) for record in self._api.get(path, list[VersionRecord])]
        return Table(found, title="models", rows=map(_row, found))

    def get(self, ref: str) -> ModelVersion:
        """A version by reference: `flowers` (newest), `flowers@3`, `flowers@champion`.

        Raises:
            ModelNotFound: There is none.
        """
        asked = parse_model_ref(ref)
        version = "newest" if asked.version is None else asked.version
        return ModelVersion(self._api, self._api.get(f"/v1/models/{asked.name}/versions/{version}", VersionRecord))

    def register(self, name: str, trained: Exportable, *, metrics: Mapping[str, float] | None = None) -> ModelVersion:
        """Makes a trained checkpoint the next version of a model.

        The version is visible once its artefact is complete, verified byte by byte and shown to load.

        Args:
            name: The model.
            trained: e.g. `result.best`; a result stands for its best checkpoint.
            metrics: Kept with it, besides those of its epoch; e.g. `result.evaluate("test")`.

        Raises:
            StorageFull, NotWritable: It cannot be written; there is no new version.
            InvalidRequest: The workspace is a server's.
        """
        check_name(name, what="model")
        if not hasattr(trained, "export"):
            raise InvalidRequest(f"a trained checkpoint is registered, e.g. result.best; got {trained!r}")
        if self._workspace is None:
            raise InvalidRequest(
                "a version is registered from the process that trained it, into this machine's workspace; this one is "
                "a server's; use mms.connect() without a URL"
            )
        staged, folder = self._workspace.stage()
        trained.export(folder, metrics=metrics)
        asked = {"staged": staged}
        return ModelVersion(self._api, self._api.send("POST", f"/v1/models/{name}/versions", VersionRecord, asked))

    def alias(self, name: str, alias: str, version: ModelVersion | int) -> ModelVersion:
        """Points an alias, e.g. `champion`, at a version.

        Raises:
            ModelNotFound: There is no such version.
        """
        check_name(name, what="model")
        check_name(alias, what="alias")
        number = version.version if isinstance(version, ModelVersion) else version
        path = f"/v1/models/{name}/aliases/{alias}"
        return ModelVersion(self._api, self._api.send("PUT", path, VersionRecord, {"version": number}))


def _row(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.ref,
        "aliases": " ".join(version.record.aliases),
        "metrics": ", ".join(f"{name} {version.metrics[name]:.4g}" for name in _telling(version.record.card)),
        "task": version.record.card.task,
        "classes": len(version.labels) or "",
        "trained on": version.record.card.lineage.dataset,
        "size": f"{version.record.bytes / 2**20:.2f} MiB",
        "created": version.record.created_at[:19],
    }


def _telling(card: ModelCard) -> tuple[str, ...]:
    # What it was chosen by, or else the first; and what tells more than a loss, of the rows looked at least.
    names = [*card.metrics]
    chosen = card.chosen_by if card.chosen_by in names else next(iter(names), None)
    others = sorted((name for name in names if not name.endswith("/loss")), key=_split_of)
    return tuple(dict.fromkeys(name for name in (chosen, *others[:1]) if name is not None))


def _split_of(metric: str) -> int:
    return _SPLITS.get(metric.partition("/")[0], len(_SPLITS))
