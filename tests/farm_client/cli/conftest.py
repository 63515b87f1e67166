from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from farm_client.cli.app import run_command
from farm_client.cli.invocation import Surroundings
from tests.farm_client.cli.fake_farm import ADDRESS, FakeFarm


@dataclass(frozen=True)
class TaskOutcome:
    exit_code: int
    stdout: str
    stderr: str

    def envelopes(self, kind: str) -> list[Any]:
        """Return the data of the envelopes of one kind; every line of stdout must be an envelope."""
        lines = [json.loads(line) for line in self.stdout.splitlines()]
        assert all(set(line) == {"schema", "kind", "data"} and line["schema"] == 1 for line in lines)
        return [line["data"] for line in lines if line["kind"] == kind]

    def envelope(self, kind: str) -> Any:
        """Return the data of the only envelope of this kind."""
        (data,) = self.envelopes(kind)
        return data


_tree_of = functools.cache(typer.main.get_command)
"""The tree of commands, which a real process makes once: making it takes three quarters of a command's time."""


@pytest.fixture
def fake() -> FakeFarm:
    return FakeFarm()


@pytest.fixture
def farm(
    fake: FakeFarm, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TaskOutcome]:
    """Run `farm …` in this process against the fake farm."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(typer.main, "get_command", _tree_of)

    def run(*arguments: str, environ: dict[str, str] | None = None) -> TaskOutcome:
        settings = {"FARM_CONFIG": str(tmp_path / "config.toml"), "FARM_URL": ADDRESS}
        exit_code = run_command(
            arguments, Surroundings(settings if environ is None else {**settings, **environ}, fake.transport())
        )
        captured = capsys.readouterr()
        return TaskOutcome(exit_code, captured.out, captured.err)

    return run
