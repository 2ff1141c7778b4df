"""Who may do what: roles and tokens."""

from __future__ import annotations

from typing import Literal

from mms_sdk.schema.base import Schema

Role = Literal["predict", "viewer", "editor", "admin"]
ROLES: tuple[Role, ...] = ("predict", "viewer", "editor", "admin")
"""Each role may do everything the ones before it may."""


def allows(held: Role, needed: Role) -> bool:
    """Whether somebody with role `held` may do what needs role `needed`."""
    return ROLES.index(held) >= ROLES.index(needed)


class Principal(Schema):
    """Who is asking, once the token was found."""

    name: str
    role: Role
