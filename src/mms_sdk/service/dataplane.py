"""The data plane: predictions, as raw ASGI.

Parsing and validating JSON costs more than the model; so nothing here is validated value by value, and nothing is
copied that need not be. Speaks `POST /v1/models/{name}:predict` and the Open Inference Protocol v2 with its binary
tensor extension.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Annotated, Any, TypedDict
from urllib.parse import parse_qs

import msgspec
import numpy as np
import orjson

from mms_sdk.compute.inference.batcher import PRIORITIES, Priority
from mms_sdk.errors import Forbidden, InvalidInput, InvalidRequest, Unavailable, UnsupportedMediaType
from mms_sdk.schema.access import allows
from mms_sdk.schema.names import NAME_PATTERN
from mms_sdk.service.clients import Client
from mms_sdk.service.deployments import Deployments, Served
from mms_sdk.service.guard import App, Receive, Rule, Scope, Send, read_body
from mms_sdk.service.instances import as_numbers, as_pixels, decode_json, read_instances, read_rows
from mms_sdk.service.problems import send_bytes
from mms_sdk.settings import ServerSettings
from mms_sdk.types import Array

_NAME = NAME_PATTERN.removeprefix("^").removesuffix("$")
_JSON = {"content-type": "application/json"}
_BODIES = {"image": ("image/",), "audio": ("audio/",), "text": ("text/plain",)}
"""Content types of one input as it is, by kind; bytes of any sort are taken for it too."""
_BYTES = "application/octet-stream"
_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
_HEADER_LENGTH = "inference-header-content-length"
_DEADLINE = "x-mms-deadline-ms"
_PRIORITY = "x-mms-priority"
_LOOKED_AT = frozenset(name.encode() for name in ("content-type", _HEADER_LENGTH, _DEADLINE, _PRIORITY))

CLIENT_GONE = 499
"""The status of a request whose client went away before its answer; the number that nginx gave it."""


class _When(TypedDict):
    deadline_s: float
    priority: Priority


Handler = Callable[[Served, Scope, dict[str, str], bytes], Awaitable[tuple[bytes, dict[str, str]]]]


class InferTensor(msgspec.Struct):
    """An input tensor of the Open Inference Protocol v2."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferOutput(msgspec.Struct):
    """An output asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of an inference request of the Open Inference Protocol v2."""

    inputs: list[InferTensor]
    id: str | None = None
    outputs: list[InferOutput] | None = None
    parameters: dict[str, Any] = {}


