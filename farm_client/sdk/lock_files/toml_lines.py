"""Finds the line of a TOML file on which an entry of an array of tables begins, which ``tomllib`` leaves out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from protocol.errors import InvalidTask


def read_toml(text: str) -> dict[str, Any]:
    """Return the document. Raises: InvalidTask, with the line that tomllib names."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"it is not TOML: {error}") from error


class EntryLines:
    """The lines on which the tables ``[[NAME]]`` of a text begin."""

    def __init__(self, text: str, name: str) -> None:
        header = re.compile(rf"\s*\[\[\s*{name}\s*\]\]")
        self._lines = [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]

    def of(self, index: int) -> int:
        """Return the line of an entry by its index; 1 where it is written in another way."""
        return self._lines[index] if index < len(self._lines) else 1

    def error(self, index: int, problem: object) -> InvalidTask:
        """Return an error that names an entry's line."""
        return InvalidTask(f"line {self.of(index)}: {problem}")


def tables(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return an array of tables. Raises: InvalidTask if there is something else by that name."""
    found = document.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InvalidTask(f"{name} is no list of tables")
    return found
