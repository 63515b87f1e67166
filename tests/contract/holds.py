"""Says which MUST of a port's docstring a test holds to every implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
HELD: Final[dict[str, str]] = {}
"""The words of the docstrings, and the test that holds them."""


def holds(*words: str) -> Callable[[F], F]:
    """Mark a test: these words of the ports' docstrings, each with a MUST, are what it checks."""

    def mark(test: F) -> F:
        HELD.update(dict.fromkeys(words, test.__qualname__))
        return test

    return mark
