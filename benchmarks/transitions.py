"""Durable task-state transitions per second through the ledger, beside plain sqlite3 with a transaction for each.

A transition is what the coordinator saves when a task changes its state: the task's row and an event, on the disk
before the caller hears of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from benchmarks.measurement import Measurement
from coordinator.lifecycle import TaskState, move_task
from coordinator.records import EventRecord, TaskRecord
from protocol.digests import digest_bytes
from protocol.recipe import Recipe
from protocol.tasks import BlobRef, Dataset, Shard, TaskSpec
from storage.ledger import SqlLedger

WARM_UP_SECONDS: Final = 0.5
ROUND_TRIP: Final = (TaskState.ASSIGNED, TaskState.RUNNING, TaskState.PENDING)
"""A life that never ends: each move is an edge of the state table."""


@dataclass(frozen=True)
class Transitions(Measurement):
    """One measurement. ``plain_per_s`` is the reference of the same run; ``ratio`` how many times faster it is."""

    writers: int
    transitions: int
    seconds: float
    transitions_per_s: float
    p50_ms: float
    p99_ms: float
    plain_per_s: float
    ratio: float


def measure(writers: int, seconds: float, folder: Path | None = None) -> Transitions:
    """Let so many writers move a task each, one transition after the other, for ``seconds``.

    ``folder`` chooses the disk; the system's folder for temporary files when it is not given.
    """
    with tempfile.TemporaryDirectory(prefix="aifarm-transitions-", dir=folder) as name:
        # Half of the reference before and half after: a disk's speed changes with what else it does.
        plain = _plain_rate(Path(name) / "plain.db", seconds / 2)
        latencies, took = uvloop.run(_through_ledger(Path(name) / "ledger.db", writers, seconds))
        plain_per_s = (plain + _plain_rate(Path(name) / "plain-again.db", seconds / 2)) / 2
    per_s = len(latencies) / took
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Transitions(
        "transitions", writers, len(latencies), took, per_s, float(p50), float(p99), plain_per_s, per_s / plain_per_s
    )


async def _through_ledger(path: Path, writers: int, seconds: float) -> tuple[list[float], float]:
    """Return the seconds that each transition took, and the length of the window."""
    ledger = await SqlLedger.open(path)
    tasks = [_task(f"task{number:04}") for number in range(writers)]
    await ledger.save(tasks)
    latencies: list[float] = []
    began = time.perf_counter() + WARM_UP_SECONDS
    await asyncio.gather(*(_write(ledger, task, latencies, began, began + seconds) for task in tasks))
    took = time.perf_counter() - began
    await ledger.close()
    return latencies, took


async def _write(ledger: SqlLedger, task: TaskRecord, latencies: list[float], began: float, ends: float) -> None:
    for moved, event in _life(task):
        asked = time.perf_counter()
        if asked > ends:
            return
        await ledger.save([moved], [event])
        if asked >= began:
            latencies.append(time.perf_counter() - asked)


def _life(task: TaskRecord) -> Iterator[tuple[TaskRecord, EventRecord]]:
    for number, to in enumerate(cycle(ROUND_TRIP)):
        task = replace(task, state=move_task(task.task_id, task.state, to), version=number)
        yield task, EventRecord(float(number), f"task_{to}", f"moved to {to}", task.task_id)


def _task(task_id: str) -> TaskRecord:
    blob = BlobRef(digest=digest_bytes(task_id.encode()), size_bytes=1)
    dataset = Dataset(kind="code", shards=(Shard(index=0, samples=1),))
    spec = TaskSpec(name=task_id, code=blob, dataset=dataset, initial_weights=blob, recipe=Recipe(rounds=1))
    return TaskRecord(task_id, spec, TaskState.PENDING, created_at=0.0)


def _plain_rate(path: Path, seconds: float) -> float:
    """Return the transitions per second of the obvious program: one connection, one transaction for each."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE tasks (task_id TEXT PRIMARY KEY, state TEXT, version INTEGER);"
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, at REAL, task_id TEXT, kind TEXT, message TEXT);"
            "INSERT INTO tasks VALUES ('task0000', 'pending', 0)"
        )
        done, began = 0, time.perf_counter()
        for to in cycle(ROUND_TRIP):
            if time.perf_counter() - began > seconds:
                break
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE tasks SET state = ?, version = ? WHERE task_id = 'task0000'", (to, done))
            event = (done, "task0000", f"task_{to}", f"moved to {to}")
            database.execute("INSERT INTO events (at, task_id, kind, message) VALUES (?, ?, ?, ?)", event)
            database.execute("COMMIT")
            done += 1
        return done / (time.perf_counter() - began)
