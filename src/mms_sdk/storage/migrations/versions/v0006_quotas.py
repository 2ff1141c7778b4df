"""Projects of jobs, and their quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the column, in which all jobs so far are of the project `default`, and the table."""
    op.add_column("jobs", sa.Column("project", _text(63), nullable=False, server_default="default"))
    op.create_index("jobs_that_wait", "jobs", ["state", "engine", "project"])
    op.create_table(
        "quotas",
        sa.Column("project", _text(63), primary_key=True),
        sa.Column("cpus", sa.BigInteger),
        sa.Column("gpus", sa.BigInteger),
        sa.Column("memory", sa.BigInteger),
    )


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
