"""What jobs read and make."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds the table, in which jobs so far have no rows."""
    op.create_table(
        "lineage",
        sa.Column("job", _text(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("way", _text(8), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("label", _text(63), nullable=False),
        sa.Column("what", _text(8), nullable=False),
        sa.Column("name", _text(63), nullable=False),
        sa.Column("number", sa.BigInteger),
        sa.Column("split", _text(63)),
    )
    op.create_index("lineage_by_name", "lineage", ["name", "what", "way", "number"])


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
