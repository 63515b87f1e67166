"""Measures what all processes of one sandbox use together, and says which bound they are over.

The kernel holds most bounds by itself: memory and file size for each process, the number of processes for all of a
user. What it does not hold (processes together, a folder's size, root's processes) is measured here. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.sandbox.policy import Bounds
from protocol.wording import sized

_PROC: Final = Path("/proc")
_KIB: Final = 1024
_OWN_FIELDS: Final = ("RssAnon:", "RssShmem:")
"""What is the process's own. Mapped files are the cache's, and the kernel takes their memory back when it wants."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A bound that was gone over: ``bound`` is ``memory``, ``processes`` or ``scratch``."""

    bound: str
    sentence: str


def tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and of all that descend from it; one that ends meanwhile is left out."""
    yield pid
    with suppress(OSError):
        for thread in os.scandir(_PROC / str(pid) / "task"):
            with suppress(OSError):
                for child in Path(thread.path, "children").read_text().split():
                    yield from tree(int(child))


def excess(pid: int, bounds: Bounds) -> Excess | None:
    """Say which bound the processes under ``pid`` are over; None if none."""
    threads, own_bytes = 0, 0
    pids = list(tree(pid))
    for one in pids:
        with suppress(OSError, ValueError):
            fields = (_PROC / str(one) / "status").read_text().splitlines()
            threads += _figure(fields, "Threads:")
            own_bytes += _KIB * sum(_figure(fields, name) for name in _OWN_FIELDS)
    if threads > bounds.processes:
        return Excess("processes", f"it ran {threads} processes and threads, and may run {bounds.processes}")
    most_bytes = bounds.memory_bytes
    if most_bytes is not None and own_bytes > most_bytes and (used_bytes := _apart(pids)) > most_bytes:
        return Excess("memory", f"it used {sized(used_bytes)} of memory, and may use {sized(most_bytes)}")
    return None


def resident_bytes(pid: int) -> int:
    """Measure the resident memory of the processes under ``pid``; 0 if there are none."""
    total = 0
    for one in tree(pid):
        with suppress(OSError, ValueError):
            total += _KIB * _figure((_PROC / str(one) / "status").read_text().splitlines(), "VmRSS:")
    return total


def scratch_excess(scratch: Path, bounds: Bounds) -> Excess | None:
    """Say whether a scratch folder is over its bounds; None if not. It walks the folder, up to where it is over."""
    used_bytes = files = 0
    for size_bytes in _sizes(scratch):
        used_bytes, files = used_bytes + size_bytes, files + 1
        if bounds.scratch_bytes is not None and used_bytes > bounds.scratch_bytes:
            return Excess("scratch", f"it wrote over {sized(bounds.scratch_bytes)} of files, which is what it may")
        if files > bounds.scratch_files:
            return Excess("scratch", f"it made over {bounds.scratch_files} files, which is what it may")
    return None


def _sizes(folder: Path) -> Iterator[int]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                yield _KIB * entry.stat(follow_symlinks=False).st_blocks // 2
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(Path(entry.path))


def _apart(pids: list[int]) -> int:
    """Measure memory with what is shared counted once: slower, so only where the rough sum is over."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            fields = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            total += _KIB * sum(_figure(fields, name) for name in ("Pss_Anon:", "Pss_Shmem:"))
    return total


def _figure(fields: list[str], name: str) -> int:
    return next((int(line.split()[1]) for line in fields if line.startswith(name)), 0)
