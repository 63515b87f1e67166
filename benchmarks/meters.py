"""What the operating system counts: a process's peak memory, and the bytes on the loopback device."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import psutil


def peak_rss_bytes(pid: int) -> int:
    """Return the most memory that a live process ever held (VmHWM).

    Source: proc(5), /proc/[pid]/status; the kernel counts in KiB.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory of its own any more")


def loopback_bytes() -> int:
    """Return all bytes sent over the loopback device since boot, headers included, whoever sent them."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def describe_machine() -> dict[str, str | int | float]:
    """Return what a figure needs beside it to mean something; the load tells whether the machine was quiet."""
    return {
        "cpus": os.cpu_count() or 1,
        "ram_bytes": psutil.virtual_memory().total,
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
    }
