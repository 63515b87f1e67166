"""A circuit breaker per client: one that fails again and again gets no work until a probe succeeds.

Source: M. Nygard, "Release It!" (2007): closed, open, half-open. Only the machine's own faults count: neither the
researcher's errors nor a refusal. A machine that fails on a single task is kept off that task alone, for the fault may
be the task's: no one task opens the breaker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.decision import Decision
from protocol.retry import RetryPolicy


class BreakerState(StrEnum):
    """Whether work flows to the client."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


_CLOSED = Decision(True)


@dataclass(slots=True)
class Breaker:
    """One client's breaker. ``by_task``: failures in a row; ``trips`` lengthen the time that it stays open."""

    by_task: dict[str, int] = field(default_factory=dict)
    trips: int = 0
    open_until: float | None = None

    def state(self, now: float) -> BreakerState:
        """Return the state as of ``now``."""
        if self.open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.open_until else BreakerState.HALF_OPEN

    @property
    def failures(self) -> int:
        """Count the failures in a row, on all tasks."""
        return sum(self.by_task.values())

    def failed(self, task_id: str, now: float, threshold: int, policy: RetryPolicy) -> bool:
        """Count a failure; returns whether the breaker tripped: at the threshold, or because a probe failed.

        No single task counts for as much as the threshold.
        """
        self.by_task[task_id] = min(self.by_task.get(task_id, 0) + 1, threshold - 1)
        if self.open_until is None and self.failures < threshold:
            return False
        self.trips += 1
        self.open_until = now + policy.bound_seconds(self.trips)
        return True

    def succeeded(self) -> bool:
        """Close the breaker; returns whether it was open."""
        was_open = self.open_until is not None
        self.by_task, self.trips, self.open_until = {}, 0, None
        return was_open

    def forgive(self, task_id: str) -> None:
        """Take back what one task counted: it was its own fault. An open breaker stays so until its probe."""
        self.by_task.pop(task_id, None)

    def allows(self, now: float, held: int) -> Decision[bool]:
        """Whether the client may get an assignment while it holds ``held`` others."""
        if self.open_until is None:
            return _CLOSED
        match self.state(now):
            case BreakerState.OPEN:
                wait = (self.open_until or now) - now
                return Decision(False, f"its breaker is open after {self.failures} failures in a row, for {wait:.0f} s")
            case BreakerState.HALF_OPEN if held:
                return Decision(False, "its breaker is half-open and a probe is out")
        return Decision(True)
