"""Access tokens, as the catalog keeps them: everything but the text, of which only the SHA-256 is there.

A text is 256 random bits behind `mms_`, so no slow hash is needed to keep it from being guessed.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from mms_sdk.errors import Conflict, NotFound
from mms_sdk.schema.access import MadeToken, Principal, Role, Rotation, Token, TokenLimits, TokenRequest
from mms_sdk.storage import tables
from mms_sdk.storage.ids import new_id, now

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog

PREFIX = "mms_"
"""What every token begins with, so that a scanner of code that was published by mistake finds it."""
_TABLE = tables.tokens
_SHOWN = tuple(Token.model_fields)


class Tokens:
    """The tokens of a catalog. Of those that are good, no two have one name."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def issue(self, name: str, role: Role) -> str:
        """Makes a token that does not expire, in place of an earlier one of that name.

        Returns:
            The token's text, which is kept nowhere else.
        """
        asked = TokenRequest(name=name, role=role, lifetime_s=None)
        with self._catalog.writing() as connection:
            return _insert(connection, asked, by=None).text

    def create(self, asked: TokenRequest, *, by: str) -> MadeToken:
        """Makes a token.

        Args:
            asked: What it is to be.
            by: The name of whoever makes it.

        Raises:
            Conflict: There is a good one of that name.
        """
        with self._catalog.writing() as connection:
            row = _row(connection, asked.name)
            if row is not None and _is_good(row):
                raise Conflict(
                    f"no two tokens have one name; there is {asked.name!r}, with the role {row.role!r}; rotate or "
                    f"revoke that one, or choose another name"
                )
            return _insert(connection, asked, by=by)

    def list(self, *, project: str | None = None) -> list[Token]:
        """All of them by name, revoked and expired ones too; of one project if it is named."""
        query = sa.select(_TABLE).order_by(_TABLE.c.name)
        if project is not None:
            query = query.where(_TABLE.c.project == project)
        with self._catalog.reading() as connection:
            return [_token(row) for row in connection.execute(query)]

    def get(self, name: str) -> Token:
        """One of them.

        Raises:
            NotFound: There is none of that name.
        """
        with self._catalog.reading() as connection:
            return _token(_there(connection, name))

    def is_good(self, name: str) -> bool:
        """Whether there is one of that name, neither revoked nor expired."""
        with self._catalog.reading() as connection:
            row = _row(connection, name)
        return row is not None and _is_good(row)

    def rotate(self, name: str, asked: Rotation) -> MadeToken:
        """Gives a token a new text; the old one is good no longer than the overlap.

        Raises:
            NotFound: There is none of that name.
            Conflict: It was revoked or has expired.
        """
        text = _new_text()
        with self._catalog.writing() as connection:
            row = _there(connection, name)
            if not _is_good(row):
                raise Conflict(f"a token is rotated while it is good; {name!r} is not any more; create a new one")
            values: dict[str, Any] = {"hash": hash_of(text), "previous_hash": None, "previous_until": None}
            if asked.overlap_s:
                values |= {"previous_hash": row.hash, "previous_until": _in(asked.overlap_s)}
            if asked.lifetime_s is not None:
                values["expires_at"] = _in(asked.lifetime_s)
            connection.execute(sa.update(_TABLE).where(_TABLE.c.name == name).values(**values))
            return MadeToken(token=_token(_there(connection, name)), text=text)

    def revoke(self, name: str) -> Token:
        """Makes a token worthless for good; one that is so already stays as it is.

        Raises:
            NotFound: There is none of that name.
            Conflict: It is the last one that may do everything, everywhere.
        """
        with self._catalog.writing() as connection:
            row = _there(connection, name)
            if row.revoked_at is None:
                if _is_good(row) and _rules(row) and not any(map(_is_good, _others_that_rule(connection, name))):
                    raise Conflict(
                        f"somebody must be able to make tokens; {name!r} is the last one with the role 'admin' for all "
                        f"projects; create another first, or rotate this one if somebody else has got it"
                    )
                values = {"revoked_at": now(), "previous_hash": None, "previous_until": None}
                connection.execute(sa.update(_TABLE).where(_TABLE.c.name == name).values(**values))
            return _token(_there(connection, name))

    def find(self, text: str) -> Principal | None:
        """Whose token it is, if anybody's."""
        hashed, at = hash_of(text), now()
        columns = _TABLE.c
        old = sa.and_(columns.previous_hash == hashed, columns.previous_until > at)
        with self._catalog.reading() as connection:
            row = connection.execute(sa.select(_TABLE).where(sa.or_(columns.hash == hashed, old))).first()
        if row is None or not _is_good(row):
            return None
        ends = [each for each in (row.expires_at, row.previous_until if row.hash != hashed else None) if each]
        return Principal(
            name=row.name,
            role=row.role,
            id=row.id,
            project=row.project,
            expires=min(map(_seconds, ends)) if ends else None,
            limits=TokenLimits.model_validate(row.limits) if row.limits else None,
        )

    def used(self, id: str) -> None:
        """Records that a token was used now."""
        with self._catalog.writing() as connection:
            connection.execute(sa.update(_TABLE).where(_TABLE.c.id == id).values(last_used_at=now()))


def hash_of(text: str) -> str:
    """What of a token's text the catalog has."""
    return hashlib.sha256(text.encode()).hexdigest()


def _insert(connection: sa.Connection, asked: TokenRequest, *, by: str | None) -> MadeToken:
    text = _new_text()
    connection.execute(sa.delete(_TABLE).where(_TABLE.c.name == asked.name))
    row = {
        "hash": hash_of(text),
        "id": new_id(),
        "created_at": now(),
        "created_by": by,
        "expires_at": None if asked.lifetime_s is None else _in(asked.lifetime_s),
        **asked.model_dump(exclude={"lifetime_s"}),
    }
    connection.execute(sa.insert(_TABLE).values(row))
    return MadeToken(token=_token(_there(connection, asked.name)), text=text)


def _new_text() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _row(connection: sa.Connection, name: str) -> Any:
    return connection.execute(sa.select(_TABLE).where(_TABLE.c.name == name)).first()


def _there(connection: sa.Connection, name: str) -> Any:
    row = _row(connection, name)
    if row is None:
        raise NotFound(f"no token {name!r}; list them with: mms tokens")
    return row


def _others_that_rule(connection: sa.Connection, name: str) -> list[Any]:
    rows = connection.execute(sa.select(_TABLE).where(_TABLE.c.role == "admin", _TABLE.c.name != name))
    return [row for row in rows if _rules(row)]


def _rules(row: Any) -> bool:
    return row.role == "admin" and row.project is None


def _is_good(row: Any) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now())


def _token(row: Any) -> Token:
    return Token.model_validate({name: row._mapping[name] for name in _SHOWN})


def _in(seconds: int) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
