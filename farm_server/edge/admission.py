"""How many clients may join at a time: as many as the event loop can serve; all others get a time to retry.

To greet a client costs the loop some milliseconds, more while much is going on. Where thousands come back at once (as
after a restart), greeting all of them as they come would make each wait for longer than it is willing to, and dial
again: the same work over and over. So joins have a rate, from what the last ones cost and from how late the loop is,
and who comes on top of it gets an appointment, each the next one: the crowd spreads itself over the time it needs.

Pure: it reads no clock and knows no socket.
"""

from __future__ import annotations

from typing import Final

SHARE_OF_LOOP: Final = 0.5
"""So much of the loop's time may go into greetings."""
LEAST_PER_SECOND: Final = 5.0
MOST_PER_SECOND: Final = 1000.0
BURST_SECONDS: Final = 0.5
"""After a quiet time so many seconds' worth of joins may come at once."""
LEAST_BURST: Final = 20.0
LATE_SECONDS: Final = 0.2
"""A loop that is later than that gets fewer joins, in proportion."""
GREETING_SECONDS: Final = 2.0
"""Greetings that are under way may be as many as are done in so long a time."""
LONGEST_APPOINTMENT_SECONDS: Final = 30.0
_FIRST_COST_SECONDS: Final = 0.002
_MEMORY: Final = 0.05
"""Share of the newest sample in the moving averages."""


class Admission:
    """A token bucket with a rate that follows what joins cost. ``now`` is in seconds and never runs backwards."""

    def __init__(self) -> None:
        self._cost_seconds = _FIRST_COST_SECONDS
        self._lag_seconds = 0.0
        self._tokens = LEAST_BURST
        self._filled_at: float | None = None
        self._appointment_at = 0.0
        self._under_way = 0

    @property
    def per_second(self) -> float:
        """Joins per second that the loop can take now."""
        rate = SHARE_OF_LOOP / self._cost_seconds
        if self._lag_seconds > LATE_SECONDS:
            rate *= LATE_SECONDS / self._lag_seconds
        return min(max(rate, LEAST_PER_SECOND), MOST_PER_SECOND)

    def ask(self, now: float) -> float | None:
        """Let one more in (None), who ``begins`` then; or say after how many seconds to come again."""
        self._fill(now)
        crowded = self._under_way >= max(self.per_second * GREETING_SECONDS, LEAST_BURST)
        if self._tokens >= 1 and not crowded:
            self._tokens -= 1
            return None
        latest = now + LONGEST_APPOINTMENT_SECONDS
        self._appointment_at = min(max(self._appointment_at, now) + 1 / self.per_second, latest)
        return self._appointment_at - now

    def begins(self) -> None:
        """A connection that was let in is there, and is to be greeted."""
        self._under_way += 1

    def ends(self) -> None:
        """Its greeting is over, one way or the other."""
        self._under_way -= 1

    def cost(self, seconds: float) -> None:
        """Learn how much of the loop's time a join has taken."""
        self._cost_seconds += _MEMORY * (seconds - self._cost_seconds)

    def look(self, lag_seconds: float) -> None:
        """Learn, a few times a second, how late the loop is: a lag counts at once, and is forgotten slowly."""
        self._lag_seconds = max(lag_seconds, self._lag_seconds + _MEMORY * (lag_seconds - self._lag_seconds))

    def _fill(self, now: float) -> None:
        passed = now - self._filled_at if self._filled_at is not None else 0.0
        most = max(self.per_second * BURST_SECONDS, LEAST_BURST)
        self._tokens = min(self._tokens + passed * self.per_second, most)
        self._filled_at = now
