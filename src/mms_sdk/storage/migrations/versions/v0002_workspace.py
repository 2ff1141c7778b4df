"""Whose catalog it is: a server's database could be given to two workspaces."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table of the one workspace."""
    text = sa.String(26).with_variant(sa.String(26, collation="C"), "postgresql")
    op.create_table("workspace", sa.Column("id", text, primary_key=True))