class DataPlane:
    """Routes predictions and hands everything else on.

    Args:
        deployments: What is served.
        settings: Default deadline.
        otherwise: Where other requests go.
    """

    def __init__(self, deployments: Deployments, settings: ServerSettings, otherwise: App) -> None:
        self._deployments = deployments
        self._settings = settings
        self._otherwise = otherwise
        self._route = lru_cache(256)(self._first_route)
        self._routes: list[tuple[re.Pattern[str], str, Handler]] = [
            (re.compile(rf"/v1/models/({_NAME}):predict"), "POST", self._predict),
            (re.compile(rf"/v2/models/({_NAME})/infer"), "POST", self._infer),
            (re.compile(rf"/v2/models/({_NAME})/ready"), "GET", self._ready),
            (re.compile(rf"/v2/models/({_NAME})"), "GET", self._describe),
        ]

    def rules(self) -> list[Rule]:
        """What the guard has to know of these routes."""
        return [
            Rule(methods=frozenset({method}), path=path, role="predict", body="raw") for path, method, _ in self._routes
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a prediction, or hands the request on."""
        found = self._route(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        name, handler = found
        body = await read_body(receive) if scope["method"] == "POST" else b""
        client = Client(receive)
        try:
            answer, told = await self._answer(name, handler, scope, body)
            await send_bytes(send, 200, answer, told)
        except asyncio.CancelledError:
            if not client.gone:
                raise
            await send_bytes(send, CLIENT_GONE, b"", {})  # nobody reads it; it is how the request is counted
        finally:
            client.forget()

    def _first_route(self, method: str, path: str) -> tuple[str, Handler] | None:
        matches = ((pattern.fullmatch(path), handler) for pattern, asked, handler in self._routes if asked == method)
        return next(((match[1], handler) for match, handler in matches if match), None)

    async def _answer(self, name: str, handler: Handler, scope: Scope, body: bytes) -> tuple[bytes, dict[str, str]]:
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in scope["headers"] if n in _LOOKED_AT}
        while True:
            served = self._deployments.get(name)
            try:
                return await handler(served, scope, headers, body)
            except Unavailable:
                # Another version took over while this request was being read: it is for that one to answer.
                if self._deployments.get(name) is served:
                    raise

    async def _predict(
        self, served: Served, scope: Scope, headers: dict[str, str], body: bytes
    ) -> tuple[bytes, dict[str, str]]:
        top = _top(scope)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            rows = await self._instances(served, body)
        elif (bodies := _BODIES.get(served.predictor.kind.name)) and kind.startswith((*bodies, _BYTES)):
            rows = (await asyncio.to_thread(served.predictor.prepare, body))[None]
        else:
            raise UnsupportedMediaType(f"a prediction takes {_taken(served)}; got {kind!r}")
        scores = await served.batcher.submit(rows, **self._when(scope, headers))
        answer = {
            "deployment": served.name,
            "model": served.model,
            "version": served.version,
            "predictions": [
                {"ranked": [{"label": label, "score": score} for label, score in ranked]}
                for ranked in served.predictor.ranked(scores, top)
            ]
            if served.predictor.card.ranks
            else [{"values": row} for row in scores],
        }
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), _JSON

    async def _instances(self, served: Served, body: bytes) -> Array:
        if served.predictor.kind.name != "image":
            return await asyncio.to_thread(self._rows, served, body)
        instances = read_instances(body, served.predictor.input_shape, sizes=served.batcher.sizes)
        prepare = served.predictor.prepare
        if isinstance(instances[0], bytes):
            return np.stack(await asyncio.to_thread(lambda: [prepare(picture) for picture in instances]))
        rows = [prepare(pixels) for pixels in instances]
        return rows[0][None] if len(rows) == 1 else np.stack(rows)

    def _rows(self, served: Served, body: bytes) -> Array:
        instances = read_rows(body, kind=served.predictor.kind.name, sizes=served.batcher.sizes)
        return np.stack([served.predictor.prepare(instance) for instance in instances])

    async def _infer(
        self, served: Served, scope: Scope, headers: dict[str, str], body: bytes
    ) -> tuple[bytes, dict[str, str]]:
        length = headers.get(_HEADER_LENGTH)
        split = _header_length(length, body)
        asked = decode_json(body[:split], InferRequest)
        outputs = asked.outputs or [InferOutput("scores")]
        if [output.name for output in outputs] != ["scores"]:
            raise InvalidInput(f"this model has one output, 'scores'; asked for {[output.name for output in outputs]}")
        binary = bool(outputs[0].parameters.get("binary_data", asked.parameters.get("binary_data_output")))
        rows = _tensor(served, asked, memoryview(body)[split:])
        scores = await served.batcher.submit(rows, **self._when(scope, headers))
        output: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
        answer = {"model_name": served.name, "model_version": str(served.version), "outputs": [output]}
        if asked.id is not None:
            answer["id"] = asked.id
        if not binary:
            output["data"] = scores.ravel()
            return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), _JSON
        data = np.ascontiguousarray(scores, "<f4").tobytes()
        output["parameters"] = {"binary_data_size": len(data)}
        head = orjson.dumps(answer)
        told = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        return head + data, told

    async def _ready(
        self, served: Served, scope: Scope, headers: dict[str, str], body: bytes
    ) -> tuple[bytes, dict[str, str]]:
        return orjson.dumps({"name": served.name, "ready": True}), _JSON

    async def _describe(
        self, served: Served, scope: Scope, headers: dict[str, str], body: bytes
    ) -> tuple[bytes, dict[str, str]]:
        card = served.predictor.card
        told = {
            "name": served.name,
            "versions": [str(served.version)],
            "platform": "mms_stablehlo",
            "inputs": [
                {"name": each.name, "datatype": _DATATYPES[each.dtype], "shape": [-1, *each.shape]}
                for each in card.signature.inputs
            ],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, *card.signature.outputs[0].shape]}],
        }
        return orjson.dumps(told), _JSON

    def _when(self, scope: Scope, headers: dict[str, str]) -> _When:
        return {"deadline_s": self._deadline_s(headers), "priority": _priority(scope, headers)}

    def _deadline_s(self, headers: dict[str, str]) -> float:
        given = headers.get(_DEADLINE)
        if given is None:
            return self._settings.default_deadline_s
        if not re.fullmatch("[1-9][0-9]{0,6}", given):
            raise InvalidRequest(
                f"X-MMS-Deadline-Ms is a whole number of milliseconds from 1 to 9999999; got {given[:40]!r}"
            )
        return int(given) / 1000


def _tensor(served: Served, asked: InferRequest, binary: memoryview) -> Array:
    shape, dtype = served.predictor.input_shape, served.predictor.input_dtype
    name, datatype = served.predictor.card.signature.inputs[0].name, _DATATYPES[dtype.name]
    if len(asked.inputs) != 1 or asked.inputs[0].name != name:
        raise InvalidInput(f"this model has one input, {name!r}; got {[tensor.name for tensor in asked.inputs]}")
    tensor = asked.inputs[0]
    if tensor.datatype != datatype:
        raise InvalidInput(f"input {name!r} has datatype {datatype}; got {tensor.datatype!r}")
    if tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        raise InvalidInput(f"input {name!r} has shape {[-1, *shape]} with at least one row; got {tensor.shape}")
    count = math.prod(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    if size is not None or len(binary):
        if tensor.data is not None or size != len(binary) or size != count * dtype.itemsize:
            raise InvalidInput(
                f"a tensor of shape {tensor.shape} is {count * dtype.itemsize} bytes behind the JSON, declared as "
                f"binary_data_size, and no data in it; got {len(binary)} bytes, declared {size!r}"
            )
        return np.frombuffer(binary, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.shape)
    try:
        flat = np.asarray(tensor.data).ravel()
    except ValueError as error:
        raise InvalidInput(f"data is a list of equal lengths; this one is not: {error}") from error
    if len(flat) != count:
        raise InvalidInput(f"a tensor of shape {tensor.shape} has {count} values; got {len(flat)}")
    return (as_pixels(flat) if dtype == np.uint8 else as_numbers(flat, dtype)).reshape(tensor.shape)


def _taken(served: Served) -> str:
    kind = served.predictor.kind.name
    others = {"image": " or a picture (image/*)", "audio": " or a recording (audio/*)", "text": " or text/plain"}
    return "application/json" + others.get(kind, "")


def _header_length(given: str | None, body: bytes) -> int:
    if given is None:
        return len(body)
    if not re.fullmatch("[0-9]{1,15}", given) or int(given) > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is at most the body's {len(body)} bytes; got {given[:40]!r}"
        )
    return int(given)


def _priority(scope: Scope, headers: dict[str, str]) -> Priority:
    given = headers.get(_PRIORITY, "normal")
    if given not in PRIORITIES:
        raise InvalidRequest(f"X-MMS-Priority is one of {', '.join(PRIORITIES)}; got {given[:40]!r}")
    if given == "high" and not allows(scope["state"]["principal"].role, "editor"):
        raise Forbidden(
            "only a token of the role editor puts its requests before those of others; send X-MMS-Priority: normal "
            "or low, or none"
        )
    return given


def _top(scope: Scope) -> int:
    query = scope.get("query_string", b"")
    if not query:
        return 0
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top", ["0"])[-1]
    if not re.fullmatch("[0-9]{1,6}", given):
        raise InvalidRequest(f"top is how many classes to rank, 0 for all; got {given[:40]!r}")
    return int(given)
