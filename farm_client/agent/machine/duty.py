"""How much of the time work goes on: the rules of a duty cycle, of a share of the processor, and of a temperature.

Pure: the clock and the readings are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

PERIOD_SECONDS: Final = 0.5
"""Of one turn of work and rest. Shorter costs the agent time of its own; in a longer one progress comes in lumps."""
LEAST_DUTY: Final = 0.05
"""What the temperature slows down to: work that stood still would never show that it has cooled."""
_INSTANT_SECONDS: Final = 1e-3
"""A turn that is over but for so much is over: a clock in fractions may never reach its end."""
_COOLED_DEGREES: Final = 2.0
_SLOWER: Final = 0.8
_FASTER: Final = 0.05


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """What holds a share of the processor: so many cores, so much of the time."""

    cores: int
    duty: float


def cpu_plan(share: float, cores: int) -> CpuPlan:
    """Return the fewest cores that a share (over 0, to 1) of ``cores`` takes, and how much of the time they work.

    A third of two cores is one core for two thirds of the time. Less than a whole core at full speed would be a core
    that others find busy in turn.
    """
    wanted = share * cores
    used = min(cores, max(1, math.ceil(round(wanted, 6))))
    return CpuPlan(used, min(1.0, wanted / used))


@dataclass(frozen=True, slots=True)
class DutyTurn:
    """What to do now, and for how many seconds."""

    works: bool
    seconds: float


def turn_at(duty: float, now: float, period: float = PERIOD_SECONDS) -> DutyTurn:
    """Return the turn of a duty cycle at a moment (seconds on any clock); each period begins with work."""
    if duty >= 1.0:
        return DutyTurn(works=True, seconds=period)
    into = now % period
    works_until = max(0.0, duty) * period
    if works_until - into > _INSTANT_SECONDS:
        return DutyTurn(works=True, seconds=works_until - into)
    if period - into > _INSTANT_SECONDS:
        return DutyTurn(works=False, seconds=period - into)
    return turn_at(duty, 0.0, period)


@dataclass(slots=True)
class Thermostat:
    """Lowers the duty while a GPU is hotter than its owner wants, and raises it again when it has cooled.

    By multiplicative decrease and additive increase, which settle without knowing how the machine is cooled (D. Chiu
    and R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989).
    """

    duty: float = 1.0

    def read(self, celsius: float | None, target: float | None) -> float:
        """Take in the hottest card's temperature, some seconds after the last one; return the duty from now on.

        Without a target, or a reading, nothing slows down.
        """
        if celsius is None or target is None:
            self.duty = 1.0
        elif celsius > target:
            self.duty = max(LEAST_DUTY, self.duty * _SLOWER)
        elif celsius <= target - _COOLED_DEGREES:
            self.duty = min(1.0, self.duty + _FASTER)
        return self.duty
