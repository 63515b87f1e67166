"""How a process's parts are put together so that a test can put a part of its own around, or in place of, any of them.

A composition (``FarmServer``, ``Agent``) hands the parts that a test may want to reach through a ``Wrap`` once, as it
builds them. What is shipped knows one of these: ``as_built``.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Wrap(Protocol):
    """Chooses what stands in a part's place."""

    def __call__(self, part: T, /) -> T:
        """Return the part, or something that can do whatever the part can."""


def as_built(part: T, /) -> T:
    """Return the part itself."""
    return part
