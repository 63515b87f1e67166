"""What a machine has, and how busy it is. Sizes in bytes, shares from 0 to 1."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator

from protocol.bounds import Bytes, Cores, Count, Label, Rate, Seconds, Share, Word
from protocol.frozen import Frozen


class DeviceClass(StrEnum):
    """What a machine computes on."""

    CUDA = "cuda"
    """NVIDIA's cards."""
    ROCM = "rocm"
    """AMD's cards, which torch has as CUDA devices."""
    XPU = "xpu"
    """Intel's cards."""
    MPS = "mps"
    """Apple's processors."""
    CPU = "cpu"


class Gpu(Frozen):
    """One accelerator, as NVML or torch names it."""

    index: Count
    name: Label
    memory_bytes: Bytes
    memory_free_bytes: Bytes
    utilization: Share = 0.0
    samples_per_second: Rate = 0.0


MAX_GPUS: Final = 64
Gpus = Annotated[tuple[Gpu, ...], AfterValidator(lambda gpus: gpus[:MAX_GPUS])]
"""No machine is refused because it has many."""


class Resources(Frozen):
    """A machine's fixed properties, sent once in hello.

    ``bench_gflops`` is the short benchmark's matrix-multiply rate on the best device that passed its self-test.
    """

    hostname: Label = ""
    platform: Label = ""
    cpu_cores: Cores = 1
    ram_bytes: Bytes = 0
    disk_free_bytes: Bytes = 0
    gpus: Gpus = ()
    bench_gflops: Rate = 0.0
    device_class: Word = ""
    """What tasks compute on, one of ``DeviceClass``; empty from a client that does not say."""


class LinkFigures(Frozen):
    """What a client measured lately of its link to the farm, on what moved anyway; 0 is not measured."""

    download_bytes_per_second: Rate = 0.0
    upload_bytes_per_second: Rate = 0.0
    round_trip_seconds: Seconds = 0.0


class Load(Frozen):
    """How busy the machine is now, and what its link does; it rides on each heartbeat."""

    cpu: Share = 0.0
    ram_free_bytes: Bytes = 0
    disk_free_bytes: Bytes = 0
    gpus: Gpus = ()
    link: LinkFigures | None = None
    """None while it is as the last message of this connection that had it said; most beats are without."""
