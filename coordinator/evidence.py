"""Evidence against a task since its last commit: the failures that clients reported."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import Final

DEATHS: Final = frozenset({"killed", "exited", "bad_report"})
"""Codes of failures in which an executor ended, or spoke nonsense, by itself."""
_FROM_OUTSIDE: Final = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})
"""Whoever runs the machine sends these, or its kernel; code seldom does."""
_SIGNAL: Final = re.compile(r"\bSIG[A-Z]{2,6}\b")


@dataclass(frozen=True, slots=True)
class Death:
    """How an executor ended; ``from_outside``: as machines are shut down, so that it takes more to blame the code."""

    kind: str
    from_outside: bool


def death_of(code: str, message: str) -> Death | None:
    """Return the kind of death that a failure reports: the same for the same cause; None if nothing died."""
    if code not in DEATHS:
        return None
    signal = found[0] if (found := _SIGNAL.search(message)) else ""
    return Death(f"{code} {signal}".strip(), signal in _FROM_OUTSIDE)


@dataclass(slots=True)
class Evidence:
    """The failures that clients reported of a task since its last commit, which clears them."""

    since: float = inf
    """When the first of them spoke."""
    code: dict[str, str] = field(default_factory=dict)
    """Client id to message: where the researcher's code failed."""
    deaths: dict[str, dict[str, int]] = field(default_factory=dict)
    """By kind and client id: how often executors ended in it."""
    parts: set[int] = field(default_factory=set)
    """The positions of the parts that failed; of a map, whose other parts say nothing of these."""
    failures: int = 0
    """Failed assignments that count, over all openings of the round."""

    @property
    def speakers(self) -> set[str]:
        """Return the clients that blame the task's code."""
        return {*self.code, *(client for clients in self.deaths.values() for client in clients)}
