"""The OpenAPI document of the whole API, which `GET /openapi.json` answers with, and `docs/openapi.json` keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mms_sdk.service.guard import Rule
from mms_sdk.service.problems import CONTENT_TYPE
from mms_sdk.service.routes import BODY_KEY, ROLE_KEY

_ABOUT = (
    "Datasets, jobs, models and deployments of an MMS workspace. Each operation says in `x-mms-role` the least role "
    "that may use it: predict, viewer, editor, admin. What is wrong is told as problem+json (RFC 9457). Every answer "
    "has an `X-Request-Id`. What exactly a deployment takes, `/v1/models/{name}/openapi.json` says."
)
_PROBLEM = {
    "type": "object",
    "description": "What is wrong, by RFC 9457: the rule, the value seen and the next step.",
    "required": ["type", "title", "status", "detail", "request"],
    "properties": {
        "type": {"type": "string", "description": "Which error, e.g. `urn:mms:job-not-found`."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request": {"type": "string", "description": "The `X-Request-Id`, by which the server's log names it."},
    },
}
_REFUSED = {
    "description": "It was refused, or failed.",
    "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_RAW = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}
_PREDICTED = "Predictions"
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")


def described(app: FastAPI, predictions: Iterable[Rule]) -> dict[str, Any]:
    """The document.

    Args:
        app: The control plane.
        predictions: Routes of the data plane, of which each deployment has a document of its own.
    """
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
        for rule in predictions:
            for method in rule.methods:
                found["paths"].setdefault(rule.template, {})[method.lower()] = _predicted(rule)
        for operations in found["paths"].values():
            for operation in operations.values():
                _complete(operation)
        found["paths"] = dict(sorted(found["paths"].items()))
        components = found["components"]
        components["schemas"] = {
            name: schema for name, schema in components["schemas"].items() if name not in _OF_FASTAPI
        } | {"Problem": _PROBLEM}
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        app.openapi_schema = found
    return app.openapi_schema


def _complete(operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)  # nothing here is answered as FastAPI does by itself
    operation["responses"]["default"] = _REFUSED
    if operation.get(BODY_KEY) == "raw" and "requestBody" not in operation:
        operation["requestBody"] = _RAW
    if operation.get(ROLE_KEY) == "open":
        operation["security"] = []


def _predicted(rule: Rule) -> dict[str, Any]:
    path = rule.template
    names = re.findall(r"{(\w+)}", path)
    asked = {BODY_KEY: "raw"} if "POST" in rule.methods else {}
    return {
        "tags": [_PREDICTED],
        "operationId": "_".join(re.findall(r"[a-z0-9]+", path)),
        "summary": path.rpartition("/")[2].rpartition(":")[2].strip("{}").replace(".", " ").capitalize(),
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {"200": {"description": "As the deployment's own document says."}},
        ROLE_KEY: rule.role,
        **asked,
    }
