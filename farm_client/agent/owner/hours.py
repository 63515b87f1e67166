"""Hours of the week, as owners write them: ``22:00-07:00``, ``mon-fri 22:00-07:00, sat-sun all``.

Entries are parted by commas and add up. An entry without days holds on every day; a span over midnight belongs to the
day on which it begins. Times are what the clock on the wall shows: an hour that daylight saving leaves out is left
out, and one that comes twice counts twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

LocalTime = Callable[[float], datetime]
"""Turns Unix seconds into the naive time on the wall, by the rules of a time zone."""

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_WEEK_MINUTES: Final = 7 * _DAY_MINUTES
_MIDNIGHTS: Final = list(range(0, _WEEK_MINUTES, _DAY_MINUTES))
_SPAN: Final = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
_LOOKED_AHEAD: Final = timedelta(days=8)
_HELP: Final = "write hours as `22:00-07:00` or `mon-fri 22:00-07:00, sat-sun all`"


@dataclass(frozen=True, slots=True)
class Hours:
    """When to work: spans of minutes since Monday 00:00 on the wall, sorted, apart from each other."""

    spans: tuple[tuple[int, int], ...] = ((0, _WEEK_MINUTES),)

    def hold_at(self, wall: datetime) -> bool:
        """Return whether they hold at this naive time."""
        minute = _minute_of(wall)
        return any(start <= minute < stop for start, stop in self.spans)

    def next_change(self, now: float, local: LocalTime) -> float | None:
        """Return the Unix seconds at which they begin or end to hold next; None if they don't within eight days."""
        holds, moment = self.hold_at(local(now)), now
        edges = sorted({edge % _WEEK_MINUTES for span in self.spans for edge in span})
        while edges and moment < now + _LOOKED_AHEAD.total_seconds():
            moment = _next_moment(moment, edges, local)
            if self.hold_at(local(moment)) != holds:
                return moment
        return None


@lru_cache(maxsize=8)
def parse_hours(text: str) -> Hours:
    """Read hours as an owner writes them; nothing, or ``all``, holds always. Raises: ValueError saying how to write."""
    if not text.strip():
        return Hours()
    spans = [span for entry in text.lower().split(",") for span in _entry(entry.split())]
    return Hours(_united(spans))


def next_midnight(now: float, local: LocalTime) -> float:
    """Return the Unix seconds at which the day on the wall ends."""
    today, moment = local(now).date(), now
    while local(moment).date() == today:
        moment = _next_moment(moment, _MIDNIGHTS, local)
    return moment


def _entry(words: list[str]) -> list[tuple[int, int]]:
    if not words:
        raise ValueError(f"there is nothing between two commas: {_HELP}")
    *days, span = words
    start, stop = _span(span)
    named = {day for word in days for day in _days(word)} if days else set(range(7))
    return [(day * _DAY_MINUTES + start, day * _DAY_MINUTES + stop) for day in named]


def _days(word: str) -> Iterable[int]:
    first, _, last = word.partition("-")
    for name in (first, last or first):
        if name not in _DAYS:
            raise ValueError(f"{name!r} is no day of the week ({', '.join(_DAYS)}): {_HELP}")
    start, stop = _DAYS.index(first), _DAYS.index(last or first)
    return [day % 7 for day in range(start, stop + 1 + (7 if stop < start else 0))]


def _span(word: str) -> tuple[int, int]:
    if word == "all":
        return 0, _DAY_MINUTES
    found = _SPAN.fullmatch(word)
    if found is None:
        raise ValueError(f"{word!r} is no span of hours: {_HELP}")
    numbers = [int(digits) for digits in found.groups()]
    start, stop = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if max(numbers[1], numbers[3]) >= 60 or start >= _DAY_MINUTES or stop > _DAY_MINUTES:
        raise ValueError(f"{word!r} has a time that no clock shows: {_HELP}")
    if start == stop:
        raise ValueError(f"{word!r} begins when it ends; for the whole day write `all`")
    return start, stop if stop > start else stop + _DAY_MINUTES


def _united(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join spans that touch, and fold what goes past Sunday's end back to Monday."""
    folded = [part for span in spans for part in _folded(span)]
    united: list[tuple[int, int]] = []
    for start, stop in sorted(folded):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(stop, united[-1][1]))
        else:
            united.append((start, stop))
    return tuple(united)


def _folded(span: tuple[int, int]) -> list[tuple[int, int]]:
    start, stop = span
    if stop <= _WEEK_MINUTES:
        return [span]
    return [(start, _WEEK_MINUTES), (0, stop - _WEEK_MINUTES)]


def _minute_of(wall: datetime) -> int:
    return wall.weekday() * _DAY_MINUTES + wall.hour * 60 + wall.minute


def _next_moment(now: float, edges: list[int], local: LocalTime) -> float:
    """Return the next edge on the wall, or the change of the zone's offset before it."""
    wall = local(now)
    position = bisect_right(edges, _minute_of(wall))
    edge = edges[position] if position < len(edges) else edges[0] + _WEEK_MINUTES
    monday = datetime(wall.year, wall.month, wall.day) - timedelta(days=wall.weekday())
    moment = now + (monday + timedelta(minutes=edge) - wall).total_seconds()
    if _offset(moment, local) == _offset(now, local):
        return moment
    return _change_of_offset(now, moment, local)


def _change_of_offset(before: float, after: float, local: LocalTime) -> float:
    """Return the first whole second at which the offset is not that of ``before``."""
    low, high = int(before), int(after) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(middle, local) == _offset(before, local):
            low = middle
        else:
            high = middle
    return float(high)


def _offset(moment: float, local: LocalTime) -> int:
    return round((local(moment) - datetime(1970, 1, 1)).total_seconds() - moment)
