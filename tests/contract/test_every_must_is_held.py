"""Each MUST in a port's docstring is one that a test of this folder holds, and no test holds what none says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.contract import test_blobs, test_bus, test_insisting, test_ledger, test_ledger_model
from tests.contract.holds import HELD

PORTS = Path(__file__).parents[2] / "storage" / "ports"
SUITES = (test_blobs, test_bus, test_insisting, test_ledger, test_ledger_model)


def _said(path: Path) -> str:
    """Return all docstrings of a port but the module's own, on one line."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, _DOCUMENTED)]
    return " | ".join(re.sub(r"\s+", " ", ast.get_docstring(node) or "") for node in nodes)


_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SAID = {path.stem: _said(path) for path in sorted(PORTS.glob("[a-z]*.py"))}


@pytest.mark.parametrize("port", SAID)
def test_every_must_has_a_test(port: str) -> None:
    said = SAID[port]
    held = [range(at := said.index(words), at + len(words)) for words in HELD if words in said]
    places = [match.start() for match in re.finditer("MUST", said)]
    assert places, "a port promises something"
    bare = [said[max(at - 60, 0) : at + 60] for at in places if not any(at in words for words in held)]
    assert not bare, f"hold these by a test of {[suite.__name__ for suite in SUITES]}"


@pytest.mark.parametrize(("words", "test"), HELD.items())
def test_no_test_holds_what_no_port_says(words: str, test: str) -> None:
    assert "MUST" in words, test
    assert sum(said.count(words) for said in SAID.values()) == 1, f"{test}: {words}"
