"""Fifty clients that join and leave over real WebSockets: the server's memory must not grow with it.

The clients speak the protocol and nothing else: their updates are made up, so that fifty fit into one process.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import psutil
import safetensors.numpy
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared
from protocol.digests import digest_bytes
from protocol.messages import (
    Accept,
    Assign,
    AssignmentProgress,
    Bye,
    Cancel,
    Heartbeat,
    Hello,
    Message,
    Phase,
    Ready,
    Result,
    Welcome,
)
from protocol.resources import Resources
from protocol.session import Session, Side
from protocol.tasks import BlobRef
from protocol.tensors import UPDATE_METADATA, parse_layout
from protocol.versions import SUPPORTED

Tell = Callable[[Message], Awaitable[None]]
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
        LightClient(farm.join_url, number, shapes, random.Random(seed * 1000 + number)) for number in range(clients)
    ]
    lives = [asyncio.create_task(_come_and_go(member, counts)) for member in members]
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
    return rss


async def _come_and_go(client: LightClient, counts: Counts) -> None:
    chance = client.chance
    while True:
        await asyncio.sleep(chance.uniform(0, LONGEST_ABSENCE_SECONDS))
        counts.joins += 1
        await client.visit(counts, chance.uniform(0, LONGEST_STAY_SECONDS))


class LightClient:
    """One identity that joins again and again, and answers assignments with made-up updates."""

    def __init__(self, join_url: str, number: int, shapes: dict[str, tuple[int, ...]], chance: random.Random) -> None:
        address = urlsplit(join_url)
        self.chance = chance
        self._url = f"ws://{address.hostname}:{address.port}/v1/farm"
        self._headers = {"Authorization": f"Bearer {address.username}"}
        self._shapes = shapes
        self._hello = Hello(
            versions=SUPPORTED,
            client_id=secrets.token_hex(16),
            client_secret=secrets.token_hex(32),
            name=f"light-{number}",
            resources=Resources(cpu_cores=1, ram_bytes=2**33, disk_free_bytes=2**40),
        )
        self._numbers = np.random.default_rng(number)

    async def visit(self, counts: Counts, seconds: float) -> None:
        """Join, work for so long, and leave: half the time politely, half the time as a crash does."""
        session = Session(Side.CLIENT)
        # A proxy set for the web must not catch what is meant for this machine.
        async with connect(self._url, additional_headers=self._headers, compression=None, proxy=None) as connection:
            work = asyncio.create_task(self._work(connection, session, counts))
            try:
                # Work has no end: should it end before the visit, it failed, and its error is raised here.
                async with asyncio.timeout(seconds):
                    await work
            except TimeoutError:
                pass
            finally:
                work.cancel()
            if self.chance.random() < 0.5 and session.may_send("bye"):
                await connection.send(session.send(Bye(reason="the light client leaves")))
                counts.polite_leaves += 1
            else:
                connection.transport.abort()
                counts.crashes += 1

    async def _work(self, connection: ClientConnection, session: Session, counts: Counts) -> None:
        async def tell(message: Message) -> None:
            await connection.send(session.send(message))

        await tell(self._hello)
        held: dict[str, AssignmentProgress] = {}
        async with asyncio.TaskGroup() as group:
            try:
                async for frame in connection:
                    for message in session.receive(frame):
                        if isinstance(message, Welcome):
                            await tell(Ready(slots=1))
                            group.create_task(self._beat(tell, held, message.heartbeat_seconds))
                        elif isinstance(message, Assign):
                            await tell(Accept(assignment_id=message.assignment_id, fence=message.fence))
                            group.create_task(self._answer(tell, held, message, counts))
                        elif isinstance(message, Cancel):
                            held.pop(message.assignment_id, None)
            except ConnectionClosed:
                raise BenchmarkError(f"the server closed: {connection.close_code} {connection.close_reason}") from None

    async def _beat(self, tell: Tell, held: dict[str, AssignmentProgress], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await tell(Heartbeat(assignments=tuple(held.values())))

    async def _answer(self, tell: Tell, held: dict[str, AssignmentProgress], assign: Assign, counts: Counts) -> None:
        """Take a moment, then deliver, unless it was cancelled meanwhile."""
        held[assign.assignment_id] = AssignmentProgress(
            assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING
        )
        await asyncio.sleep(self.chance.uniform(0, LONGEST_WORK_SECONDS))
        if held.pop(assign.assignment_id, None) is None:
            return
        data = self._update()
        await tell(
            Result(
                assignment_id=assign.assignment_id,
                fence=assign.fence,
                samples=assign.samples,
                metrics={"loss": 1.0},
                update=BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data),
                compute_seconds=0.1,
            )
        )
        counts.results += 1
        await tell(Ready(slots=1))

    def _update(self) -> bytes:
        """Return small random gradients in the task's layout."""
        tensors = {name: 1e-6 * self._numbers.standard_normal(shape) for name, shape in self._shapes.items()}
        return safetensors.numpy.save(tensors, dict(UPDATE_METADATA))
