"""Which blob of a full cache goes first: the one that costs the least to bring back, by how likely it is wanted.

GreedyDual-Size-Frequency (L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
Policy", HP Laboratories, HPL-98-69, 1998; after P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USENIX
Symposium on Internet Technologies and Systems, 1997): an entry's worth is ``L + popularity * cost / size``. The cost is
the seconds that its download took. ``L``, which an entry takes over at each use, is the worth of what was evicted last:
what is not used any more is overtaken. Popularity counts uses and fades with time, as in S. Jin and A. Bestavros,
"Popularity-Aware GreedyDual-Size Web Proxy Caching Algorithms", ICDCS 2000: else the shards of a task that ended would
outlive those of the one that runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

HALF_LIFE_SECONDS: Final = 3600.0
"""A use counts half after so long."""
_DEFAULT_BYTES_PER_SECOND: Final = 10e6
"""How fast a blob would come, before the first download told."""
_REQUEST_SECONDS: Final = 0.05
"""What a download that nobody measured takes at the least, however small it is."""


@dataclass(slots=True)
class Esteem:
    """What one blob's worth is made of. ``used_at`` is in seconds on whatever clock ``now`` is."""

    size_bytes: int
    used_at: float
    fetch_seconds: float | None = None
    """How long its download took; None if it came in another way, or nobody measured it."""
    popularity: float = 1.0
    """Uses, each faded, as of ``used_at``; bringing it here is the first one."""
    base: float = 0.0
    """``L`` at the last use, in seconds a byte."""

    def faded(self, now: float) -> float:
        """Return its popularity by now; a clock that went back fades nothing."""
        return float(self.popularity * 0.5 ** (max(0.0, now - self.used_at) / HALF_LIFE_SECONDS))

    def use(self, now: float, inflation: float) -> None:
        """Count a use."""
        self.popularity = self.faded(now) + 1.0
        self.used_at, self.base = now, max(self.base, inflation)

    def worth(self, now: float, bytes_per_second: float) -> float:
        """Return how much keeping it is worth, in seconds a byte; ``bytes_per_second`` is for what nobody measured."""
        seconds = self.fetch_seconds
        if seconds is None:
            seconds = _REQUEST_SECONDS + self.size_bytes / bytes_per_second
        return self.base + self.faded(now) * seconds / max(1, self.size_bytes)


def usual_speed(standings: Collection[Esteem]) -> float:
    """Return how fast those came whose downloads were measured, all together, in bytes a second."""
    measured = [(one.size_bytes, one.fetch_seconds) for one in standings if one.fetch_seconds]
    size_bytes = sum(size for size, _ in measured)
    return size_bytes / sum(seconds for _, seconds in measured) if size_bytes else _DEFAULT_BYTES_PER_SECOND


def cheapest_first(standings: Mapping[str, Esteem], now: float) -> list[tuple[str, float]]:
    """Return names and their worth, what should go first in front; among equals the longest unused."""
    speed = usual_speed(standings.values())
    worths = [(one.worth(now, speed), one.used_at, name) for name, one in standings.items()]
    return [(name, worth) for worth, _, name in sorted(worths, key=lambda entry: entry[:2])]
