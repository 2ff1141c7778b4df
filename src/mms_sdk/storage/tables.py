"""The catalog's tables. A change here comes with a migration; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)

metadata = MetaData()


def text(length: int) -> String:
    """A text that is compared byte by byte, as SQLite does, whatever language a server sorts in."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


# One row, once a server's database has been given to a workspace.
workspace = Table("workspace", metadata, Column("id", text(26), primary_key=True))

jobs = Table(
    "jobs",
    metadata,
    Column("id", text(26), primary_key=True),
    Column("kind", text(16), nullable=False),
    Column("name", text(63), nullable=False),
    Column("state", text(16), nullable=False),
    Column("created_at", text(32), nullable=False),
    Column("started_at", text(32)),
    Column("ended_at", text(32)),
    Column("progress", JSON, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    Column("error", JSON),
    Column("owner", text(64), nullable=False),
    Column("parent", text(26)),
    Column("engine", text(16)),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("key", text(64)),
    Column("not_before", text(32)),
    Column("project", text(63), nullable=False, server_default="default"),
    Column("cleaned_at", text(32)),
    Index("jobs_by_state", "state"),
    Index("jobs_by_key", "key", unique=True),
    Index("jobs_by_parent", "parent", "id"),
    Index("jobs_by_kind", "kind", "id"),
    Index("jobs_that_wait", "state", "engine", "project", "priority", "id", "not_before"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", text(26), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("owner", text(64), nullable=False),
    Column("given", JSON, nullable=False),
    Column("started_at", text(32), nullable=False),
    Column("ended", JSON),
)

events = Table(
    "events",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", text(32), nullable=False),
    Column("job", text(26), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer),
    Column("kind", text(16), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("events_by_job", "job", "number"),
)

lineage = Table(
    "lineage",
    metadata,
    Column("job", text(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("way", text(8), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("label", text(63), nullable=False),
    Column("what", text(8), nullable=False),
    Column("name", text(63), nullable=False),
    Column("number", BigInteger),
    Column("split", text(63)),
    Index("lineage_by_name", "name", "what", "way", "number"),
)

quotas = Table(
    "quotas",
    metadata,
    Column("project", text(63), primary_key=True),
    Column("cpus", BigInteger),
    Column("gpus", BigInteger),
    Column("memory", BigInteger),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", text(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("created_at", text(32), nullable=False),
    Column("artifact", text(26), nullable=False, unique=True),
    Column("digest", text(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("card", JSON, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", text(63), primary_key=True),
    Column("alias", text(63), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", text(63), primary_key=True),
    Column("model", text(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("max_batch", Integer, nullable=False),
    Column("created_at", text(32), nullable=False),
    ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", text(64), primary_key=True),
    Column("name", text(63), nullable=False, unique=True),
    Column("role", text(16), nullable=False),
    Column("created_at", text(32), nullable=False),
    Column("id", text(26)),
    Column("project", text(63)),
    Column("expires_at", text(32)),
    Column("last_used_at", text(32)),
    Column("revoked_at", text(32)),
    Column("created_by", text(63)),
    Column("limits", JSON),
    Column("previous_hash", text(64)),
    Column("previous_until", text(32)),
    Index("tokens_by_previous", "previous_hash"),
)

# One row, once the audit log has a line: the last one that is known to be in it.
audit_head = Table(
    "audit_head",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", text(64), nullable=False),
)
