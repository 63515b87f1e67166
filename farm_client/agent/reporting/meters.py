"""How fast something grows, and how busy the machine is: measured when somebody looks, and not before."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Final

import psutil

from farm_client.agent.machine.probe import Probe, free_memory_bytes, memory_limit_bytes
from protocol.frozen import Frozen

_LEAST_SECONDS: Final = 0.2
"""Counters of so short a time say more of chance than of what is done."""
_SPACING: Final = 20
"""A window holds about so many points, however often somebody looks."""
_CPU_SENSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")
"""What Linux calls the processor's thermometer, the more exact ones first."""
_SENSOR_LOOKS: Final = 10
"""Some chips take milliseconds to tell their temperature: it is asked for at one look of so many."""


class GpuView(Frozen):
    """One accelerator now. Memory in bytes, ``busy`` from 0 to 1."""

    index: int
    name: str
    busy: float = 0.0
    memory_used_bytes: int = 0
    memory_bytes: int = 0
    celsius: float | None = None


class MachineView(Frozen):
    """How busy the machine is now, by all that runs on it. Memory in bytes, ``cpu`` from 0 to 1."""

    cpu: float = 0.0
    cpu_celsius: float | None = None
    memory_used_bytes: int = 0
    memory_bytes: int = 0
    gpus: tuple[GpuView, ...] = ()


class RateMeter:
    """What a counter grew by in a second, over the last ``window_seconds``."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, now: float, count: int) -> float:
        """Take the counter's value at ``now``, a monotonic time in seconds; return its growth in a second, from 0 on.

        0 until two values are known. One that has fallen (a step was begun again) did not grow.
        """
        points = self._points
        if not points or now - points[-1][0] >= self._window_seconds / _SPACING:
            points.append((now, count))
        while len(points) > 1 and points[1][0] <= now - self._window_seconds:
            points.popleft()
        since, before = points[0]
        return max(0.0, (count - before) / (now - since)) if now > since else 0.0


class MachineMeter:
    """Reads processors, memory and accelerators; it leaves the heartbeats' own measure of the processors alone."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._looks = 0
        self._celsius: float | None = None
        self._cpu = 0.0
        self._busy_seconds, self._all_seconds = _processor_seconds()

    def __call__(self) -> MachineView:
        """Measure now."""
        total = memory_limit_bytes()
        celsius = self._probe.accelerators.temperatures()
        if self._looks % _SENSOR_LOOKS == 0:
            self._celsius = cpu_celsius()
        self._looks += 1
        return MachineView(
            cpu=self._share(),
            cpu_celsius=self._celsius,
            memory_used_bytes=max(0, total - free_memory_bytes()),
            memory_bytes=total,
            gpus=tuple(
                GpuView(
                    index=gpu.index,
                    name=gpu.name,
                    busy=gpu.utilization,
                    memory_used_bytes=gpu.memory_bytes - gpu.memory_free_bytes,
                    memory_bytes=gpu.memory_bytes,
                    celsius=celsius.get(gpu.index),
                )
                for gpu in self._probe.accelerators.sample()
            ),
        )

    def _share(self) -> float:
        """Return the processors' busy share since the last look; the last one if that was a moment ago."""
        busy, total = _processor_seconds()
        cores = psutil.cpu_count() or 1
        if (spent := total - self._all_seconds) >= _LEAST_SECONDS * cores:
            self._cpu = min(1.0, max(0.0, (busy - self._busy_seconds) / spent))
            self._busy_seconds, self._all_seconds = busy, total
        return self._cpu


def _processor_seconds() -> tuple[float, float]:
    """Return the seconds that all cores were busy since boot, and all their seconds."""
    times = psutil.cpu_times()._asdict()
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # which are in user and nice
    return total - times["idle"] - times.get("iowait", 0.0), total


def cpu_celsius() -> float | None:
    """Read the processor's temperature; None where the system does not tell."""
    with suppress(AttributeError, OSError):  # only some systems have sensors at all
        sensors = psutil.sensors_temperatures()
        for name in _CPU_SENSORS:
            if readings := sensors.get(name):
                return max(float(reading.current) for reading in readings)
    return None
