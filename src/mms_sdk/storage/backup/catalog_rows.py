"""A catalog as lines of JSON, which SQLite and PostgreSQL both can be filled from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from mms_sdk.errors import Conflict, Damaged
from mms_sdk.storage import migrations, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at

REVISION = migrations.HEAD
"""Of the tables whose rows `dump` gives."""
_OWN = ("workspace", "audit_head")  # says whose database it is, and where its own audit log ends; not what is in it


def dump(catalog: Catalog) -> Iterator[dict[str, Any]]:
    """All rows as they were at one moment, those that others refer to first: the table's name and the row."""
    with catalog.reading(one_moment=True) as connection:
        for table in tables.metadata.sorted_tables:
            if table.name not in _OWN:
                keys = list(table.primary_key.columns)
                for row in connection.execute(sa.select(table).order_by(*keys)).mappings():
                    yield {"table": str(table.name), "row": {str(name): value for name, value in row.items()}}


def fill(where: Path | str, workspace: str, rows: Iterable[bytes], *, revision: str) -> None:
    """Makes a catalog of lines that `dump` wrote, all or nothing, and brings it to the newest revision.

    Args:
        where: The database.
        workspace: Whose it is, by its id.
        rows: The lines.
        revision: Of the tables they come from.

    Raises:
        Conflict: There is something in the database.
        Damaged: The lines come from a newer MMS.
    """
    database = database_at(where)
    engine = database.engine()
    try:
        with (
            database.errors(),
            engine.connect().execution_options(mms_write=True) as connection,
            connection.begin(),
        ):
            if there := sa.inspect(connection).get_table_names():
                raise Conflict(
                    f"a workspace is restored with a catalog of its own; {database.name} has the tables {there[:5]}; "
                    f"name an empty database"
                )
            _fill(connection, rows, revision)
    finally:
        engine.dispose()
    catalog = Catalog(where)
    try:
        if isinstance(where, str):
            catalog.give_to(workspace)
    finally:
        catalog.close()


def _fill(connection: sa.Connection, rows: Iterable[bytes], revision: str) -> None:
    from alembic.util.exc import CommandError

    try:
        migrations.upgrade(connection, revision)
    except CommandError as error:
        raise Damaged(f"the backup's catalog comes from a newer MMS ({error}); upgrade mms-sdk") from error
    known = sa.MetaData()  # as they were then
    known.reflect(connection)
    for line in rows:
        told = orjson.loads(line)
        connection.execute(sa.insert(known.tables[told["table"]]).values(told["row"]))
