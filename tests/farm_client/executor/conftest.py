"""No script goes on after its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm_client.executor.script import Script
from farm_client.own_loop import host_parts


@pytest.fixture(autouse=True)
def _scripts_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End all scripts that a test began: each would wait for a part on its thread."""
    scripts: list[Script] = []

    class Recorded(Script):
        def __init__(self, code_dir: Path, entry: str, config: dict[str, Any]) -> None:
            scripts.append(self)
            super().__init__(code_dir, entry, config)

    monkeypatch.setattr("farm_client.executor.script_runner.Script", Recorded)
    yield
    for script in scripts:
        script.end()
    host_parts(None)
