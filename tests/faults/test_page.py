"""docs/reference/faults.md tells of every place and action, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE, Fault, FaultAction, parse_faults

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "faults.md").read_text(encoding="utf-8")


def names_in(section: str) -> list[str]:
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_page_lists_the_places_in_their_order() -> None:
    assert names_in("Places") == [str(place) for place in Fault]


def test_the_page_lists_the_actions() -> None:
    assert set(names_in("Actions")) == {str(action) for action in FaultAction} - {str(FaultAction.SLEEP)}


def test_the_page_s_example_can_be_read() -> None:
    example = re.search(rf'{FAULTS_VARIABLE}="([^"]+)"', PAGE)
    assert example is not None
    assert len(parse_faults(example[1]).pending) == 3
    assert SPENT_VARIABLE in PAGE


def test_the_tests_that_the_page_names_are_there() -> None:
    for name in set(re.findall(r"`(test_\w+\.py)`", PAGE)):
        assert (Path(__file__).parent / name).exists(), name
