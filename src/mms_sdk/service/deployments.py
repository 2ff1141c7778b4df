"""Deployments: model versions loaded, warmed and answering under a name."""

from __future__ import annotations

import bisect
import logging
import threading
import time
from dataclasses import dataclass

from mms_sdk.compute.inference.batcher import Batcher
from mms_sdk.compute.inference.dispatcher import Dispatcher
from mms_sdk.compute.inference.predictor import BUCKETS, Predictor
from mms_sdk.errors import DeploymentNotFound, MmsError
from mms_sdk.schema.deployment import Deployment
from mms_sdk.schema.names import ModelRef, parse_model_ref
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace

CLOSE_WITHIN_S = 30.0
"""How long answering what is queued may take, when a deployment or the application ends."""

_EXPLAINED_AT_ONCE = 8
"""Rows of a batch for an explanation: small, as a prediction that comes meanwhile waits for it."""

_log = logging.getLogger("mms.service")


@dataclass(frozen=True)
class Served:
    """One version, ready."""

    name: str
    model: str
    version: int
    predictor: Predictor
    batcher: Batcher
    explainer: Batcher

    def close(self, timeout_s: float) -> bool:
        """Answers what is queued; says whether all was within a time."""
        until = time.monotonic() + timeout_s
        return self.batcher.close(timeout_s) and self.explainer.close(max(0.0, until - time.monotonic()))

    def told(self) -> Deployment:
        """As the API shows it."""
        card = self.predictor.card
        return Deployment(
            name=self.name,
            model=self.model,
            version=self.version,
            state="ready",
            signature=card.signature,
            labels=card.labels,
            buckets=self.predictor.buckets,
            requests=self.batcher.counts.requests,
            rows=self.batcher.counts.rows,
            compiles_after_ready=self.predictor.compiles_after_ready,
            ready_after_s=round(self.predictor.ready_after_s, 3),
        )


class Deployments:
    """What this process serves.

    Args:
        workspace: Where the versions lie.
        settings: Limits.
        keep: Record deployments, so that the next server brings them back. An embedded workspace's end with it.
    """

    def __init__(self, workspace: Workspace, settings: ServerSettings, *, keep: bool) -> None:
        self._workspace = workspace
        self._settings = settings
        self._keep = keep
        self._served: dict[str, Served] = {}
        self._dispatcher = Dispatcher()
        self._changing = threading.Lock()

    def put(self, name: str, ref: ModelRef, *, max_batch: int = BUCKETS[-1]) -> Deployment:
        """Serves a version under a name; returns once it is warm. An earlier version answers until then.

        Raises:
            ModelNotFound: There is no such version.
            Damaged: Its artefact is not what was registered.
        """
        with self._changing:
            row = self._workspace.catalog.models.resolve(ref)
            what = f"model {row['model']}@{row['version']}"
            folder = self._workspace.artifact(row["artifact"], digest=row["digest"], what=what)
            buckets = (*BUCKETS[: bisect.bisect_left(BUCKETS, max_batch)], max_batch)
            predictor = Predictor(folder, buckets=buckets, max_pixels=self._settings.max_pixels)
            batcher = Batcher(
                predictor.scores,
                sizes=predictor.buckets,
                max_queue_rows=self._settings.max_queue_rows,
                name=name,
                dispatcher=self._dispatcher,
            )
            explainer = Batcher(
                predictor.scores,
                sizes=predictor.buckets[: bisect.bisect_right(predictor.buckets, _EXPLAINED_AT_ONCE)] or (1,),
                max_queue_rows=_EXPLAINED_AT_ONCE * self._settings.max_explanations,
                name=name,
                dispatcher=self._dispatcher,
                background=True,
            )
            before = self._served.get(name)
            self._served[name] = Served(name, row["model"], row["version"], predictor, batcher, explainer)
            if self._keep:
                self._workspace.catalog.deployments.keep(
                    name, model=row["model"], version=row["version"], max_batch=max_batch
                )
            if before is not None:
                before.close(CLOSE_WITHIN_S)
            return self._served[name].told()

    def get(self, name: str) -> Served:
        """What is served under a name.

        Raises:
            DeploymentNotFound: Nothing is.
        """
        try:
            return self._served[name]
        except KeyError as error:
            raise DeploymentNotFound(
                f"nothing is deployed as {name!r}; deployed are {sorted(self._served) or 'none'}; deploy it with "
                f"ws.deployments.create({name!r}, model=…) or: mms serve {name}"
            ) from error

    def load(self, name: str, version: str | None = None) -> Deployment:
        """Serves a version of the model that is served under a name, or of the model of that name.

        Args:
            name: Of a deployment or a model.
            version: A number or an alias; None for the newest.

        Raises:
            ModelNotFound: There is none.
            Damaged: Its artefact is not what was registered.
        """
        served = self._served.get(name)
        model = name if served is None else served.model
        max_batch = BUCKETS[-1] if served is None else served.batcher.max_batch_rows
        ref = parse_model_ref(model if version is None else f"{model}@{version}")
        return self.put(name, ref, max_batch=max_batch)

    def newest_versions(self) -> dict[str, int]:
        """The newest version of each registered model."""
        newest: dict[str, int] = {}
        for row in self._workspace.catalog.models.list():
            newest[row["model"]] = max(row["version"], newest.get(row["model"], 0))
        return newest

    def served(self) -> list[Served]:
        """All that is served, by name."""
        return [self._served[name] for name in sorted(self._served)]

    def list(self) -> list[Deployment]:
        """All deployments by name."""
        return [served.told() for served in self.served()]

    def remove(self, name: str) -> None:
        """Answers what is queued, then serves the name no more.

        Raises:
            DeploymentNotFound: Nothing is deployed under it.
        """
        with self._changing:
            served = self.get(name)
            del self._served[name]
            if self._keep:
                self._workspace.catalog.deployments.forget(name)
            served.close(CLOSE_WITHIN_S)

    def restore(self) -> None:
        """Serves again what the last server served; what cannot be is left out and logged, the others are served.

        A workspace that keeps no deployments restores none: looking at it must not load what a server serves.
        """
        if not self._keep:
            return
        for name, ref, max_batch in self._workspace.catalog.deployments.list():
            try:
                self.put(name, ref, max_batch=max_batch)
            except MmsError as error:
                _log.error("deployment %s is not served: %s", name, error.message)

    def close(self) -> None:
        """Answers what is queued, everywhere, for as long as that may take."""
        until = time.monotonic() + CLOSE_WITHIN_S
        for served in self._served.values():
            if not served.close(max(0.0, until - time.monotonic())):
                _log.error("deployment %s is closed with requests in its queue: its device hangs", served.name)
        self._served = {}
        self._dispatcher.close(max(0.0, until - time.monotonic()))
