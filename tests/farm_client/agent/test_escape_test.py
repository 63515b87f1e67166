"""`farm-client escape-test`: what it prints, and that it fails where a case got out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farm_client.agent import escape_test
from farm_client.agent.cli import app
from farm_client.agent.escape_test import EscapeReport
from farm_client.sandbox.escape_run import EscapeResult
from protocol.sandbox import Rung

RESULTS = (
    EscapeResult("read_secret", Rung.STRICT, True, "FileNotFoundError"),
    EscapeResult("fill_tmp", Rung.STRICT, True, "it got nothing"),
    EscapeResult("read_secret", Rung.LANDLOCK, False, "read 6 bytes"),
    EscapeResult("fill_tmp", Rung.LANDLOCK, None, "landlock does not claim it: sized_tmp"),
)


def envelopes(stdout: str, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in stdout.splitlines()]
    return [line["data"] for line in lines if line["kind"] == kind]


def test_a_case_is_run_on_each_rung_that_holds_and_told_in_envelopes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    answer = CliRunner().invoke(app, ["escape-test", "--home", str(home), "--case", "read_secret", "--json"])
    cases, last = envelopes(answer.stdout, "escape_case"), envelopes(answer.stdout, "escape_test")
    assert len(last) == 1
    assert cases or last[0]["refused_rungs"]
    assert answer.exit_code == (0 if cases else 1), answer.output
    assert all(set(one) == {"case", "rung", "contained", "detail"} and one["contained"] for one in cases)
    assert last[0]["rungs"] == {one["rung"]: {"contained": 1, "escaped": 0, "not_run": 0} for one in cases}
    assert not list(home.iterdir()), "nothing is left in the home"


def test_a_case_that_got_out_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def escapes(confinement: object, case: object, *_: object) -> EscapeResult:
        return EscapeResult("read_secret", Rung.LANDLOCK, False, "read 6 bytes")

    monkeypatch.setattr(escape_test, "run_case", escapes)
    answer = CliRunner().invoke(app, ["escape-test", "--home", str(tmp_path / "home"), "--case", "read_secret"])
    assert answer.exit_code == 1
    assert "read_secret  ESCAPED\n    landlock: read 6 bytes" in answer.output


def test_a_rung_that_was_not_tried_is_no_success(tmp_path: Path) -> None:
    arguments = ["escape-test", "--home", str(tmp_path / "home"), "--rung", "container"]
    assert CliRunner().invoke(app, arguments).exit_code == 1


def test_a_case_that_nobody_knows_is_named(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["escape-test", "--home", str(tmp_path / "home"), "--case", "nonsense"])
    assert "no case is called nonsense; they are read_secret" in str(answer.exception)


def test_a_report_is_a_table_and_hides_nothing_that_was_not_run() -> None:
    report = EscapeReport(RESULTS, {"container": "container: not available"})
    assert report.in_lines() == [
        "case         strict     landlock",
        "read_secret  contained  ESCAPED",
        "    landlock: read 6 bytes",
        "fill_tmp     contained  not run",
        "not run: fill_tmp: landlock does not claim it: sized_tmp",
        "sandbox container was not tried: container: not available",
        "strict: 2 contained, 0 ESCAPED, 0 not run",
        "landlock: 0 contained, 1 ESCAPED, 1 not run",
    ]
    assert not report.is_contained
    assert EscapeReport(RESULTS[:2], {}).is_contained
    assert not EscapeReport(RESULTS[3:], {}).is_contained, "what was not run was not contained"
    assert not EscapeReport((), {}).is_contained
