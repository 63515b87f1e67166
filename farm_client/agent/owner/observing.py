"""Looks at how the machine is used by others: input, load, battery, programs. Only what the policy asks about.

Each look is cheap enough for once a second in a process that is to use no processor time; what is not, rests for long
enough after each look. What a system does not tell is None, and forbids nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

from farm_client.agent.owner.desktop import DesktopIdle
from farm_client.agent.owner.policy import OwnerPolicy
from farm_client.agent.owner.reasons import Observations

_LOAD_WINDOW_SECONDS: Final = 10.0
_REST_FACTOR: Final = 400
"""A look at all processes is followed by so many times the time that it took: a quarter of a percent of a core."""
_DEV: Final = Path("/dev")
_EXE: Final = ".exe"


def processor_seconds() -> tuple[float, float] | None:
    """Return (all, used by others) processor seconds since the start of the machine.

    Executors run at a lower priority, so what the system counts as that of such processes is not of others. None where
    the system does not count it apart (Windows).
    """
    times = psutil.cpu_times()
    if not hasattr(times, "nice"):
        return None
    everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return everything, times.user + times.system


def process_names() -> list[str]:
    """Return the names of all processes, as far as this user may see them."""
    names = [process.info["name"] for process in psutil.process_iter(["name"])]
    return [name for name in names if name]


def input_idle_seconds(dev: Path = _DEV, now: float | None = None) -> float | None:
    """Return for how long nobody typed in any terminal of this machine; None if there is none to look at.

    The access time of a terminal's device is that of its last input, to some seconds. For a desktop's keyboard and
    mouse see ``DesktopIdle``.
    """
    used = [moment for terminal in _terminals(dev) if (moment := _accessed(terminal)) is not None]
    if not used:
        return None
    return max(0.0, (time.time() if now is None else now) - max(used))


def _terminals(dev: Path) -> list[Path]:
    return [path for pattern in ("pts/[0-9]*", "tty[0-9]*") for path in dev.glob(pattern)]


def _accessed(path: Path) -> float | None:
    try:
        return path.stat().st_atime
    except OSError:
        return None


class MachineWatch:
    """Takes the looks. ``clock`` is monotonic seconds, ``cpu_times`` (all, others') processor seconds of all cores."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_times: Callable[[], tuple[float, float] | None] = processor_seconds,
        names: Callable[[], Iterable[str]] = process_names,
        inputs: Iterable[Callable[[], float | None]] | None = None,
    ) -> None:
        """``inputs`` each return for how long there was none, in seconds; None if that is not known."""
        self._inputs = tuple(inputs) if inputs is not None else (input_idle_seconds, DesktopIdle().seconds)
        self._clock = clock
        self._cpu_times = cpu_times
        self._names = names
        self._load: float | None = None
        self._last_times: tuple[float, float] | None = None
        self._running: frozenset[str] = frozenset()
        self._asked_for: tuple[str, ...] = ()
        self._names_due = 0.0

    def look(self, policy: OwnerPolicy) -> Observations:
        """Look at what the policy asks about."""
        return Observations(
            input_idle_seconds=self._without_input() if policy.only_idle else None,
            others_load=self._others_load() if policy.only_idle else None,
            on_battery=None if policy.on_battery else on_battery(),
            programs=self._programs(policy.pause_while) if policy.pause_while else (),
        )

    def _without_input(self) -> float | None:
        return min((seconds for look in self._inputs if (seconds := look()) is not None), default=None)

    def _others_load(self) -> float | None:
        """Return an average that forgets in some seconds; None at the first look."""
        last, self._last_times = self._last_times, self._cpu_times()
        if last is None or self._last_times is None:
            return self._load
        elapsed, used = self._last_times[0] - last[0], self._last_times[1] - last[1]
        if elapsed <= 0:
            return self._load
        share, weight = used / elapsed, 1 / _LOAD_WINDOW_SECONDS
        self._load = share if self._load is None else self._load + weight * (share - self._load)
        return self._load

    def _programs(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        now = self._clock()
        if now >= self._names_due or wanted != self._asked_for:
            self._running = frozenset(_plain(name) for name in self._names())
            self._asked_for = wanted
            self._names_due = now + _REST_FACTOR * (self._clock() - now)
        return tuple(name for name in wanted if _plain(name) in self._running)


def on_battery() -> bool | None:
    """Return whether the machine runs on its battery; None if it has none, or the system does not tell."""
    sensors = getattr(psutil, "sensors_battery", None)  # not on every system
    battery = sensors() if sensors is not None else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _plain(name: str) -> str:
    """Return a name as it is compared: without case, and without what Windows appends."""
    return name.lower().removesuffix(_EXE)
