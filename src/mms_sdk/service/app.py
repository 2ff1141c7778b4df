"""The application: a control plane, a data plane, and the guard in front of both."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import mms_sdk
from mms_sdk.compute.engines.base import Engine
from mms_sdk.compute.engines.folder import RANK
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.compute.engines.ray.door import Door
from mms_sdk.compute.engines.ray.engine import RayEngine
from mms_sdk.errors import InvalidRequest, MmsError, NotFound
from mms_sdk.schema.access import ROLES, Principal
from mms_sdk.schema.findings import reasons
from mms_sdk.service.auditing import Audit
from mms_sdk.service.dataplane import DataPlane
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.guard import Guard, Rule
from mms_sdk.service.jobs import JobRunner
from mms_sdk.service.known_tokens import KnownTokens
from mms_sdk.service.openapi import described
from mms_sdk.service.problems import CONTENT_TYPE, as_problem, headers_for
from mms_sdk.service.routes import BODY_KEY, PROJECTS_KEY, ROLE_KEY, routers
from mms_sdk.service.state import ServiceState
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings, prices, ray_address
from mms_sdk.storage.job_tokens import JobTokens
from mms_sdk.storage.workspace import Workspace

_ROUTERS = routers()


def create_app(
    workspace: Workspace,
    settings: ServerSettings | None = None,
    *,
    find: Callable[[str], Principal | None] | None = None,
    deployments: Deployments | None = None,
    streams: Streams | None = None,
) -> Guard:
    """The ASGI application of one workspace; embedded and server mode are this very thing.

    Args:
        workspace: What it serves. The caller closes it after the app's lifespan has ended.
        settings: Limits and allow-lists.
        find: Whose token it is; None asks the catalog.
        deployments: What the app serves models with; None for one that ends with it.
        streams: Answers that go on, which whoever serves the app drains first; None for those that end with it.

    Raises:
        RuntimeError: A route declares no role; such an app must not start.
        InvalidRequest: `$MMS_PRICES` says what are no prices.
    """
    settings = settings or ServerSettings()
    prices()  # what they cannot be is said now, and not with each list of jobs
    service = ServiceState(
        workspace,
        settings,
        JobRunner(workspace),
        _engines(workspace),
        deployments or Deployments(workspace, settings, keep=False),
        streams or Streams(),
        KnownTokens(find or _finder(workspace), workspace.catalog.tokens.used),
    )
    control = _control_plane(service)
    data = DataPlane(service.deployments, settings, control)
    rules = [*data.rules(), *_rules(control)]
    control.openapi = lambda: described(control, data.rules())  # type: ignore[method-assign]
    audit = Audit(workspace.audit if settings.audited else None)
    return Guard(data, rules=rules, settings=settings, tokens=service.tokens, audit=audit)


def _finder(workspace: Workspace) -> Callable[[str], Principal | None]:
    people, jobs = workspace.catalog.tokens, JobTokens(workspace.root, workspace.catalog.attempts)
    return lambda token: jobs.find(token) or people.find(token)


def _engines(workspace: Workspace) -> dict[str, Engine]:
    engines: dict[str, Engine] = {LocalEngine.name: LocalEngine(workspace)}
    if address := ray_address():
        engines[RayEngine.name] = RayEngine(workspace, Door(address))
    return engines


def _control_plane(service: ServiceState) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Of several processes of one job, which may be on machines of their own, the first looks after jobs: the others
        # would take for lost what it has just begun.
        if os.environ.get(RANK, "0") == "0":
            service.workspace.catalog.jobs.reconcile()
            service.reconcile()
            # Of others, what waits is started by whatever runs there once it ends; to look for room takes seconds.
            service.engine(LocalEngine.name).start_waiting()
        service.deployments.restore()
        yield
        await service.streams.close()
        service.jobs.close()
        service.deployments.close()
        await service.tokens.close()

    app = FastAPI(
        title="MMS",
        version=mms_sdk.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Exception, _on_error)
    app.add_exception_handler(MmsError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    return app


def _rules(app: FastAPI) -> list[Rule]:
    rules = [
        Rule(methods=frozenset({"GET"}), path=re.compile("/openapi\\.json"), role="viewer", template="/openapi.json")
    ]
    # A router's routes are read where they were declared: FastAPI shows them on the app in one version, not in another.
    # Any that were missed here would be refused by the guard, which knows nothing of them.
    for route in (*app.routes, *(route for router in _ROUTERS for route in router.routes)):
        if not isinstance(route, APIRoute):
            continue
        told = route.openapi_extra or {}
        role = told.get(ROLE_KEY)
        if role != "open" and role not in ROLES:
            raise RuntimeError(f"route {route.path} declares no role; pass **needs(…) to it")
        # No name has a colon in it, so `{name}:ingest` is not also a `{name}`.
        path = re.compile(route.path_regex.pattern.replace("[^/]+", "[^/:]+"))
        body = told.get(BODY_KEY, "json")
        projects = bool(told.get(PROJECTS_KEY))
        methods = frozenset(route.methods or ())
        made = Rule(methods=methods, path=path, role=role, body=body, projects=projects, template=route.path_format)
        rules.append(made)
    return rules


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    problem = as_problem(error)
    return JSONResponse(problem, problem["status"], headers_for(error), CONTENT_TYPE)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _on_error(request, InvalidRequest(f"the request does not fit: {reasons(error.errors())}"))


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await _on_error(request, NotFound(f"no such path: {request.url.path[:200]!r}"))
    return await _on_error(request, InvalidRequest(f"the request does not fit: {error.detail}"))
