"""A dataclass of plain values as one argument of a command line, in JSON, and back.

For what is said to a process that imports nothing heavy: pydantic would take longer than all that it does.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Plain = TypeVar("_Plain", bound="DataclassInstance")


def in_words(value: DataclassInstance) -> str:
    """Return it as JSON. Its fields are texts, numbers, and tuples and mappings of them."""
    return json.dumps(asdict(value))


def from_words(kind: type[_Plain], words: str) -> _Plain:
    """Read what ``in_words`` wrote. Raises: ValueError, TypeError for anything else."""
    fields: dict[str, Any] = json.loads(words)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
