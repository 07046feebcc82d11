"""A ledger of any revision goes up with a row in every table, and no row loses a value."""

import contextlib
import sqlite3

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Float, Integer, MetaData, create_engine, insert, select

from dicom_node.store.database import Database, migrate
from dicom_node.store.tables import metadata


def configured(connection=None):
    config = Config()
    config.set_main_option("script_location", "dicom_node:store/migrations")
    config.attributes["connection"] = connection
    return config


REVISIONS = [one.revision for one in ScriptDirectory.from_config(configured()).walk_revisions()]
HEAD, *OLDER = REVISIONS


def a_value(column):
    """Of the column's type, and of no other column's, so that a swap is seen."""
    for key in column.foreign_keys:
        return a_value(key.column)
    for kind, value in (
        (Boolean, True),
        (Integer, 7),
        (Float, 1.25),
        (JSON, {"name": column.name}),
    ):
        if isinstance(column.type, kind):
            return value
    return f"{column.table.name}.{column.name}"


def rows(connection, tables, columns):
    """Table -> its only row, of the columns that it had."""
    found = {}
    for name, table in tables.items():
        [row] = connection.execute(select(*(table.c[column] for column in columns[name])))
        found[name] = tuple(row)
    return found


@pytest.mark.parametrize("revision", OLDER)
def test_a_ledger_of_each_revision_keeps_every_row(tmp_path, revision):
    path = tmp_path / "ledger.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(configured(connection), revision)
        old = MetaData()
        old.reflect(connection)
        version = old.tables["alembic_version"]
        assert connection.execute(select(version)).scalar_one() == revision
        old.remove(version)
        for table in old.sorted_tables:
            connection.execute(insert(table).values({c.name: a_value(c) for c in table.columns}))
        columns = {name: list(table.c.keys()) for name, table in old.tables.items()}
        before = rows(connection, old.tables, columns)
    engine.dispose()
    migrate(path)
    assert set(columns) <= set(metadata.tables)
    database = Database(path)
    try:
        with database.read() as connection:
            assert rows(connection, {n: metadata.tables[n] for n in columns}, columns) == before
    finally:
        database.close()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
