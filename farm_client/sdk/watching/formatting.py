"""Numbers as people read them. Every function returns plain text."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final

_AGE_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SPARKS: Final = "▁▂▃▄▅▆▇█"
NOTHING: Final = "-"


def format_seconds(seconds: float) -> str:
    """Return a duration such as ``4.2 s``, ``3 min 07 s``, ``5 h 12 min`` or ``2 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def format_age(at: float | None, now: float | None = None) -> str:
    """Return how long ago the Unix time ``at`` was, such as ``3 min 07 s ago``."""
    if not at:
        return NOTHING
    return f"{format_seconds(max(0.0, (time.time() if now is None else now) - at))} ago"


def format_short_age(at: float | None, now: float) -> str:
    """Return for a table how long ago the Unix time ``at`` was, in its largest unit: ``12 s``, ``3 min``, ``2 d``."""
    if not at:
        return NOTHING
    seconds = max(0.0, now - at)
    unit, name = next((unit, name) for unit, name in _AGE_UNITS if seconds >= unit or unit == 1)
    return f"{int(seconds // unit)} {name}"


def format_clock(at: float) -> str:
    """Return the local time of day of a Unix time: ``14:05:09``."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def format_value(value: float | None) -> str:
    """Return a measured value with four significant digits."""
    return NOTHING if value is None else f"{value:.4g}"


def format_rate(samples_per_second: float) -> str:
    """Return a training speed such as ``1,234 samples/s``."""
    digits = 0 if samples_per_second >= 100 else 1
    return f"{samples_per_second:,.{digits}f} samples/s" if samples_per_second else NOTHING


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return ``accuracy 0.9712  loss 0.1034``."""
    return "  ".join(f"{name} {format_value(value)}" for name, value in sorted(metrics.items()))


def sparkline(values: list[float], width: int) -> str:
    """Draw the last ``width`` values as a line of bars, the lowest value lowest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown) / 2, max(shown) / 2  # halves: the difference of the largest numbers is none any more
    step = (high - low) / (len(_SPARKS) - 1) or 1.0
    return "".join(_SPARKS[round((value / 2 - low) / step)] for value in shown)
