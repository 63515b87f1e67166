"""A decision and its reason, for whoever waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """``value`` is what was decided, ``reason`` a clause that a person understands (empty where it is plain)."""

    value: T
    reason: str = ""
