"""Jobs, model versions, aliases, deployments and tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def text(length: int) -> sa.String:
    """A text that is compared byte by byte, whatever language a server sorts in."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Makes the first tables."""
    op.create_table(
        "jobs",
        sa.Column("id", text(26), primary_key=True),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("name", text(63), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("created_at", text(32), nullable=False),
        sa.Column("started_at", text(32)),
        sa.Column("ended_at", text(32)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("owner", text(64), nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state"])
    op.create_table(
        "model_versions",
        sa.Column("model", text(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created_at", text(32), nullable=False),
        sa.Column("artifact", text(26), nullable=False, unique=True),
        sa.Column("digest", text(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
    )
    op.create_table(
        "aliases",
        sa.Column("model", text(63), primary_key=True),
        sa.Column("alias", text(63), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    )
    op.create_table(
        "deployments",
        sa.Column("name", text(63), primary_key=True),
        sa.Column("model", text(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("max_batch", sa.Integer, nullable=False),
        sa.Column("created_at", text(32), nullable=False),
        sa.ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
    )
    op.create_table(
        "tokens",
        sa.Column("hash", text(64), primary_key=True),
        sa.Column("name", text(63), nullable=False, unique=True),
        sa.Column("role", text(16), nullable=False),
        sa.Column("created_at", text(32), nullable=False),
    )
