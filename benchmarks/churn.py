"""Fifty clients that join and leave over real WebSockets: the server's memory must not grow with it."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import safetensors.numpy
import uvloop

from benchmarks.farm import BenchmarkError
from benchmarks.light_client import LightClient
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared
from protocol.assignments import Assign
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef
from protocol.tensors import UPDATE_METADATA, parse_layout

CLIENTS: Final = 50
TASK: Final = Regression(
    rounds=1_000_000, round_samples=256, batch_samples=4, batch_seconds=0.0, rounds_per_epoch=64, features=64
)
LONGEST_STAY_SECONDS: Final = 20.0
LONGEST_ABSENCE_SECONDS: Final = 5.0
LONGEST_WORK_SECONDS: Final = 0.5
SAMPLE_SECONDS: Final = 1.0
SETTLED_FRACTION: Final = 0.2
"""The first minute of five: what the server needs at all is in use by then."""
AVERAGED_SAMPLES: Final = 5


@dataclass(frozen=True)
class Churn(Measurement):
    """What five minutes of it came to; ``growth`` is the last RSS over the settled one, less 1."""

    clients: int
    seconds: float
    joins: int
    polite_leaves: int
    crashes: int
    results: int
    rounds: int
    rss_settled_bytes: int
    rss_end_bytes: int
    growth: float


@dataclass
class Counts:
    """What the clients did so far."""

    joins: int = 0
    polite_leaves: int = 0
    crashes: int = 0
    results: int = 0
    failures: list[str] = field(default_factory=list)


def measure(seconds: float, clients: int = CLIENTS, seed: int = 0) -> Churn:
    """Let clients come and go for so long, on one task of small rounds. Raises: BenchmarkError, DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="aifarm-churn-") as name:
        folder = Path(name)
        prepared = prepare_regression(TASK, folder / "task")
        layout = parse_layout(Path(prepared.report.weights_path).read_bytes())
        shapes = {tensor.name: tensor.shape for tensor in layout.returned}
        with mortal_farm(folder / "farm", clients=0) as farm:
            task_id = submit_prepared(farm.api, prepared)
            counts = Counts()
            rss = uvloop.run(_churn(farm, counts, shapes, seconds, clients, seed))
            farm.check()
            task = farm.api.task(task_id).task
    if counts.failures:
        raise BenchmarkError(f"a client could not go on: {counts.failures[0]}")
    if not task.round:
        raise BenchmarkError(f"no round was committed: {task.why}")
    settled = _around(rss, int(len(rss) * SETTLED_FRACTION))
    end = _around(rss, len(rss))
    return Churn(
        benchmark="churn",
        clients=clients,
        seconds=seconds,
        joins=counts.joins,
        polite_leaves=counts.polite_leaves,
        crashes=counts.crashes,
        results=counts.results,
        rounds=task.round,
        rss_settled_bytes=settled,
        rss_end_bytes=end,
        growth=end / settled - 1,
    )


def _around(rss: list[int], index: int) -> int:
    """Return the mean of the samples before ``index``: one sample is at the mercy of the moment."""
    chosen = rss[max(0, index - AVERAGED_SAMPLES) : index] or rss[:1]
    return sum(chosen) // len(chosen)


async def _churn(
    farm: MortalFarm, counts: Counts, shapes: dict[str, tuple[int, ...]], seconds: float, clients: int, seed: int
) -> list[int]:
    """Run the clients, and return the server's RSS, second by second."""
    members = [
        FickleMember(farm.join_url, number, shapes, random.Random(seed * 1000 + number)) for number in range(clients)
    ]
    lives = [asyncio.create_task(member.come_and_go(counts)) for member in members]
    server, rss = psutil.Process(farm.server.pid), []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(SAMPLE_SECONDS)
        rss.append(server.memory_info().rss)
    for life in lives:
        life.cancel()
    for outcome in await asyncio.gather(*lives, return_exceptions=True):
        if isinstance(outcome, Exception):
            counts.failures.append(repr(outcome))
    counts.results = sum(member.client.results for member in members)
    return rss


class FickleMember:
    """A light client that never stays for long."""

    def __init__(self, join_url: str, number: int, shapes: dict[str, tuple[int, ...]], chance: random.Random) -> None:
        self.client = LightClient(join_url, f"light-{number}", self._made_up)
        self._chance = chance
        self._shapes = shapes
        self._numbers = np.random.default_rng(number)

    async def come_and_go(self, counts: Counts) -> None:
        """Join and leave until cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(0, LONGEST_ABSENCE_SECONDS))
            counts.joins += 1
            await self._visit(counts, self._chance.uniform(0, LONGEST_STAY_SECONDS))

    async def _visit(self, counts: Counts, seconds: float) -> None:
        """Join, work for so long, and leave: half the time politely, half the time as a crash does."""
        async with self.client.joined() as connection:
            try:
                # Work has no end: should it end before the visit, it failed, and its error is raised here.
                async with asyncio.timeout(seconds):
                    await connection.work()
            except TimeoutError:
                pass
            if self._chance.random() < 0.5:
                await connection.leave()
                counts.polite_leaves += 1
            else:
                connection.cut()
                counts.crashes += 1

    async def _made_up(self, _assign: Assign) -> BlobRef:
        """Take a moment, and return small random gradients in the task's layout."""
        await asyncio.sleep(self._chance.uniform(0, LONGEST_WORK_SECONDS))
        tensors = {name: 1e-6 * self._numbers.standard_normal(shape) for name, shape in self._shapes.items()}
        data = safetensors.numpy.save(tensors, dict(UPDATE_METADATA))
        return BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data)
