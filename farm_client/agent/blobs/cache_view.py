"""What lies in a cache's folder, by task, for a person: read beside a running agent, and without one.

Nothing is written, so nothing of a running agent's is in danger; the book may be some seconds older than the files.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from farm_client.agent.blobs.cache_book import BlobNote, Notes, TaskNote, read_notes
from farm_client.agent.blobs.disk_space import stored_bytes
from farm_client.agent.errors import NoSuchTask
from farm_client.transfer.partial_file import read_sidecar
from protocol.frozen import Frozen
from protocol.terminal_text import one_line
from protocol.wording import counted, sized

_SHOWN_BLOBS: Final = 8
"""Of one task, in text; JSON has all."""
_DIGEST_CHARS: Final = 12
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class CachedBlob(Frozen):
    """One blob. Times are Unix seconds, ``fetch_seconds`` None where nobody measured it."""

    digest: str
    size_bytes: int
    """Of the whole blob."""
    resident_bytes: int
    """What of it is on this machine's disk: less than all of it for one that is still being fetched."""
    whole: bool
    last_used_at: float
    hits: int = 0
    """How often it was found here, and not fetched."""
    fetch_seconds: float | None = None
    tasks: tuple[str, ...] = ()
    """Who used it, the latest last."""


class CachedTask(Frozen):
    """The blobs that this task was the last one to use, the latest used first; ``task_id`` is empty for those of none.

    ``fetch_seconds``: of those that were measured, together. ``warm_seconds``: how long an executor last took to import
    the task's code and build its model, with what of it had to be fetched.
    """

    task_id: str
    name: str
    last_used_at: float
    hits: int
    size_bytes: int
    resident_bytes: int
    fetch_seconds: float | None
    warm_seconds: float | None
    blobs: tuple[CachedBlob, ...]


def look_into(root: Path) -> tuple[CachedTask, ...]:
    """List what is in a cache's folder, the task that was used last first; nothing if there is no folder."""
    notes, by_task = read_notes(root), dict[str, list[CachedBlob]]()
    for blob in (*_whole_blobs(root, notes), *_unfinished(root, notes)):
        by_task.setdefault(blob.tasks[-1] if blob.tasks else "", []).append(blob)
    tasks = [_summed(task_id, notes.tasks.get(task_id, TaskNote()), blobs) for task_id, blobs in by_task.items()]
    return tuple(sorted(tasks, key=lambda task: -task.last_used_at))


def find_task(root: Path, named: str) -> str:
    """Return the id of the task in the cache that is called so: its id, a unique beginning of it, or its name.

    Raises: NoSuchTask.
    """
    notes = read_notes(root)
    known = {task for blob in notes.blobs.values() for task in blob.tasks}
    exact = [task for task in known if named in (task, notes.tasks.get(task, TaskNote()).name)]
    found = exact or [task for task in known if task.startswith(named)]
    if len(found) != 1:
        many = f"{len(found)} tasks in the cache are called" if found else "no task in the cache is called"
        raise NoSuchTask(f"{many} {one_line(named)!r}; `farm-client cache show` lists their ids")
    return found[0]


def _whole_blobs(root: Path, notes: Notes) -> list[CachedBlob]:
    found = []
    for path in root.glob("[0-9a-f][0-9a-f]/*"):
        try:
            stat = path.stat()
        except OSError:  # evicted just now
            continue
        known = notes.blobs.get(path.name, BlobNote())
        found.append(_blob(path, known, path.name, stat.st_size, stat.st_atime))
    return found


def _unfinished(root: Path, notes: Notes) -> list[CachedBlob]:
    found = []
    for path in root.glob("*.part"):
        sidecar = read_sidecar(path)
        try:
            written_at = path.stat().st_mtime
        except OSError:  # whole just now
            continue
        if sidecar is not None:
            known = notes.blobs.get(path.stem, BlobNote())
            found.append(_blob(path, known, path.stem, sidecar.size_bytes, written_at))
    return found


def _blob(path: Path, known: BlobNote, digest: str, size_bytes: int, used_at: float) -> CachedBlob:
    return CachedBlob(
        digest=digest,
        size_bytes=size_bytes,
        resident_bytes=min(size_bytes, stored_bytes(path)),  # the last block of a file is seldom full
        whole=path.suffix == "",
        last_used_at=used_at,
        hits=known.hits,
        fetch_seconds=known.fetch_seconds,
        tasks=known.tasks,
    )


def _summed(task_id: str, note: TaskNote, blobs: list[CachedBlob]) -> CachedTask:
    measured = [blob.fetch_seconds for blob in blobs if blob.fetch_seconds is not None]
    return CachedTask(
        task_id=task_id,
        name=note.name,
        last_used_at=max(blob.last_used_at for blob in blobs),
        hits=sum(blob.hits for blob in blobs),
        size_bytes=sum(blob.size_bytes for blob in blobs),
        resident_bytes=sum(blob.resident_bytes for blob in blobs),
        fetch_seconds=sum(measured) if measured else None,
        warm_seconds=note.warm_seconds,
        blobs=tuple(sorted(blobs, key=lambda blob: -blob.last_used_at)),
    )


def in_lines(tasks: tuple[CachedTask, ...], now: float | None = None) -> list[str]:
    """Say what is in the cache in lines for a person."""
    now = time.time() if now is None else now
    resident_bytes = sum(task.resident_bytes for task in tasks)
    blobs = sum(len(task.blobs) for task in tasks)
    lines = [f"{sized(resident_bytes)} in {counted(blobs, 'blob')} of {counted(len(tasks), 'task')}"]
    for task in tasks:
        warm = "" if task.warm_seconds is None else f", {task.warm_seconds:.1f} s to warm"
        facts = _facts(task, now)
        lines.append(f"{_called(task)}: {facts}{warm}")
        lines += [f"  {blob.digest[:_DIGEST_CHARS]}: {_facts(blob, now)}" for blob in task.blobs[:_SHOWN_BLOBS]]
        left_out = len(task.blobs) - _SHOWN_BLOBS
        lines += [f"  and {counted(left_out, 'blob')} more (--json lists all)"] if left_out > 0 else []
    return lines


def _called(task: CachedTask) -> str:
    if not task.task_id:
        return "of no task yet"
    return f"{one_line(task.name)} ({task.task_id})" if task.name else task.task_id


def _facts(thing: CachedBlob | CachedTask, now: float) -> str:
    part = "" if thing.resident_bytes >= thing.size_bytes else f" of {sized(thing.size_bytes)}"
    fetch = "" if thing.fetch_seconds is None else f", {thing.fetch_seconds:.2f} s to fetch"
    used = f"used {_age(now - thing.last_used_at)} ago, {counted(thing.hits, 'hit')}"
    return f"{sized(thing.resident_bytes)}{part}, {used}{fetch}"


def _age(seconds: float) -> str:
    for unit, word in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {word}"
    return f"{max(0.0, seconds):.0f} s"
