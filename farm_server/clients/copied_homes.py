"""Which clients turn out to be two machines: a home that was copied, with a disk or an image of a machine.

A client that comes back is the same run of the same process, or a new run after which the former never comes again. A
run that comes back after another one was proves that both are alive. What tells of no run (an older client), or shares
its run (a copy of a machine that was running), is suspected by its manners: connections that answer are replaced again
and again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

_RUNS: Final = 8
"""So many former runs of a client are remembered: as many copies are told from a client that comes back."""
SUSPECTED_TIMES: Final = 3
SUSPECTED_SECONDS: Final = 300.0


@dataclass(slots=True)
class _Client:
    run_id: str = ""
    former: deque[str] = field(default_factory=lambda: deque(maxlen=_RUNS))
    replaced_at: deque[float] = field(default_factory=lambda: deque(maxlen=SUSPECTED_TIMES))
    is_told: bool = False


class CopiedHomes:
    """What is known of the runs of each client since the server's start. Pure: ``now`` is any clock's seconds."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}

    def returns(self, client_id: str, run_id: str) -> bool:
        """Return whether this run was connected before the present one: then there are two."""
        known = self._clients.get(client_id)
        return known is not None and bool(run_id) and run_id != known.run_id and run_id in known.former

    def joined(self, client_id: str, run_id: str) -> None:
        """Record the run that is connected from now on."""
        known = self._clients.setdefault(client_id, _Client())
        if known.run_id and known.run_id != run_id and known.run_id not in known.former:
            known.former.append(known.run_id)
        known.run_id = run_id

    def replaced(self, client_id: str, now: float) -> bool:
        """Record that a connection that answered was replaced; return whether that was once too often."""
        times = self._clients.setdefault(client_id, _Client()).replaced_at
        times.append(now)
        return len(times) == SUSPECTED_TIMES and now - times[0] <= SUSPECTED_SECONDS

    def is_news(self, client_id: str) -> bool:
        """Return whether nobody was told of this client yet; from now on, somebody was."""
        known = self._clients.setdefault(client_id, _Client())
        is_news, known.is_told = not known.is_told, True
        return is_news
