"""What this machine has, and how busy it is, as far as its owner lends it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from farm_client.agent.machine.accelerators import Accelerators
from protocol.resources import Load, Resources

_RESERVED_PART: Final = 8
"""One of so many parts of the memory stays free of tasks that are only kept warm."""
_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Lending:
    """How much of the machine its owner lends; None lends all."""

    cpu_cores: int | None = None
    max_ram_bytes: int | None = None

    def narrowed(self, cpu_cores: int | None, max_ram_bytes: int | None) -> Lending:
        """Return the lesser of both."""
        return Lending(_lesser(self.cpu_cores, cpu_cores), _lesser(self.max_ram_bytes, max_ram_bytes))


@dataclass(slots=True)
class Probe:
    """Reads psutil and NVML. ``disk`` is the folder whose file system holds the cache."""

    disk: Path
    lending: Lending = Lending()
    accelerators: Accelerators = field(default_factory=Accelerators)

    @property
    def cpu_cores(self) -> int:
        """The cores that executors may use together."""
        return min(self.lending.cpu_cores or usable_cores(), usable_cores())

    def resources(self, bench_gflops: float = 0.0) -> Resources:
        """Describe the machine for hello."""
        return Resources(
            hostname=platform.node(),
            platform=f"{platform.system()} {platform.machine()}",
            cpu_cores=self.cpu_cores,
            ram_bytes=self.lent_bytes(memory_limit_bytes()),
            disk_free_bytes=_disk_free_bytes(self.disk),
            gpus=self.accelerators.sample(),
            bench_gflops=bench_gflops,
            device_class=self.accelerators.device_class,
        )

    def load(self) -> Load:
        """Sample how busy the machine is now. ``cpu`` is the mean since the last sample."""
        return Load(
            cpu=min(1.0, psutil.cpu_percent() / 100),
            ram_free_bytes=self.ram_free_bytes(),
            disk_free_bytes=_disk_free_bytes(self.disk),
            gpus=self.accelerators.sample(),
        )

    def ram_free_bytes(self) -> int:
        """Return the memory that a new executor may take: what is free, within what is lent and not yet used."""
        free = free_memory_bytes()
        if self.lending.max_ram_bytes is None:
            return free
        return max(0, min(free, self.lending.max_ram_bytes - own_memory_bytes()))

    def can_spare(self, ram_bytes: int) -> bool:
        """Whether memory that only might be needed is there in plenty: four times as much is free."""
        return self.ram_free_bytes() > 4 * ram_bytes

    def has_room_for(self, ram_bytes: int) -> bool:
        """Whether another task may be kept warm in so much memory, beside a reserve for the owner's own programs.

        Of each accelerator at least half must be free: what a warm task holds of it cannot be told in advance.
        """
        if self.ram_free_bytes() - memory_limit_bytes() // _RESERVED_PART < ram_bytes:
            return False
        return all(2 * gpu.memory_free_bytes >= gpu.memory_bytes for gpu in self.accelerators.sample())

    def close(self) -> None:
        """Let NVML go."""
        self.accelerators.close()

    def lent_bytes(self, ram_bytes: int) -> int:
        """Return what of so much memory is lent."""
        return min(ram_bytes, self.lending.max_ram_bytes or ram_bytes)


def _lesser(one: int | None, other: int | None) -> int | None:
    return min((count for count in (one, other) if count is not None), default=None)


def _disk_free_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder; 0 where that is gone."""
    try:
        return psutil.disk_usage(str(folder)).free
    except OSError:
        return 0


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def memory_limit_bytes() -> int:
    """Return the machine's memory, or the container's limit where that is lower."""
    total = psutil.virtual_memory().total
    return min(total, _cgroup_bytes("memory.max") or total)


def free_memory_bytes() -> int:
    """Return the memory that can be taken without swapping, on the machine and within the container's limit."""
    available = psutil.virtual_memory().available
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is None or used is None:
        return available
    return max(0, min(available, limit - used))


def own_memory_bytes() -> int:
    """Sum the resident memory of this agent and everything that it started."""
    agent = psutil.Process()
    total = 0
    for process in (agent, *agent.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended since it was listed
            continue
    return total


def _cgroup_bytes(name: str) -> int | None:
    """Read a number of the control group (v2); None if there is none or it is ``max``."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
