"""Who may do what: roles and tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mms_sdk.errors import Forbidden
from mms_sdk.schema.base import Schema
from mms_sdk.schema.names import Name
from mms_sdk.schema.quota import ProjectName

Role = Literal["predict", "viewer", "editor", "admin"]
ROLES: tuple[Role, ...] = ("predict", "viewer", "editor", "admin")
"""Each role may do everything the ones before it may."""
DAY_S = 86_400
USUAL_LIFE_S = 90 * DAY_S
LONGEST_LIFE_S = 3660 * DAY_S
LONGEST_OVERLAP_S = 7 * DAY_S


def allows(held: Role, needed: Role) -> bool:
    """Whether somebody with role `held` may do what needs role `needed`."""
    return ROLES.index(held) >= ROLES.index(needed)


class TokenLimits(Schema):
    """How much may be asked with a token, of each server process; what is left out has no bound of its own.

    Attributes:
        requests_per_s: On average.
        burst: Requests that may come at once, after a while without; what comes in two seconds if left out.
        concurrent: Requests that are being answered at the same time.
    """

    requests_per_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    burst: Annotated[int, Field(ge=1, le=10**6)] | None = None
    concurrent: Annotated[int, Field(ge=1, le=10**5)] | None = None

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Self:
        if self.burst is not None and self.requests_per_s is None:
            raise ValueError(f"a burst goes with requests_per_s; got a burst of {self.burst} without")
        return self


class Principal(Schema):
    """Who is asking, once the token was found.

    Attributes:
        name: The token's.
        role: What it may do.
        id: The token's; empty for the person who has the workspace in their own process.
        project: The one that it sees and changes; None for all.
        expires: When it stops being good, in seconds of the clock; None for never.
        limits: How much may be asked with it; None for any.
    """

    name: str
    role: Role
    id: str = ""
    project: str | None = None
    expires: float | None = None
    limits: TokenLimits | None = None


class Token(Schema):
    """A token, as everybody but its owner sees it: without its text, which is kept nowhere.

    Attributes:
        id: Its own for good; a token of the same name made later has another.
        name: What it is for, e.g. `ci` or `adas-laptop`.
        role: What it may do.
        project: The one that it sees and changes; None for all.
        created_at: When it was made.
        created_by: The name of the token that made it; None for one that a server made for itself.
        expires_at: When it stops being good; None for never.
        last_used_at: When it was last used, to some ten minutes; None for never.
        revoked_at: When it was revoked; None if it was not.
        limits: How much may be asked with it; None for any.
    """

    id: str
    name: str
    role: Role
    project: str | None = None
    created_at: str
    created_by: str | None = None
    expires_at: str | None = None
    last_used_at: str | None = None
    revoked_at: str | None = None
    limits: TokenLimits | None = None


class TokenRequest(Schema):
    """A token to be made.

    Attributes:
        name: What it is for; no other token that is good has it.
        role: What it may do.
        project: The one that it sees and changes; None for all.
        lifetime_s: Seconds for which it is good; None for ever.
        limits: How much may be asked with it; None for any.
    """

    name: Name
    role: Role
    project: ProjectName | None = None
    lifetime_s: Annotated[int, Field(ge=1, le=LONGEST_LIFE_S)] | None = USUAL_LIFE_S
    limits: TokenLimits | None = None


class Rotation(Schema):
    """A token that gets a new text.

    Attributes:
        overlap_s: Seconds for which the old text is good, too, while it is replaced everywhere.
        lifetime_s: Seconds for which the token is good from now on; None for as long as it was made for.
    """

    overlap_s: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0
    lifetime_s: Annotated[int, Field(ge=1, le=LONGEST_LIFE_S)] | None = None


class MadeToken(Schema):
    """A token and its text, this once.

    Attributes:
        token: The token.
        text: What is sent as `Authorization: Bearer`; it is kept nowhere.
    """

    token: Token
    text: str


def check_gives(maker: Principal, role: Role, project: str | None) -> None:
    """Refuses a token that could do more than its maker.

    Raises:
        Forbidden: It could.
    """
    if not allows(maker.role, role):
        raise Forbidden(f"a token may at most do what its maker's may; {maker.name!r} has {maker.role!r}, not {role!r}")
    if maker.project not in (None, project):
        raise Forbidden(
            f"a token of the project {maker.project!r} makes and changes tokens of that project only; got "
            f"{project or 'one of all projects'!r}"
        )
