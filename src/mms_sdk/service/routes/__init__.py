"""The control plane, one noun a file. Every route declares the least role that may use it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, Literal

from fastapi import APIRouter

from mms_sdk.schema.access import Role

ROLE_KEY = "x-mms-role"
BODY_KEY = "x-mms-body"
PROJECTS_KEY = "x-mms-projects"


def needs(role: Role, *, body: Literal["json", "raw"] = "json", projects: bool = False) -> dict[str, Any]:
    """The arguments that declare a route; the OpenAPI document has them, too.

    Args:
        role: The least that may use it.
        body: `raw` for one that is no JSON.
        projects: Whether it shows and changes nothing but what is of the asking token's project; to a route that does
            not say so, a token of one project is not let.
    """
    told: dict[str, Any] = {ROLE_KEY: role}
    if body != "json":
        told[BODY_KEY] = body
    if projects:
        told[PROJECTS_KEY] = True
    return {"openapi_extra": told}


def routers() -> tuple[APIRouter, ...]:
    """Those of all nouns: each module of this folder has one, which is called `router`."""
    nouns = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{noun}").router for noun in nouns)
