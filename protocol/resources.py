"""What a machine has, and how busy it is. Sizes in bytes, shares from 0 to 1."""

from __future__ import annotations

from pydantic import Field

from protocol.frozen import Frozen


class Gpu(Frozen):
    """One accelerator, as NVML names it."""

    index: int
    name: str
    memory_bytes: int = Field(ge=0)
    memory_free_bytes: int = Field(ge=0)
    utilization: float = Field(default=0.0, ge=0, le=1)
    samples_per_second: float = Field(default=0.0, ge=0)


class Resources(Frozen):
    """A machine's fixed properties, told once in hello.

    ``bench_gflops`` is the short benchmark's matrix-multiply rate on the best device that passed its self-test.
    """

    hostname: str = ""
    platform: str = ""
    cpu_cores: int = Field(default=1, ge=1)
    ram_bytes: int = Field(default=0, ge=0)
    disk_free_bytes: int = Field(default=0, ge=0)
    gpus: tuple[Gpu, ...] = ()
    bench_gflops: float = Field(default=0.0, ge=0)


class Load(Frozen):
    """How busy the machine is now; it rides on each heartbeat."""

    cpu: float = Field(default=0.0, ge=0, le=1)
    ram_free_bytes: int = Field(default=0, ge=0)
    disk_free_bytes: int = Field(default=0, ge=0)
    gpus: tuple[Gpu, ...] = ()
