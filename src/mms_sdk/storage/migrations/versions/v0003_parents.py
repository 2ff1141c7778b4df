"""Which job another is a part of: the trials of a study are found by it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column, empty, and what parts and kinds are found by."""
    text = sa.String(26).with_variant(sa.String(26, collation="C"), "postgresql")
    op.add_column("jobs", sa.Column("parent", text))
    op.create_index("jobs_by_parent", "jobs", ["parent", "id"])
    op.create_index("jobs_by_kind", "jobs", ["kind", "id"])
