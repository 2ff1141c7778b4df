"""The control plane, one noun a file. Every route declares the least role that may use it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, Literal

from fastapi import APIRouter

from mms_sdk.schema.access import Role

ROLE_KEY = "x-mms-role"
BODY_KEY = "x-mms-body"


def needs(role: Role, *, body: Literal["json", "raw"] = "json") -> dict[str, Any]:
    """The arguments that declare a route's role, and a body that is no JSON; the OpenAPI document has them, too."""
    return {"openapi_extra": {ROLE_KEY: role, **({BODY_KEY: body} if body != "json" else {})}}


def routers() -> tuple[APIRouter, ...]:
    """Those of all nouns: each module of this folder has one, which is called `router`."""
    nouns = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{noun}").router for noun in nouns)
