"""The queue in its order, so that who is next is found without a look at all who wait."""

from alembic import op

revision = "0008"
down_revision = "0006"


def upgrade() -> None:
    """Makes the index of jobs that wait anew, in the order in which they are next."""
    op.drop_index("jobs_that_wait", "jobs")
    op.create_index("jobs_that_wait", "jobs", ["state", "engine", "project", "priority", "id", "not_before"])
