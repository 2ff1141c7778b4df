"""Deployments: asking a served model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import orjson

from mms_sdk import html
from mms_sdk.client.api import Api
from mms_sdk.client.models import ModelVersion, ref_of
from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidInput
from mms_sdk.schema.deployment import Deployment as DeploymentRecord
from mms_sdk.schema.names import check_name, parse_model_ref
from mms_sdk.schema.prediction import Prediction as PredictionRecord
from mms_sdk.types import Array

Picture: TypeAlias = str | Path | bytes | Array
"""A picture: the path of a file, the bytes of one, or uint8 of shape (height, width[, channels])."""

Item: TypeAlias = Any
"""What a model takes: a picture; a text; a row of a table, a value for each column by name; a recording, the path of a
file or the bytes of one; a series or an embedding, an array or nested lists."""


class Prediction(PredictionRecord):
    """What a model says about one input."""

    def __repr__(self) -> str:
        if not self.ranked:
            return f"<{self.values}>"
        return "<" + ", ".join(f"{label} {score:.1%}" for label, score in self.top(3)) + ">"

    __str__ = __repr__  # Pydantic's own prints every class

    def _repr_html_(self) -> str:
        if not self.ranked:
            return html.facts("prediction", {"values": self.values})
        return html.bars("prediction", self.top(5))


class Deployment:
    """A model served under a name."""

    def __init__(self, api: Api, record: DeploymentRecord) -> None:
        self._api = api
        self.record = record

    def __repr__(self) -> str:
        return f"<deployment {self.name}: {self.record.model}@{self.record.version}, {self.record.state}>"

    def _repr_html_(self) -> str:
        told = {
            "model": f"{self.record.model}@{self.record.version}",
            "state": self.record.state,
            "classes": ", ".join(self.record.labels),
            "input": self.record.signature.inputs[0].shape,
            "ready after": f"{self.record.ready_after_s:.1f} s",
        }
        return html.facts(f"deployment {self.name}", told)

    @property
    def name(self) -> str:
        """What it is served as."""
        return self.record.name

    @property
    def path(self) -> str:
        """Where it answers below the server's address."""
        return f"/v1/models/{self.name}:predict"

    def predict(self, picture: Item, *, top: int = 0, deadline_s: float | None = None) -> Prediction:
        """Ranked classes of one picture, or of whatever else the model takes, or the numbers that it answers.

        Args:
            picture: Path, bytes or array; for a model of another kind a text, a row by column name, the path or the
                bytes of a recording, or numbers.
            top: Classes wanted; 0 for all.
            deadline_s: Seconds after which the answer is of no use; the server's own limit if left out.

        Raises:
            InvalidInput: It is nothing this model takes.
            Overloaded, DeadlineExceeded: The server has too much to do.
        """
        if self._kind != "image" or isinstance(picture, np.ndarray):
            return self.predict_many([picture], top=top, deadline_s=deadline_s)[0]
        return self._ask(_read(picture), "application/octet-stream", top, deadline_s)[0]

    def predict_many(
        self, pictures: Sequence[Item], *, top: int = 0, deadline_s: float | None = None
    ) -> list[Prediction]:
        """The same for a few in one request; for many use `ws.predict`."""
        if self._kind != "image":
            return self._ask_json([_instance(self._kind, item) for item in pictures], top, deadline_s)
        arrays = [isinstance(picture, np.ndarray) for picture in pictures]
        if any(arrays) and not all(arrays):
            raise InvalidInput("pictures of one request are all arrays, or all files or bytes; send two requests")
        instances = [
            picture.tolist() if isinstance(picture, np.ndarray) else {"b64": base64.b64encode(_read(picture)).decode()}
            for picture in pictures
        ]
        return self._ask_json(instances, top, deadline_s)

    @property
    def _kind(self) -> str:
        return self.record.signature.inputs[0].name

    def _ask_json(self, instances: list[Any], top: int, deadline_s: float | None) -> list[Prediction]:
        try:
            body = orjson.dumps({"instances": instances})
        except orjson.JSONEncodeError as error:
            what = "a picture is an array of numbers from 0 to 255" if self._kind == "image" else "it is sent as JSON"
            raise InvalidInput(f"{what}; this one is not: {error}") from error
        return self._ask(body, "application/json", top, deadline_s)

    def _ask(self, body: bytes, kind: str, top: int, deadline_s: float | None) -> list[Prediction]:
        headers = {"content-type": kind}
        if deadline_s is not None:
            headers["x-mms-deadline-ms"] = str(max(1, round(1000 * deadline_s)))
        answer = self._api.send_bytes("POST", self.path, body, dict[str, Any], headers=headers, top=top)
        return [Prediction.model_validate(one) for one in answer["predictions"]]

    def delete(self) -> None:
        """Serves it no more."""
        self._api.delete(f"/v1/deployments/{self.name}")


class Deployments:
    """What a workspace's server, or this process, serves."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self) -> Table[Deployment]:
        """All deployments by name."""
        found = [Deployment(self._api, record) for record in self._api.get("/v1/deployments", list[DeploymentRecord])]
        return Table(found, title="deployments", rows=map(_row, found))

    def get(self, name: str) -> Deployment:
        """One deployment.

        Raises:
            DeploymentNotFound: Nothing is deployed under the name.
        """
        path = f"/v1/deployments/{check_name(name, what='deployment')}"
        return Deployment(self._api, self._api.get(path, DeploymentRecord))

    def create(self, name: str, *, model: str | ModelVersion, max_batch: int = 64) -> Deployment:
        """Serves a model version under a name; returns once it is warm.

        A deployment of an embedded workspace lives in this process and ends with it; `mms serve` keeps it.

        Args:
            name: e.g. `flowers`. If something is deployed under it, it is switched over without a gap.
            model: A version, or a reference such as `flowers@champion`.
            max_batch: Rows computed at once, 1 to 64. A program is compiled for each batch size up to it, so a small
                one is warm sooner; a large one answers more requests a second.

        Raises:
            ModelNotFound: There is no such version.
            Damaged: Its artefact is not what was registered.
        """
        check_name(name, what="deployment")
        asked = {"model": str(parse_model_ref(ref_of(model))), "max_batch": max_batch}
        path = f"/v1/deployments/{name}"
        return Deployment(self._api, self._api.send("PUT", path, DeploymentRecord, asked))


def _row(deployment: Deployment) -> dict[str, Any]:
    record = deployment.record
    return {
        "deployment": record.name,
        "model": f"{record.model}@{record.version}",
        "state": record.state,
        "requests": record.requests,
        "rows": record.rows,
    }


def _instance(kind: str, item: Any) -> Any:
    if kind == "audio":
        return {"b64": base64.b64encode(_read(item, "recording")).decode()}
    return item.tolist() if isinstance(item, np.ndarray) else item


def _read(picture: Any, what: str = "picture") -> bytes:
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, str | Path):
        told = ", bytes or a uint8 array" if what == "picture" else " or bytes"
        raise InvalidInput(f"a {what} is a path{told}; got {type(picture).__name__}")
    try:
        return Path(picture).expanduser().read_bytes()
    except ValueError as error:  # a zero byte
        raise InvalidInput(f"a {what} is a readable file; {picture!r} is no path: {error}; check it") from error
    except OSError as error:
        raise InvalidInput(
            f"a {what} is a readable file; {picture} is not: {error.strerror}; check the path"
        ) from error
