"""Events: what happened to jobs, in order."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Makes the table; what happened before it was there is told by nobody."""
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", _text(32), nullable=False),
        sa.Column("job", _text(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("kind", _text(16), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_index("events_by_job", "events", ["job", "number"])


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
