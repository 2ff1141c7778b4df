"""The control plane, one noun a file. Every route declares the least role that may use it."""

from __future__ import annotations

from typing import Any, Literal

from mms_sdk.schema.access import Role

ROLE_KEY = "x-mms-role"
BODY_KEY = "x-mms-body"


def needs(role: Role, *, body: Literal["json", "raw"] = "json") -> dict[str, Any]:
    """The arguments that declare a route's role, and a body that is no JSON; the OpenAPI document has them, too."""
    return {"openapi_extra": {ROLE_KEY: role, **({BODY_KEY: body} if body != "json" else {})}}
