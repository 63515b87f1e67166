"""The reference page names the tables, columns and manifest fields that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sqlmodel import SQLModel

from storage import tables
from storage.checkpoints import Manifest

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "storage.md").read_text(encoding="utf-8")


def test_the_page_lists_every_table_and_column() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
    documented = {
        row[0]: (row[1].split(", "), row[2].split(", ")) for row in rows if row[0] in SQLModel.metadata.tables
    }
    declared = {
        name: ([c.name for c in table.primary_key], [c.name for c in table.columns if not c.primary_key])
        for name, table in SQLModel.metadata.tables.items()
    }
    assert tables.TaskRow.__tablename__ in documented
    assert documented == declared


def test_the_page_shows_the_manifest() -> None:
    shown = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert list(json.loads(shown[1])) == list(Manifest.model_fields)
