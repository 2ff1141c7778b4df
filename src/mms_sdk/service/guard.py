"""The one outer door: nothing behind it is reached without passing here.

Default deny. In this order: the `Host` header, whether a web page is asking, who is asking, whether the path and method
exist, whether they may, and so often, how large the body is and how fast it comes. Only routes declared open skip the
token.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

import orjson

from mms_sdk.errors import (
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    UnsupportedMediaType,
)
from mms_sdk.schema.access import Principal, Role, allows
from mms_sdk.service import metrics, request_ids
from mms_sdk.service.auditing import Audit, described
from mms_sdk.service.known_tokens import KnownTokens
from mms_sdk.service.limits import TokenUse, WrongTokens
from mms_sdk.service.problems import send_problem
from mms_sdk.settings import ServerSettings

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("mms.service")
_PORT = re.compile(r":[0-9]{1,5}\Z")

NAMES = "audit_names"
"""In a request's state: what a route adds to the names in its path for the audit log."""
MAX_JSON_DEPTH = 64
MAX_JSON_BYTES = 2**20  # what the control plane reads; predictions have the server's own limit
_LOOKED_AT = {
    name.encode(): name
    for name in (
        *("host", "origin", "sec-fetch-site", "authorization", "content-length", "content-type"),
        request_ids.HEADER,
    )
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may use a route.

    Attributes:
        methods: HTTP methods.
        path: Matches the whole path.
        role: The least role that may; `open` needs no token.
        body: `json`: a small strict JSON object that the guard checks. `raw`: left to the route.
        projects: Whether it keeps a token of one project to what is of that project; if not, such a token may not.
        template: The path with the names of its parts, e.g. `/v1/jobs/{job}`.
    """

    methods: frozenset[str]
    path: re.Pattern[str]
    role: Role | Literal["open"]
    body: Literal["json", "raw"] = "json"
    projects: bool = False
    template: str = ""

    def changes(self, method: str) -> bool:
        """Whether a request may change something: not one that only reads, or predicts."""
        return method not in ("GET", "HEAD") and self.role not in ("open", "predict")

    def names(self, path: str) -> dict[str, str]:
        """What stands for each part of a path that has names."""
        found = self.path.fullmatch(path)
        return {} if found is None else {name: part for name, part in found.groupdict().items() if part is not None}


_REFUSED = (Unauthenticated, Forbidden, RateLimited)


class Guard:
    """An ASGI application that lets requests through to another.

    Args:
        app: What is guarded.
        rules: Every route there is; what no rule matches does not exist.
        settings: Limits and allow-lists.
        tokens: Whose a token is.
        audit: Where changes and refused access are written down.
    """

    def __init__(
        self, app: App, *, rules: Sequence[Rule], settings: ServerSettings, tokens: KnownTokens, audit: Audit
    ) -> None:
        self._app = app
        self._rules = tuple(rules)
        self._rule = lru_cache(256)(self._first_rule)
        self._settings = settings
        self._tokens = tokens
        self._audit = audit
        self._use = TokenUse()
        self._wrong = WrongTokens(per_s=settings.wrong_tokens_per_s, burst=settings.wrong_tokens_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets one request through, or answers it with the reason why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            self._audit.close()
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:  # there are no WebSocket routes, so none is opened
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        request = request_ids.begin(headers.get(request_ids.HEADER, ()))
        watched = metrics.Watched(send, request)
        rule: Rule | None = None
        asking: Principal | None = None
        counted = False
        try:
            self._check_host(headers)
            self._check_origin(headers)
            rule = self._rule(scope["method"], scope["path"])
            if rule is None or rule.role != "open":
                asking = await self._principal(scope, headers)  # before anything is said about what exists
                rule = self._allowed(asking, rule, scope)
                self._use.begin(asking)
                counted = True
                if rule.changes(scope["method"]):
                    await self._audit.check()
                    watched.before = partial(self._changed, scope, rule, asking, request)
            await self._app(scope, await self._body(rule, scope, headers, receive), watched)
        except Exception as error:
            if watched.finished:  # answered already; what came after is for the log
                _log.error("error after the answer to request %s", request, exc_info=error)
                return
            if watched.started:  # the status line is gone; ending the connection is the only honest answer left
                raise
            if isinstance(error, _REFUSED) and watched.before is None:
                await self._audit.refused(_described(scope, rule, asking, request, error.status))
            await send_problem(watched, error, oip=scope["path"].startswith("/v2/"))
        finally:
            if counted and asking is not None:
                self._use.end(asking)
            if watched.before is not None:  # it was cut off, and who asked heard nothing
                await watched.before(0)
            watched.done()

    async def _changed(self, scope: Scope, rule: Rule, asking: Principal, request: str, status: int) -> None:
        await self._audit.changed(_described(scope, rule, asking, request, status))

    async def _body(self, rule: Rule, scope: Scope, headers: dict[str, list[str]], receive: Receive) -> Receive:
        body = _Body(receive, limit=self._limit(rule), timeout_s=self._settings.body_timeout_s)
        body.check_length(headers)
        if rule.body == "json" and scope["method"] in ("POST", "PUT", "PATCH"):
            return await body.strict_json(headers)
        return body.receive

    def _check_host(self, headers: dict[str, list[str]]) -> None:
        hosts = headers.get("host", [])
        name = _PORT.sub("", hosts[0]).lower() if len(hosts) == 1 else ""
        if name not in self._settings.allowed_hosts:
            raise Forbidden(
                f"this server answers to the names {sorted(self._settings.allowed_hosts)}; the request's Host is "
                f"{hosts}"
            )

    def _check_origin(self, headers: dict[str, list[str]]) -> None:
        origins = headers.get("origin", [])
        if any(origin not in self._settings.allowed_origins for origin in origins):
            raise Forbidden(f"web pages of {origins} may not call this server; see allowed_origins")
        sites = headers.get("sec-fetch-site", [])
        if not origins and any(site not in ("same-origin", "none") for site in sites):
            raise Forbidden("web pages of other sites may not call this server")

    async def _principal(self, scope: Scope, headers: dict[str, list[str]]) -> Principal:
        given = headers.get("authorization", [])
        kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        found = None
        if kind.lower() == "bearer" and 0 < len(token) <= 256 and token.isascii():
            found = await self._tokens.find(token)
        if found is None:
            client = scope.get("client")
            self._wrong.note(client[0] if client else "")
            raise Unauthenticated(
                "every request carries one valid token: Authorization: Bearer mms_…; this one does not"
            )
        return found

    def _allowed(self, principal: Principal, rule: Rule | None, scope: Scope) -> Rule:
        if rule is None:
            raise self._nothing(scope["path"], scope["method"])
        if rule.role == "open" or not allows(principal.role, rule.role):
            raise Forbidden(
                f"this takes the role {rule.role!r}; the token {principal.name!r} has {principal.role!r}; ask an admin"
            )
        if principal.project is not None and not rule.projects:
            raise Forbidden(
                f"what this shows or changes is not told apart by projects; the token {principal.name!r} is of the "
                f"project {principal.project!r} alone; ask with one of all projects"
            )
        scope.setdefault("state", {})["principal"] = principal
        return rule

    def _first_rule(self, method: str, path: str) -> Rule | None:
        return next((rule for rule in self._rules if method in rule.methods and rule.path.fullmatch(path)), None)

    def _nothing(self, path: str, method: str) -> NotFound | MethodNotAllowed:
        methods = sorted(each for rule in self._rules if rule.path.fullmatch(path) for each in rule.methods)
        if methods:
            return MethodNotAllowed(f"this path has the methods {methods}; got {method}", allowed=methods)
        return NotFound(f"no such path: {path[:200]!r}; /openapi.json lists them")

    def _limit(self, rule: Rule) -> int:
        return self._settings.max_body_bytes if rule.body == "raw" else MAX_JSON_BYTES


class _Body:
    """A request's body within its limits of size and time."""

    def __init__(self, receive: Receive, *, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._deadline: float | None = None
        self._timeout_s = timeout_s
        self._bytes = 0
        self._ended = False

    def check_length(self, headers: dict[str, list[str]]) -> None:
        for declared in headers.get("content-length", ()):
            if not re.fullmatch("[0-9]{1,15}", declared):
                raise InvalidRequest(f"Content-Length is a number of bytes; got {declared[:40]!r}")
            if int(declared) > self._limit:
                raise self._too_large(f"{int(declared):,}")

    async def receive(self) -> MutableMapping[str, Any]:
        """The next message; after the body's end, waits for the disconnect as long as it takes."""
        if self._ended:
            return await self._receive()
        loop = asyncio.get_running_loop()
        self._deadline = self._deadline or loop.time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise InvalidRequest(
                f"a body is sent within {self._timeout_s:g} s; this one was not; send it faster"
            ) from error
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise self._too_large(f"more than {self._limit:,}")
        self._ended = not message.get("more_body", False)
        return message

    async def read(self) -> bytes:
        """The whole body."""
        return await read_body(self.receive)

    async def strict_json(self, headers: dict[str, list[str]]) -> Receive:
        """Checks that the body is sane JSON; returns a `receive` that plays it again."""
        body = await self.read()
        kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise UnsupportedMediaType(f"this route reads application/json; got {kind or 'no content type'!r}")
        if body:
            check_json(body)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await self.receive()

        return replay

    def _too_large(self, seen: str) -> TooLarge:
        return TooLarge(f"a body here has at most {self._limit:,} bytes; this one has {seen}; send less at a time")


async def read_body(receive: Receive) -> bytes:
    """A request's whole body.

    Raises:
        InvalidRequest: The client went away before its end.
    """
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client closed the connection before the body's end")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def check_json(body: bytes) -> None:
    """Refuses what is no JSON object (RFC 8259: no NaN, no trailing comma, UTF-8), absurdly deep, or ambiguous.

    Raises:
        InvalidRequest: It is that.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is JSON (RFC 8259); this one is not: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"the body is a JSON object; this one is a {type(parsed).__name__}")
    level: list[Any] = [parsed]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            break
    else:
        raise InvalidRequest(f"JSON here is nested at most {MAX_JSON_DEPTH} deep; this is deeper")
    json.loads(body, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):  # which of the two counts, each parser decides differently
        raise InvalidRequest(f"a name stands once in a JSON object; got {sorted(names)}")


def _described(scope: Scope, rule: Rule | None, who: Principal | None, request: str, status: int) -> dict[str, Any]:
    names = rule.names(scope["path"]) if rule else {}
    names |= scope.get("state", {}).get(NAMES, {})
    return described(scope, who=who, route=rule.template if rule else "", names=names, status=status, request=request)


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:  # ASGI has lower-cased the names
        if (known := _LOOKED_AT.get(name)) is not None:
            found.setdefault(known, []).append(value.decode("latin-1"))
    return found
