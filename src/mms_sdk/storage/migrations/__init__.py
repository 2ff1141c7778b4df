"""Alembic migrations of the catalog, oldest first in `versions/`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

HEAD = "0009"


def upgrade(connection: sa.Connection, revision: str = HEAD) -> None:
    """Brings a catalog to a revision, inside the transaction of the connection.

    Raises:
        alembic.util.exc.CommandError: The catalog is at a revision that is not among these.
    """
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, revision)
