"""Bring an older or a new ledger's schema up to this version, in one transaction, by Alembic's migrations."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from storage.errors import NewerLedger

_FOLDER: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = threading.Lock()
"""Alembic keeps the running migration in module globals: one at a time in a process."""


def upgrade(engine: Engine) -> None:
    """Upgrade the ledger to the newest schema; a new file gets it whole.

    Raises: NewerLedger if a later version of the farm wrote it. Nothing is changed then.
    """
    config = alembic_config()
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current == scripts.get_current_head():
            return
        if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
            raise NewerLedger(
                f"the ledger {engine.url.database} was written by a newer farm-server (schema {current}); "
                "upgrade with `pip install -U aifarm`, or use another data folder"
            )
        config.attributes["connection"] = connection
        with _ALEMBIC:
            command.upgrade(config, "head")


def alembic_config() -> Config:
    """Return Alembic's configuration for the migrations that are installed with this package."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
