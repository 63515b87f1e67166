"""How often this client beats and reports: what the farm requests, within fixed bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from protocol.limits import HEARTBEAT_SECONDS, MAX_PACE_SECONDS, MIN_PACE_SECONDS, PROGRESS_SECONDS
from protocol.messages import Pace, Welcome


@dataclass(frozen=True, slots=True)
class HeartbeatIntervals:
    """Intervals in seconds."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    progress_seconds: float = PROGRESS_SECONDS
    idle_heartbeat_seconds: float = HEARTBEAT_SECONDS

    @classmethod
    def told(cls, message: Welcome | Pace) -> Self:
        """Return what a farm requested, within bounds."""
        heartbeat_seconds = _bounded(message.heartbeat_seconds)
        idle_seconds = message.idle_heartbeat_seconds
        return cls(
            heartbeat_seconds,
            _bounded(message.progress_seconds),
            heartbeat_seconds if idle_seconds is None else _bounded(idle_seconds),
        )

    @property
    def step_seconds(self) -> float:
        """Return the longest sleep that misses neither."""
        return min(self.heartbeat_seconds, self.progress_seconds)


def _bounded(seconds: float) -> float:
    return min(max(MIN_PACE_SECONDS, seconds), MAX_PACE_SECONDS)  # in this order NaN is the shortest, and no NaN
