"""The data plane: predictions, as raw ASGI.

Parsing and validating JSON costs more than the model; so nothing here is validated value by value, and nothing is
copied that need not be. Speaks `POST /v1/models/{name}:predict` and the Open Inference Protocol v2.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import orjson

from mms_sdk.compute.inference.batcher import PRIORITIES, Priority
from mms_sdk.errors import Forbidden, InvalidRequest, ModelNotFound, Unavailable, UnsupportedMediaType
from mms_sdk.schema.access import Role, allows
from mms_sdk.schema.names import NAME_PATTERN
from mms_sdk.service import oip
from mms_sdk.service.clients import Clients
from mms_sdk.service.deployments import Deployments, Served
from mms_sdk.service.explanations import explained
from mms_sdk.service.guard import App, Receive, Rule, Scope, Send, read_body
from mms_sdk.service.inputs import read_inputs
from mms_sdk.service.instances import decode_json
from mms_sdk.service.model_openapi import document
from mms_sdk.service.problems import send_bytes
from mms_sdk.settings import ServerSettings

_NAME = NAME_PATTERN.removeprefix("^").removesuffix("$")
# What stands for the parts of a path. Of Triton's own path for all statistics, `stats` is no name.
_PARTS = {
    "name": rf"(?!stats$)(?P<name>{_NAME})",
    "version": r"(?P<version>[^/]+)",
    "model": rf"(?P<model>{_NAME})",
}
_OPTIONAL = re.compile(r"\[.*?\]")
_JSON = {"content-type": "application/json"}
_DEADLINE = "x-mms-deadline-ms"
_PRIORITY = "x-mms-priority"
_LOOKED_AT = frozenset(
    name.encode() for name in ("content-type", "content-encoding", oip.HEADER_LENGTH, _DEADLINE, _PRIORITY)
)

CLIENT_GONE = 499
"""The status of a request whose client went away before its answer; the number that nginx gave it."""

STUCK_AFTER_S = 30.0
"""How long a device may be at one batch before what it serves is not ready any more."""


@dataclass(slots=True)
class Call:
    """One request of the data plane.

    Attributes:
        headers: Those that are looked at here, by lower-case name.
        body: All of it.
    """

    scope: Scope
    headers: dict[str, str]
    body: bytes


Answer: TypeAlias = tuple[bytes, dict[str, str]]
"""A body and its headers."""


@dataclass(frozen=True)
class _Route:
    """What answers a path; its group `name`, if it has one, is a deployment, and `version` the one that it serves."""

    method: str
    template: str
    path: re.Pattern[str]
    role: Role
    answer: Callable[[Any, Call], Awaitable[Answer]]


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
        self._clients = Clients()
        self._route = lru_cache(256)(self._first_route)
        v1, v2, kept = "/v1/models/{name}", "/v2/models/{name}[/versions/{version}]", "/v2/repository/models/{model}"
        self._routes = [
            _route("POST", f"{v1}:predict", "predict", self._predict),
            _route("POST", f"{v1}:explain", "predict", self._explain),
            _route("GET", f"{v1}/openapi.json", "predict", self._openapi),
            _route("POST", f"{v2}/infer", "predict", self._infer),
            _route("GET", "/v2/models/stats", "viewer", self._all_stats),
            _route("GET", f"{v2}/ready", "predict", self._ready),
            _route("GET", f"{v2}/config", "predict", self._config),
            _route("GET", f"{v2}/stats", "viewer", self._stats),
            _route("GET", v2, "predict", self._metadata),
            _route("POST", "/v2/repository/index", "viewer", self._index),
            _route("POST", f"{kept}/load", "editor", self._load),
            _route("POST", f"{kept}/unload", "editor", self._unload),
        ]

    def rules(self) -> list[Rule]:
        """What the guard has to know of these routes."""
        return [
            Rule(
                methods=frozenset({route.method}),
                path=route.path,
                role=route.role,
                body="raw",
                template=_OPTIONAL.sub("", route.template),
            )
            for route in self._routes
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a prediction, or hands the request on."""
        found = self._route(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        route, named = found
        body = await read_body(receive) if route.method == "POST" else b""
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in scope["headers"] if n in _LOOKED_AT}
        call = Call(scope, headers, body)
        client = self._clients.add(receive)
        try:
            answer, told = await self._answer(route, named, call)
            await send_bytes(send, 200, answer, told)
        except asyncio.CancelledError:
            if not client.gone:
                raise
            await send_bytes(send, CLIENT_GONE, b"", {})  # nobody reads it; it is how the request is counted
        finally:
            self._clients.forget(client)

    def _first_route(self, method: str, path: str) -> tuple[_Route, dict[str, str]] | None:
        matches = ((route, route.path.fullmatch(path)) for route in self._routes if route.method == method)
        return next(((route, match.groupdict()) for route, match in matches if match), None)

    async def _answer(self, route: _Route, named: dict[str, str], call: Call) -> Answer:
        if "content-encoding" in call.headers and call.headers["content-encoding"] != "identity":
            raise UnsupportedMediaType(
                f"a body is sent as it is; got Content-Encoding {call.headers['content-encoding'][:40]!r}; leave it out"
            )
        if "name" not in named:
            return await route.answer(named.get("model"), call)
        while True:
            served = self._deployments.get(named["name"])
            if named.get("version"):
                _check_version(served, named["version"])
            try:
                return await route.answer(served, call)
            except Unavailable:
                # Another version took over while this request was being read: it is for that one to answer.
                if self._deployments.get(named["name"]) is served:
                    raise

    async def _predict(self, served: Served, call: Call) -> Answer:
        top = _top(call.scope)
        deadline_s, priority = self._deadline_s(call), _priority(call)
        rows = await read_inputs(served, call.headers.get("content-type", ""), call.body)
        scores = await served.batcher.submit(rows, deadline_s=deadline_s, priority=priority)
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

    async def _explain(self, served: Served, call: Call) -> Answer:
        deadline_s = self._deadline_s(call)
        rows = await read_inputs(served, call.headers.get("content-type", ""), call.body)
        query = call.scope.get("query_string", b"")
        answer = await explained(served, rows, query=query, deadline_s=deadline_s)
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), _JSON

    async def _openapi(self, served: Served, call: Call) -> Answer:
        return orjson.dumps(document(served)), _JSON

    async def _infer(self, served: Served, call: Call) -> Answer:
        deadline_s, priority = self._deadline_s(call), _priority(call)
        asked, rows = oip.read_infer(served, call.headers, call.body)
        within_s, level = oip.when(asked)
        if level is not None:
            priority = _allowed(level, call)
        if within_s is not None:
            deadline_s = min(deadline_s, within_s)
        scores = await served.batcher.submit(rows, deadline_s=deadline_s, priority=priority)
        return oip.infer_answer(served, asked, scores)

    async def _ready(self, served: Served, call: Call) -> Answer:
        stuck_s = served.batcher.stuck_s()
        if stuck_s > STUCK_AFTER_S:
            raise Unavailable(
                f"the device of deployment {served.name!r} has computed one batch for {stuck_s:.0f} s; restart the "
                f"server if it goes on"
            )
        return orjson.dumps({"name": served.name, "ready": True}), _JSON

    async def _metadata(self, served: Served, call: Call) -> Answer:
        return orjson.dumps(oip.metadata(served)), _JSON

    async def _config(self, served: Served, call: Call) -> Answer:
        return orjson.dumps(oip.config(served)), _JSON

    async def _stats(self, served: Served, call: Call) -> Answer:
        return orjson.dumps(oip.statistics([served])), _JSON

    async def _all_stats(self, _: None, call: Call) -> Answer:
        return orjson.dumps(oip.statistics(self._deployments.served())), _JSON

    async def _index(self, _: None, call: Call) -> Answer:
        asked: oip.IndexRequest = decode_json(call.body or b"{}", oip.IndexRequest)
        newest = await asyncio.to_thread(self._deployments.newest_versions)
        return orjson.dumps(oip.index(self._deployments.list(), newest, ready=asked.ready)), _JSON

    async def _load(self, model: str, call: Call) -> Answer:
        version = oip.version_asked(call.body)
        await asyncio.to_thread(self._deployments.load, model, version)
        return b"{}", _JSON

    async def _unload(self, model: str, call: Call) -> Answer:
        oip.version_asked(call.body)
        await asyncio.to_thread(self._deployments.remove, model)
        return b"{}", _JSON

    def _deadline_s(self, call: Call) -> float:
        given = call.headers.get(_DEADLINE)
        if given is None:
            return self._settings.default_deadline_s
        if not re.fullmatch("[1-9][0-9]{0,6}", given):
            raise InvalidRequest(
                f"X-MMS-Deadline-Ms is a whole number of milliseconds from 1 to 9999999; got {given[:40]!r}"
            )
        return int(given) / 1000


