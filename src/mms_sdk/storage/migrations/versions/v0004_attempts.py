"""Jobs that engines run: their place in the queue, and the attempts at them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the columns, for which jobs so far have no engine, and the table of attempts."""
    op.add_column("jobs", sa.Column("engine", _text(16)))
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("key", _text(64)))
    op.add_column("jobs", sa.Column("not_before", _text(32)))
    op.create_index("jobs_by_key", "jobs", ["key"], unique=True)
    op.create_table(
        "attempts",
        sa.Column("job", _text(26), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", _text(64), nullable=False),
        sa.Column("given", sa.JSON, nullable=False),
        sa.Column("started_at", _text(32), nullable=False),
        sa.Column("ended", sa.JSON),
    )


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
