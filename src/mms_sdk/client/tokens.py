"""Tokens: who may ask a server for what."""

from __future__ import annotations

from typing import Any

from mms_sdk import html
from mms_sdk.client.api import Api
from mms_sdk.client.tables import Table
from mms_sdk.schema.access import USUAL_LIFE_S, MadeToken, Role, Token
from mms_sdk.schema.names import check_name


class NewToken:
    """A token that was just made or rotated. It shows itself without its text, which is nowhere but in `text`.

    Attributes:
        token: What it is.
        text: What is sent as `Authorization: Bearer`; pass it on, or write it where only its user can read.
    """

    def __init__(self, made: MadeToken) -> None:
        self.token = made.token
        self.text = made.text

    def __repr__(self) -> str:
        until = f"until {self.token.expires_at}" if self.token.expires_at else "for ever"
        return f"<token {self.token.name}, role {self.token.role}, good {until}; its text is in .text, this once>"

    def _repr_html_(self) -> str:
        return html.line(repr(self))


class Tokens:
    """The tokens of a workspace, by which its servers know who asks."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self) -> Table[Token]:
        """All of them, by name; revoked and expired ones too."""
        found = self._api.get("/v1/tokens", list[Token])
        return Table(found, title="tokens", rows=map(_row, found))

    def get(self, name: str) -> Token:
        """One of them.

        Raises:
            NotFound: There is none of that name.
        """
        return self._api.get(f"/v1/tokens/{check_name(name, what='token')}", Token)

    def create(
        self,
        name: str,
        *,
        role: Role = "predict",
        project: str | None = None,
        lifetime_s: int | None = USUAL_LIFE_S,
        requests_per_s: float | None = None,
        burst: int | None = None,
        concurrent: int | None = None,
    ) -> NewToken:
        """Makes a token.

        Args:
            name: What it is for, e.g. `ci`; no other token that is good has it.
            role: What it may do: `predict`, `viewer`, `editor` or `admin`, each of which may do all that those before
                it may. Who may submit jobs, as an `editor`, runs code.
            project: The one that it sees and changes; None for all.
            lifetime_s: Seconds for which it is good, 90 days of them if left out; None for ever.
            requests_per_s: Most requests a second, on average; None for any.
            burst: Requests that may come at once after a while without; what comes in two seconds if left out.
            concurrent: Most requests that are answered at the same time; None for any.

        Raises:
            Conflict: There is a good one of that name.
            Forbidden: It could do more than you may.
            InvalidRequest: Something that no token can be.
        """
        limits = {"requests_per_s": requests_per_s, "burst": burst, "concurrent": concurrent}
        asked = {
            "name": check_name(name, what="token"),
            "role": role,
            "project": project,
            "lifetime_s": lifetime_s,
            "limits": limits if any(each is not None for each in limits.values()) else None,
        }
        return NewToken(self._api.send("POST", "/v1/tokens", MadeToken, asked))

    def rotate(self, name: str, *, overlap_s: int = 0, lifetime_s: int | None = None) -> NewToken:
        """Gives a token a new text.

        Args:
            name: Which.
            overlap_s: Seconds, up to a week, for which the old text is good, too, while it is replaced everywhere.
            lifetime_s: Seconds for which the token is good from now on; None for as long as it was made for.

        Raises:
            NotFound: There is none of that name.
            Conflict: It was revoked or has expired.
        """
        asked = {"overlap_s": overlap_s, "lifetime_s": lifetime_s}
        made = self._api.send("POST", f"/v1/tokens/{check_name(name, what='token')}:rotate", MadeToken, asked)
        return NewToken(made)

    def revoke(self, name: str) -> Token:
        """Makes a token worthless for good: for the server that is asked at once, for others within two seconds.

        Raises:
            NotFound: There is none of that name.
            Conflict: It is the last one with the role `admin` for all projects.
        """
        return self._api.send("DELETE", f"/v1/tokens/{check_name(name, what='token')}", Token)


def _row(token: Token) -> dict[str, Any]:
    state = f"revoked {token.revoked_at}" if token.revoked_at else token.expires_at or "never"
    return {
        "token": token.name,
        "role": token.role,
        "project": token.project or "all",
        "expires": state,
        "last used": token.last_used_at,
        "made by": token.created_by,
    }
