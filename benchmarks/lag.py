"""How late an event loop is while the aggregator's thread folds and commits beside it, against an idle one.

The server's own aggregator, on files of its own blob store, and a loop that does nothing but look at its watch every
millisecond. The idle window comes first, in the same process, with the model in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from coordinator.commands import CommitRound, Fold, OpenRound
from coordinator.events import CheckpointDurable, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from farm_server.environment.clock import SteadyClock
from farm_server.environment.disk_space import DiskSpace
from farm_server.tensors.aggregator import COMMIT_STAGES, Aggregator
from farm_server.tensors.checkpoint_writer import CheckpointWriter
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide
from protocol.codecs.tensor_file import header_bytes
from protocol.recipe import Recipe
from protocol.tasks import BlobRef, Dataset, Shard, TaskSpec
from protocol.tensors import UPDATE_METADATA, Header, TensorBytes, weights_metadata
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore

TENSOR_ELEMENTS: Final = 10_000_000
SAMPLE_SECONDS: Final = 0.001
IDLE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Lag(Measurement):
    """Milliseconds that the loop was late: the 99th percentile and the worst, of samples a millisecond apart."""

    params: int
    updates: int
    fold_seconds: float
    commit_seconds: float
    idle_p99_ms: float
    fold_p99_ms: float
    fold_worst_ms: float
    commit_p99_ms: float


@dataclass(frozen=True)
class _Files:
    weights: BlobRef
    update: BlobRef


class _Watch:
    """Looks at the loop's clock every millisecond and writes down when, and how late it was."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        self._task = asyncio.create_task(self._look())

    def late_ms(self, since: float, until: float) -> list[float]:
        """Return, in order of size, how late the loop was in that window."""
        return sorted(1000 * late for at, late in self._late if since <= at <= until)

    async def stop(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            due = time.perf_counter() + SAMPLE_SECONDS  # the loop's own clock counts milliseconds
            await asyncio.sleep(SAMPLE_SECONDS)
            now = time.perf_counter()
            self._late.append((now, now - due))


class _Outcomes:
    """Takes what the aggregator's threads find to the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.commit_seconds = 0.0

    def event(self, event: Event) -> None:
        """Hear of an outcome."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def damaged(self, command: OpenRound, message: str) -> None:
        """Hear that what was just written can't be read."""
        raise BenchmarkError(f"round {command.round}: {message}")

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: Mapping[str, float]
    ) -> None:
        """Hear how long a commit took."""
        self.commit_seconds = sum(seconds[stage] for stage in COMMIT_STAGES)

    def durable(self, spec: TaskSpec, checkpoint: CheckpointRecord) -> None:
        """Hear that a version is on the disk."""

    async def checkpoint(self) -> CheckpointRecord:
        """Wait for a commit. Raises: BenchmarkError if there is none."""
        event = await self._events.get()
        while isinstance(event, CheckpointDurable):
            event = await self._events.get()
        if not isinstance(event, RoundAggregated):
            raise BenchmarkError(f"the round failed: {event}")
        return event.checkpoint


def measure(params: int, updates: int, folder: Path | None = None) -> Lag:
    """Fold ``updates`` updates of ``params`` float32 and commit; ``folder`` chooses the disk."""
    with tempfile.TemporaryDirectory(prefix="aifarm-lag-", dir=folder) as name:
        return uvloop.run(_measure(Path(name), params, updates))


async def _measure(folder: Path, params: int, updates: int) -> Lag:
    blobs = FolderBlobStore(folder / "blobs")
    files = await asyncio.to_thread(_write_files, blobs, params)
    spooled, checkpoints, outcomes = SpooledUpdates(blobs), CheckpointStore(blobs), _Outcomes()
    spooled.hold(files.update)  # once more than it is folded: it stays
    writer = CheckpointWriter(checkpoints, SteadyClock(), DiskSpace(folder, 0).claim)
    aggregator = Aggregator(
        checkpoints=checkpoints,
        writer=writer,
        spooled=spooled,
        torch_side=TorchSide(1),
        outcomes=outcomes,
        threads=1,
    )
    try:
        return await _watched(_Rounds(aggregator, spooled, outcomes, files), params, updates)
    finally:
        await asyncio.to_thread(aggregator.close)


class _Rounds:
    """Gives the aggregator rounds, one after the other."""

    def __init__(self, aggregator: Aggregator, spooled: SpooledUpdates, outcomes: _Outcomes, files: _Files) -> None:
        self._aggregator = aggregator
        self._spooled = spooled
        self._outcomes = outcomes
        self._update = files.update
        shard = Shard(index=0, samples=1, blob=files.update)
        self._spec = TaskSpec(
            name="lag",
            code=files.update,
            dataset=Dataset(kind="files", shards=(shard,)),
            initial_weights=files.weights,
            recipe=Recipe(rounds=2),
        )
        self._checkpoint = CheckpointRecord("lag", 0, 0, 0, files.weights, None, None, 0.0)

    async def run(self, number: int, updates: int) -> float:
        """Open, fold and commit a round; return the seconds of the commit."""
        self._aggregator.open_round(OpenRound("lag", number, 1, self._spec, self._checkpoint))
        for _ in range(updates):
            self._spooled.hold(self._update)
            self._aggregator.fold(Fold("lag", number, 1, "a", "c", self._update, 1))
        self._aggregator.commit_round(CommitRound("lag", number, 1, 0, 0))
        self._checkpoint = await self._outcomes.checkpoint()
        return self._outcomes.commit_seconds


async def _watched(rounds: _Rounds, params: int, updates: int) -> Lag:
    await rounds.run(0, 1)  # torch is imported, and the model loaded
    watch = _Watch()
    await asyncio.sleep(IDLE_SECONDS)
    began = time.perf_counter()
    commit_seconds = await rounds.run(1, updates)
    ended = time.perf_counter()
    await watch.stop()
    folded = ended - commit_seconds
    fold_ms = watch.late_ms(began, folded)
    return Lag(
        "lag",
        params,
        updates,
        fold_seconds=folded - began,
        commit_seconds=commit_seconds,
        idle_p99_ms=_percentile(watch.late_ms(0, began), 0.99),
        fold_p99_ms=_percentile(fold_ms, 0.99),
        fold_worst_ms=_percentile(fold_ms, 1.0),
        commit_p99_ms=_percentile(watch.late_ms(folded, ended), 0.99),
    )


def _percentile(ordered: list[float], share: float) -> float:
    """Return the value that this share of them does not exceed; 0 where there is none."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def _write_files(blobs: FolderBlobStore, params: int) -> _Files:
    """Store weights and an update of the same float32 numbers, made piece by piece."""
    sizes = [min(TENSOR_ELEMENTS, params - start) for start in range(0, params, TENSOR_ELEMENTS)]
    ends = list(itertools.accumulate(4 * size for size in sizes))
    tensors = {
        f"layer{index:04}": TensorBytes("F32", (size,), end - 4 * size, end)
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }

    def file(metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
        yield header_bytes(Header(tensors, metadata, 0))
        numbers = np.random.default_rng(0)
        for size in sizes:
            yield numbers.standard_normal(size, np.float32).view(np.uint8).data

    return _Files(blobs.put_chunks(file(weights_metadata({}, {}))), blobs.put_chunks(file(UPDATE_METADATA)))
