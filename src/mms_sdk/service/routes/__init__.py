"""The control plane, one noun a file. Every route declares the least role that may use it."""

from __future__ import annotations

from typing import Any

from mms_sdk.schema.access import Role

ROLE_KEY = "x-mms-role"


def needs(role: Role) -> dict[str, Any]:
    """The arguments that declare a route's role; it appears in the OpenAPI document too."""
    return {"openapi_extra": {ROLE_KEY: role}}
