"""Every revision of the catalog that there was becomes today's, with what was in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from mms_sdk.storage import migrations, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at

SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).parent))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


@pytest.fixture
def engine(catalog_at: Path | str) -> Iterator[sa.Engine]:
    """An empty database, as the catalog will find it."""
    made = database_at(catalog_at).engine()
    yield made
    made.dispose()


def fill(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    """Puts one row into every table that there is, and returns all of them."""
    found = sa.MetaData()
    found.reflect(connection)
    filled: dict[str, dict[str, Any]] = {}
    for table in found.sorted_tables:
        if table.name != "alembic_version":
            filled[table.name] = {column.name: some_value(column, filled) for column in table.columns}
            connection.execute(sa.insert(table).values(filled[table.name]))
    return {name: [row] for name, row in filled.items()}


def some_value(column: sa.Column[Any], filled: dict[str, dict[str, Any]]) -> Any:
    for key in column.foreign_keys:
        return filled[key.column.table.name][key.column.name]
    match column.type:
        case sa.String() as text:
            return f"é{column.name}"[: text.length]
        case sa.Integer():
            return 7
        case sa.JSON():
            return {"é": [1, None, "x"]}
    raise AssertionError(f"fill {column} with what? say it here")


def content(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
        for table in tables.metadata.sorted_tables
    }


def described(engine: sa.Engine) -> dict[str, Any]:
    """All that the database says of its tables, collations included."""
    seen = sa.inspect(engine)
    return {
        name: (
            [{**column, "type": repr(column["type"])} for column in seen.get_columns(name)],
            seen.get_pk_constraint(name)["constrained_columns"],
            sorted(seen.get_foreign_keys(name), key=str),
            sorted(seen.get_indexes(name), key=str),
            sorted(seen.get_unique_constraints(name), key=str),
        )
        for name in seen.get_table_names()
        if name != "alembic_version"
    }


def test_the_newest_migration_is_the_one_the_catalog_asks_for() -> None:
    assert SCRIPTS.get_heads() == [migrations.HEAD]


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_catalog_of_each_revision_becomes_todays_and_keeps_its_rows(
    catalog_at: Path | str, engine: sa.Engine, revision: str
) -> None:
    writing = engine.execution_options(mms_write=True)
    with writing.begin() as connection:
        migrations.upgrade(connection, revision)
        rows = fill(connection)

    catalog = Catalog(catalog_at)

    with catalog.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        assert context.get_current_revision() == migrations.HEAD
        now = content(connection)
    catalog.close()
    for name, before in rows.items():
        kept = [{column: row[column] for column in before[0]} for row in now[name]]
        assert kept == before


def test_migrated_tables_are_those_that_the_catalog_describes(catalog_at: Path | str, engine: sa.Engine) -> None:
    Catalog(catalog_at).close()
    migrated = described(engine)
    tables.metadata.drop_all(engine)

    tables.metadata.create_all(engine)

    assert migrated == described(engine)
