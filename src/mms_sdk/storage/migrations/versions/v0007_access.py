"""Tokens that expire, are revoked and rotated, belong to a project, and have limits; the end of the audit log."""

import sqlalchemy as sa
from alembic import op

from mms_sdk.storage.ids import new_id

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds the columns; tokens so far are of all projects, do not expire, and get an id. Adds a table."""
    op.add_column("tokens", sa.Column("id", _text(26)))
    op.add_column("tokens", sa.Column("project", _text(63)))
    op.add_column("tokens", sa.Column("expires_at", _text(32)))
    op.add_column("tokens", sa.Column("last_used_at", _text(32)))
    op.add_column("tokens", sa.Column("revoked_at", _text(32)))
    op.add_column("tokens", sa.Column("created_by", _text(63)))
    op.add_column("tokens", sa.Column("limits", sa.JSON))
    op.add_column("tokens", sa.Column("previous_hash", _text(64)))
    op.add_column("tokens", sa.Column("previous_until", _text(32)))
    op.create_index("tokens_by_previous", "tokens", ["previous_hash"])
    op.create_table(
        "audit_head",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", _text(64), nullable=False),
    )
    table = sa.table("tokens", sa.column("hash"), sa.column("id"))
    for row in op.get_bind().execute(sa.select(table.c.hash)).all():
        op.execute(sa.update(table).where(table.c.hash == row.hash).values(id=new_id()))


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
