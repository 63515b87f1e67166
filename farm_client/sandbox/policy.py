"""What one sandboxed process may see and use. Pure: which paths a machine has for it is ``system_paths``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

_MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class VisibleFiles:
    """The files of the machine that are seen, all of them read-only. ``links`` are symbolic: path to target."""

    read_only: tuple[Path, ...] = ()
    links: Mapping[Path, str] = field(default_factory=dict)
    devices: tuple[Path, ...] = ()
    """Device nodes of granted accelerators."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of the machine all processes of one sandbox may use together, where the kernel can count so.

    ``memory_bytes``, None for no bound: of private memory for each process, and of all processes by measurement.
    ``scratch_bytes``: of the scratch folder by measurement, and of each file by the kernel.
    """

    memory_bytes: int | None = None
    counts_memory: bool = True
    """Whether the kernel holds the bound for each process; else it is only measured."""
    processes: int = 1024
    """Threads count, as they do for the kernel."""
    scratch_bytes: int | None = None
    scratch_files: int = 100_000
    shm_bytes: int = 1024 * _MIB
    """Of /dev/shm, which counts as memory; so does /tmp."""
    tmp_bytes: int = 256 * _MIB
    open_files: int = 4096


@dataclass(slots=True)
class Caps:
    """Bounds that the owner may change while a sandbox lives; None is none. They only make the others narrower."""

    memory_bytes: int | None = None
    scratch_bytes: int | None = None
    cpu_cores: float | None = None
    """Processor time, as so many cores; held where there are control groups."""

    def within(self, bounds: Bounds) -> Bounds:
        """Return the narrower of both."""
        return replace(
            bounds,
            memory_bytes=_least(self.memory_bytes, bounds.memory_bytes),
            scratch_bytes=_least(self.scratch_bytes, bounds.scratch_bytes),
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [size for size in (one, other) if size is not None]
    return min(known, default=None)


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """One sandbox: what is seen, and how much may be used. ``secrets`` are folders that must not be seen."""

    view: VisibleFiles
    bounds: Bounds = Bounds()
    secrets: tuple[Path, ...] = ()

    def seeing(self, devices: tuple[Path, ...]) -> SandboxPolicy:
        """Return the same with the nodes of other accelerators."""
        return replace(self, view=replace(self.view, devices=devices))

    def reading(self, folder: Path) -> SandboxPolicy:
        """Return the same with one more folder that can be read."""
        return replace(self, view=replace(self.view, read_only=(*self.view.read_only, folder)))
