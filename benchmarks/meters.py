"""What is counted anyway: a process's memory and the loopback device's bytes by the kernel, the rest by the server."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from farm_client.sdk.config import FarmAddress


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


@dataclass(frozen=True)
class ServerCount:
    """What a server counted since its start: payload bytes of messages and blobs from and to clients, and their work.

    ``compute_seconds`` is the sum over usable results; ``rounds`` are committed ones.
    """

    up_bytes: int
    down_bytes: int
    compute_seconds: float
    rounds: int

    def __sub__(self, earlier: ServerCount) -> ServerCount:
        """Return what was added since ``earlier``."""
        return ServerCount(
            self.up_bytes - earlier.up_bytes,
            self.down_bytes - earlier.down_bytes,
            self.compute_seconds - earlier.compute_seconds,
            self.rounds - earlier.rounds,
        )


@dataclass(frozen=True)
class LoopLag:
    """How often a server's event loop was late, and by how much: counts by upper bound in seconds, as Prometheus does.

    Each count includes those of the lower bounds; the last bound is infinite.
    """

    counts: Mapping[float, float]

    def __add__(self, other: LoopLag) -> LoopLag:
        """Return both times taken together."""
        return LoopLag({bound: count + other.counts[bound] for bound, count in self.counts.items()})

    def __sub__(self, earlier: LoopLag) -> LoopLag:
        """Return what was added since ``earlier``."""
        return LoopLag({bound: count - earlier.counts[bound] for bound, count in self.counts.items()})

    def quantile(self, share: float) -> float:
        """Return the lag in seconds that this share of the looks did not exceed; NaN where there was none.

        Between two bounds the looks are taken to lie evenly; beyond the last finite bound it is that.
        Source: Prometheus, ``histogram_quantile``.
        """
        bounds = sorted(self.counts)
        wanted = share * self.counts[bounds[-1]]
        if not wanted:
            return math.nan
        below_bound = below_count = 0.0
        for bound in bounds:
            count = self.counts[bound]
            if count >= wanted:
                within = (wanted - below_count) / (count - below_count)
                return below_bound + within * (bound - below_bound) if math.isfinite(bound) else below_bound
            below_bound, below_count = bound, count
        raise ValueError("a histogram's counts grow with its bounds")


def loop_lag(address: FarmAddress) -> LoopLag:
    """Read from ``/metrics`` how late a server's event loop was since its start. Raises: httpx.HTTPError."""
    counts = {
        float(sample.labels["le"]): sample.value
        for sample in _samples(address)
        if sample.name == "farm_loop_lag_seconds_bucket"
    }
    return LoopLag(counts)


def stage_seconds(address: FarmAddress) -> dict[str, float]:
    """Read from ``/metrics`` what the parts of rounds took since the server's start, by stage.

    Raises: httpx.HTTPError.
    """
    name = "farm_stage_seconds_total"
    return {one.labels["stage"]: one.value for one in _samples(address) if one.name == name and one.value}


def server_count(address: FarmAddress) -> ServerCount:
    """Read a server's counters from ``/metrics``. Raises: httpx.HTTPError if it does not answer."""
    values: dict[tuple[str, str], float] = defaultdict(float)
    for sample in _samples(address):
        values[sample.name, sample.labels.get("direction", "")] += sample.value
    return ServerCount(
        up_bytes=int(values["farm_wire_bytes_total", "in"] + values["farm_blob_bytes_total", "in"]),
        down_bytes=int(values["farm_wire_bytes_total", "out"] + values["farm_blob_bytes_total", "out"]),
        compute_seconds=values["farm_compute_seconds_total", ""],
        rounds=int(values["farm_rounds_committed_total", ""]),
    )


def _samples(address: FarmAddress) -> Iterator[Sample]:
    page = httpx.get(f"{address.url}/metrics", trust_env=not address.is_loopback).raise_for_status().text
    for family in text_string_to_metric_families(page):
        yield from family.samples
