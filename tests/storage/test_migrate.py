"""The migrations build the schema that the tables declare, and refuse what they do not know."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlmodel import SQLModel

from protocol.errors import FarmError
from storage import tables
from storage.engine import writer_engine
from storage.errors import NewerLedger
from storage.migrate import NEWEST, current_revision, migrate
from storage.upgrade import alembic_config


def _schema(path: Path) -> dict[str, object]:
    """Every table's columns, key and indexes, as SQLite itself describes them."""
    engine = writer_engine(path)
    inspector = inspect(engine)
    names = [name for name in inspector.get_table_names() if name != "alembic_version"]
    schema: dict[str, object] = {}
    for name in names:
        columns = [
            (c["name"], str(c["type"]), c["nullable"], c["primary_key"], c["default"])
            for c in inspector.get_columns(name)
        ]
        schema[name] = (columns, inspector.get_pk_constraint(name)["constrained_columns"])
    with engine.begin() as connection:
        indexes = connection.execute(
            text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        )
        schema["indexes"] = sorted(tuple(row) for row in indexes)
        counted = connection.execute(text("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'"))
        schema["autoincrement"] = sorted(counted.scalars())
    engine.dispose()
    return schema


def test_migrated_schema_is_the_declared_one(tmp_path: Path) -> None:
    migrated, declared = tmp_path / "migrated.db", tmp_path / "declared.db"
    engine = writer_engine(migrated)
    migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()
    engine = writer_engine(declared)
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    assert _schema(migrated) == _schema(declared)
    assert tables.TaskRow.__tablename__ in _schema(migrated)


def test_the_newest_migration_is_the_one_that_is_named() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == NEWEST


def test_a_ledger_that_is_up_to_date_needs_no_alembic(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    engine = writer_engine(path)
    migrate(engine)
    engine.dispose()
    opening = (
        "import sys; from pathlib import Path; from storage.engine import writer_engine; "
        "from storage.migrate import migrate; import storage.ledger; migrate(writer_engine(Path(sys.argv[1]))); "
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", opening, str(path)], check=False).returncode == 0


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    engine = writer_engine(tmp_path / "ledger.db")
    migrate(engine)
    before = _schema(tmp_path / "ledger.db")
    migrate(engine)
    engine.dispose()
    assert _schema(tmp_path / "ledger.db") == before


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    engine = writer_engine(path)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerLedger, match=r"newer farm-server \(schema 9999\).*upgrade") as refusal:
        migrate(engine)
    assert isinstance(refusal.value, FarmError)
    with engine.begin() as connection:
        assert current_revision(connection) == "9999"
    engine.dispose()


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE events (mine INTEGER)")  # in the way, late in the first migration
    engine = writer_engine(path)
    with pytest.raises(Exception, match="already exists"):
        migrate(engine)
    engine.dispose()
    assert set(_schema(path)) - {"indexes", "autoincrement"} == {"events"}
