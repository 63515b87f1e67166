"""What a start of the server costs, by the number of tasks that have ended: time, memory, and what is loaded."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks.measurement import Measurement
from coordinator.engine import Coordinator
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import (
    AssignmentRecord,
    CheckpointRecord,
    Record,
    RoundRecord,
    RoundState,
    SampleRange,
    TaskRecord,
)
from coordinator.settings import CoordinatorSettings
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.recipe import Recipe
from protocol.tasks import BlobRef, Dataset, Shard, TaskSpec
from storage.ledger import SqlLedger

ROUNDS: Final = 3
SHARDS: Final = 40
WAITING: Final = 10
"""Tasks that have not ended."""
_RECORDS_AT_ONCE: Final = 5000


@dataclass(frozen=True)
class Starts(Measurement):
    """``start_ms``: from the closed file to a coordinator; ``memory_mb``: what it holds then; ``tasks_loaded``."""

    ended_tasks: int
    start_ms: float
    memory_mb: float
    tasks_loaded: int
    list_ms: float
    """The newest 100 tasks and the numbers by state, as the status page asks for them."""


def measure(ended_tasks: int) -> Starts:
    """Fill a ledger with tasks that have ended and a few that have not, and start on it."""
    with tempfile.TemporaryDirectory(prefix="aifarm-starts-") as folder:
        path = Path(folder) / "ledger.db"
        asyncio.run(_fill(path, ended_tasks))
        asyncio.run(_start(path))  # the imports are no matter of the ledger's
        gc.collect()
        start_s, list_s, loaded, _ = asyncio.run(_start(path))
        tracemalloc.start()
        *_, memory_bytes = asyncio.run(_start(path))
        tracemalloc.stop()
    return Starts("starts", ended_tasks, start_s * 1000, memory_bytes / 1e6, loaded, list_s * 1000)


async def _start(path: Path) -> tuple[float, float, int, int]:
    before = tracemalloc.get_traced_memory()[0]
    began = time.perf_counter()
    ledger = await SqlLedger.open(path)
    coordinator = Coordinator(await ledger.load(), CoordinatorSettings(), iter(map(str, range(10**6))).__next__)
    took = time.perf_counter() - began
    loaded = len(coordinator.task_views(_NOW))
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0] - before
    began = time.perf_counter()
    page = await ledger.task_page(100)
    await ledger.tasks([key.task_id for key in page])
    await ledger.task_counts()
    list_seconds = time.perf_counter() - began
    await ledger.close()
    return took, list_seconds, loaded, memory


async def _fill(path: Path, ended_tasks: int) -> None:
    ledger = await SqlLedger.open(path)
    records = _history(ended_tasks)
    while batch := list(islice(records, _RECORDS_AT_ONCE)):
        await ledger.save(batch)
    await ledger.close()


def _history(ended_tasks: int) -> Iterator[Record]:
    shards = tuple(Shard(index=number, samples=10, blob=_blob(f"shard {number}")) for number in range(SHARDS))
    spec = TaskSpec(
        name="task",
        code=_blob("code"),
        initial_weights=_blob("weights"),
        dataset=Dataset(kind="files", shards=shards),
        recipe=Recipe(rounds=ROUNDS),
    )
    for number in range(ended_tasks + WAITING):
        task = TaskRecord(f"{number:08}", spec, TaskState.PENDING, created_at=_NOW - 1 + number * 1e-5)
        if number < ended_tasks:
            yield replace(task, state=TaskState.COMPLETED, version=ROUNDS, finished_at=_NOW)
            yield from _rounds(task.task_id)
        else:
            yield task


def _rounds(task_id: str) -> Iterator[Record]:
    for number in range(ROUNDS):
        name = f"{task_id}/{number}"
        yield RoundRecord(task_id, number, RoundState.COMMITTED, 1, 0, 0, 10, _NOW)
        yield CheckpointRecord(task_id, number + 1, 0, 0, _blob(name), None, None, _NOW)
        where = (task_id, number, 1, Kind.TRAIN, 0, "client", 1, number + 1)
        ranges = (SampleRange(0, 0, 10),)
        yield AssignmentRecord(name, *where, AssignmentState.DELIVERED, ranges, 0, 10, _NOW, _NOW, counted=True)


def _blob(name: str) -> BlobRef:
    return BlobRef(digest=digest_bytes(name.encode()), size_bytes=100)


_NOW: Final = 1_000_000.0
