"""How often clients beat and report: as in the settings, and less often while the server is overloaded.

The rule is pure; ``Pacer`` is told of the load a few times a second and says when the pace changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from coordinator.decision import Decision
from protocol.limits import MAX_PACE_SECONDS

BEATS_PER_SECOND: Final = 1000.0
"""So many heartbeats leave a core most of its time."""
IDLE_BEATS_PER_SECOND: Final = 150.0
"""Who has no work has little to say: the farm need not hear more of it, however many wait for work."""
LAG_SECONDS: Final = 0.2
"""An event loop that is so late, on the average of some seconds, hears more than it should."""
BACKLOG: Final = 2000
"""So many commands that wait for the ledger are too many."""
MAX_SLOWDOWN: Final = 5.0
"""Beats every 10 s instead of every 2 s, at most."""
CALM_SECONDS: Final = 30.0
"""The load must have been lower for so long before the pace quickens: it rises again with the pace."""
_LAG_MEMORY_SECONDS: Final = 5.0
_WORTH_A_MESSAGE: Final = 1.25


@dataclass(frozen=True, slots=True)
class ReportIntervals:
    """The intervals of heartbeats and of progress, and after how long a silent client is lost.

    ``idle_heartbeat_seconds``: of clients that hold no assignment.
    """

    heartbeat_seconds: float
    progress_seconds: float
    lost_after_seconds: float
    idle_heartbeat_seconds: float

    @property
    def idle_lost_after_seconds(self) -> float:
        """Return after how long a silent client without work is lost: as many beats may fail to come."""
        return self.lost_after_seconds + 2 * (self.idle_heartbeat_seconds - self.heartbeat_seconds)

    def slowed(self, factor: float, idle_factor: float = 1.0) -> ReportIntervals:
        """Return it with longer intervals.

        A client is lost when two more beats fail to come than at the usual pace: what a network may swallow does not
        grow with the interval.
        """
        longest = max(MAX_PACE_SECONDS, self.heartbeat_seconds)
        heartbeat = min(self.heartbeat_seconds * factor, longest)
        return ReportIntervals(
            heartbeat,
            self.progress_seconds * factor,
            self.lost_after_seconds + 2 * (heartbeat - self.heartbeat_seconds),
            min(self.heartbeat_seconds * max(factor, idle_factor), longest),
        )


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """The load of the server. ``working``: clients with work; ``backlog``: commands that wait for the ledger."""

    clients: int
    working: int
    lag_seconds: float
    backlog: int


def slowdown(load: ServerLoad, heartbeat_seconds: float) -> Decision[float]:
    """Return how many times longer than usual the intervals should be, from 1 to ``MAX_SLOWDOWN``, and why."""
    factor, reason = max(
        (
            load.working / heartbeat_seconds / BEATS_PER_SECOND,
            f"{load.working} client{'s beat' if load.working != 1 else ' beats'}",
        ),
        (load.lag_seconds / LAG_SECONDS, f"the event loop is {load.lag_seconds * 1000:.0f} ms late"),
        (load.backlog / BACKLOG, f"{load.backlog} commands wait for the ledger"),
    )
    return Decision(1.0, "nothing is too much") if factor <= 1 else Decision(min(factor, MAX_SLOWDOWN), reason)


def idle_slowdown(clients: int, heartbeat_seconds: float) -> float:
    """Return how many times longer than usual the interval of clients without work should be, at least 1.

    It follows from how many are connected, for who works changes from moment to moment.
    """
    return max(clients / heartbeat_seconds / IDLE_BEATS_PER_SECOND, 1.0)


class _Damped:
    """A factor that rises at once, falls by halves after a calm, and leaves small differences alone."""

    def __init__(self) -> None:
        self.value = 1.0
        self._busy_at = 0.0

    def follow(self, wanted: float, now: float) -> bool:
        """Come nearer to what is wanted; return whether the value may have changed."""
        if wanted >= self.value / _WORTH_A_MESSAGE:
            self._busy_at = now
        calm = now - self._busy_at >= CALM_SECONDS
        slower = wanted >= self.value * _WORTH_A_MESSAGE
        if not slower and not calm:
            return False
        self.value = wanted if slower else max(wanted, self.value / 2)
        self._busy_at = now
        return True


class Pacer:
    """Slows down at once, quickens by halves after a calm, and leaves small differences alone."""

    def __init__(self, usual: ReportIntervals) -> None:
        self._usual = usual
        self._slowdown = _Damped()
        self._idle_slowdown = _Damped()
        self._lag_seconds = 0.0
        self._looked_at: float | None = None
        self.intervals = usual
        self.reason = "nothing is too much"

    def look(self, load: ServerLoad, now: float) -> bool:
        """Record the load; return whether ``intervals`` has changed."""
        self._remember_lag(load.lag_seconds, now)
        heartbeat_seconds = self._usual.heartbeat_seconds
        wanted = slowdown(replace(load, lag_seconds=self._lag_seconds), heartbeat_seconds)
        if self._slowdown.follow(wanted.value, now):
            self.reason = wanted.reason
        self._idle_slowdown.follow(idle_slowdown(load.clients, heartbeat_seconds), now)
        former, self.intervals = self.intervals, self._usual.slowed(self._slowdown.value, self._idle_slowdown.value)
        return self.intervals != former

    def _remember_lag(self, lag_seconds: float, now: float) -> None:
        """Keep a moving average: one late tick is no load."""
        passed = now - self._looked_at if self._looked_at is not None else 0.0
        share = min(passed / _LAG_MEMORY_SECONDS, 1.0)
        self._lag_seconds += share * (lag_seconds - self._lag_seconds)
        self._looked_at = now


class SilenceLimit:
    """How long one client may be silent. A client that is told to beat more often has not heard of it at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._longer_seconds = seconds
        self._until = 0.0

    def change(self, seconds: float, now: float) -> None:
        """Expect another pace: a slower one from now on, a quicker one once the former limit has passed."""
        former = self.at(now)
        self._longer_seconds, self._until = max(former, seconds), now + former
        self._seconds = seconds

    def at(self, now: float) -> float:
        """Return the longest silence that is allowed now, in seconds."""
        return self._longer_seconds if now < self._until else self._seconds