def _route(method: str, template: str, role: Role, answer: Callable[[Any, Call], Awaitable[Answer]]) -> _Route:
    path = template.replace("[", "(").replace("]", ")?")
    for name, pattern in _PARTS.items():
        path = path.replace(f"{{{name}}}", pattern)
    return _Route(method, template, re.compile(path), role, answer)


def _check_version(served: Served, asked: str) -> None:
    if asked != str(served.version):
        raise ModelNotFound(
            f"deployment {served.name!r} serves version {served.version} of {served.model!r}; asked for "
            f"{asked[:40]!r}; leave the version out, or load the other one"
        )


def _priority(call: Call) -> Priority:
    given = call.headers.get(_PRIORITY, "normal")
    if given not in PRIORITIES:
        raise InvalidRequest(f"X-MMS-Priority is one of {', '.join(PRIORITIES)}; got {given[:40]!r}")
    return _allowed(given, call)


def _allowed(priority: Priority, call: Call) -> Priority:
    if priority == "high" and not allows(call.scope["state"]["principal"].role, "editor"):
        raise Forbidden(
            "only a token of the role editor puts its requests before those of others; send X-MMS-Priority: normal "
            "or low, or none"
        )
    return priority


def _top(scope: Scope) -> int:
    query = scope.get("query_string", b"")
    if not query:
        return 0
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top", ["0"])[-1]
    if not re.fullmatch("[0-9]{1,6}", given):
        raise InvalidRequest(f"top is how many classes to rank, 0 for all; got {given[:40]!r}")
    return int(given)
