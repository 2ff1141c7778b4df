"""Jobs whose files were removed; and the queue in its order, so that who is next is found without a look at all."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the column, in which no job so far has lost its files, and makes the index of jobs that wait anew."""
    op.add_column("jobs", sa.Column("cleaned_at", _text(32)))
    op.drop_index("jobs_that_wait", "jobs")
    op.create_index("jobs_that_wait", "jobs", ["state", "engine", "project", "priority", "id", "not_before"])


def _text(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
