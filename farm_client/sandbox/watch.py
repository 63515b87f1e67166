"""Measures what all processes of one sandbox use together, and says which bound they are over.

The kernel holds most bounds by itself: memory and file size for each process, the number of processes for all of a
user. What it does not hold (processes together, a folder's size, root's processes) is measured here. Linux only.
"""

from __future__ import annotations

import os
import stat
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
_MOST_LEVELS: Final = 256
"""Of folders in folders. Paths as long as the system takes make a walk of minutes out of a few thousand of them."""
_SHARES: Final = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True, slots=True)
class Excess:
    """A bound that was gone over: ``bound`` is ``memory``, ``processes`` or ``scratch``."""

    bound: str
    sentence: str


_UNMEASURABLE: Final = Excess("scratch", "it made a folder that cannot be measured: without rights, or too deep")


def tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and of all that descend from it; one that ends meanwhile is left out.

    Without recursion: a task decides how long the chain of its processes is.
    """
    pending = [pid]
    while pending:
        yield (one := pending.pop())
        with suppress(OSError):
            for thread in os.scandir(_PROC / str(one) / "task"):
                with suppress(OSError):
                    pending.extend(map(int, Path(thread.path, "children").read_text().split()))


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


def scratch_excess(scratch: Path, bounds: Bounds, pid: int | None = None) -> Excess | None:
    """Say whether a scratch folder is over its bounds; None if not. It walks the folder, up to where it is over.

    Files that the processes under ``pid`` have open count when they are deleted, too. A folder that can't be walked
    (one without rights, one that lies too deep) is over: what can't be measured could be of any size.
    """
    used_bytes = 0 if pid is None else _deleted_bytes(pid, scratch)
    files, pending = 0, [(str(scratch), 0)]
    while pending:
        folder, level = pending.pop()
        if level > _MOST_LEVELS:
            return _UNMEASURABLE
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    files += 1
                    with suppress(FileNotFoundError):
                        used_bytes += _KIB * entry.stat(follow_symlinks=False).st_blocks // 2
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((entry.path, level + 1))
                    if (found := _over(used_bytes, files, bounds)) is not None:
                        return found
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return _UNMEASURABLE
    return _over(used_bytes, files, bounds)


def _over(used_bytes: int, files: int, bounds: Bounds) -> Excess | None:
    if bounds.scratch_bytes is not None and used_bytes > bounds.scratch_bytes:
        return Excess("scratch", f"it wrote over {sized(bounds.scratch_bytes)} of files, which is what it may")
    if files > bounds.scratch_files:
        return Excess("scratch", f"it made over {bounds.scratch_files} files, which is what it may")
    return None


def _deleted_bytes(pid: int, scratch: Path) -> int:
    """Measure the files on a folder's disk that have no name any more and that a process has open."""
    deleted: dict[int, int] = {}
    with suppress(OSError):
        disk = scratch.stat().st_dev
        for one in tree(pid):
            with suppress(OSError):
                for descriptor in os.scandir(_PROC / str(one) / "fd"):
                    with suppress(OSError):
                        file = descriptor.stat()
                        if file.st_nlink == 0 and file.st_dev == disk and stat.S_ISREG(file.st_mode):
                            deleted[file.st_ino] = _KIB * file.st_blocks // 2
    return sum(deleted.values())


def _apart(pids: list[int]) -> int:
    """Measure memory with what is shared counted once: slower, so only where the rough sum is over.

    A process can forbid to be looked into so closely (PR_SET_DUMPABLE): then it counts as it did roughly.
    """
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            try:
                fields, names = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines(), _SHARES
            except PermissionError:
                fields, names = (_PROC / str(pid) / "status").read_text().splitlines(), _OWN_FIELDS
            total += _KIB * sum(_figure(fields, name) for name in names)
    return total


def _figure(fields: list[str], name: str) -> int:
    return next((int(line.split()[1]) for line in fields if line.startswith(name)), 0)
