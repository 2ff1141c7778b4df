"""Tokens: made, listed, rotated and revoked by admins. A token's text is in the one answer that makes it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from mms_sdk.schema.access import MadeToken, Rotation, Token, TokenRequest, check_gives
from mms_sdk.service.guard import NAMES
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Asking, Service

router = APIRouter(prefix="/v1/tokens", tags=["access"])
_UNKEPT = {"cache-control": "no-store"}


@router.get("", **needs("admin", projects=True))
def list_tokens(service: Service, asking: Asking) -> list[Token]:
    """All tokens by name, revoked and expired ones too."""
    return service.workspace.catalog.tokens.list(project=asking.project)


@router.get(":own", **needs("predict", projects=True))
def own_token(service: Service, asking: Asking) -> Token:
    """The token that this is asked with."""
    return service.workspace.catalog.tokens.get(asking.name)


@router.post("", status_code=201, **needs("admin", projects=True))
def create_token(
    service: Service, asking: Asking, request: Request, response: Response, asked: TokenRequest
) -> MadeToken:
    """Makes a token that may do no more than the one this is asked with."""
    request.scope["state"][NAMES] = {"name": asked.name, "role": asked.role, "project": asked.project or "all"}
    check_gives(asking, asked.role, asked.project)
    response.headers.update(_UNKEPT)
    return service.workspace.catalog.tokens.create(asked, by=asking.name)


@router.get("/{name}", **needs("admin", projects=True))
def get_token(service: Service, asking: Asking, name: str) -> Token:
    """One token."""
    return _own(service, asking, name)


@router.post("/{name}:rotate", **needs("admin", projects=True))
def rotate_token(service: Service, asking: Asking, response: Response, name: str, asked: Rotation) -> MadeToken:
    """Gives a token a new text; the old one is good no longer than the overlap that is asked for."""
    _own(service, asking, name)
    made = service.workspace.catalog.tokens.rotate(name, asked)
    service.tokens.forget()
    response.headers.update(_UNKEPT)
    return made


@router.delete("/{name}", **needs("admin", projects=True))
def revoke_token(service: Service, asking: Asking, name: str) -> Token:
    """Makes a token worthless: for this process at once, for others that serve the workspace within two seconds."""
    _own(service, asking, name)
    revoked = service.workspace.catalog.tokens.revoke(name)
    service.tokens.forget()
    return revoked


def _own(service: Service, asking: Asking, name: str) -> Token:
    token = service.workspace.catalog.tokens.get(name)
    check_gives(asking, token.role, token.project)
    return token
