"""What several tests of the storage start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.engine import writer_engine
from storage.migrate import migrate


@pytest.fixture(scope="session")
def blank_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an empty ledger of this version, to be copied: to make one takes longer than most tests."""
    path = tmp_path_factory.mktemp("blank") / "farm.db"
    engine = writer_engine(path)
    migrate(engine)
    engine.dispose()
    return path
