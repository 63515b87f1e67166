"""The server's memory with more and more clients on one model: it folds updates one after the other, so it must stay.

The clients are light: they speak the protocol, download the weights and upload an update of the model's size by HTTP,
all from one process.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import safetensors.numpy
import uvloop

from benchmarks.farm import POLL_SECONDS, BenchmarkError, RunningFarm, running_farm, submit
from benchmarks.light_client import LightClient
from benchmarks.measurement import Measurement
from benchmarks.meters import peak_rss_bytes
from benchmarks.noop_task.train import tensor_sizes
from benchmarks.rounds import TASK
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import JoinAddress, parse_address
from farm_client.sdk.outcome import is_over
from protocol.assignments import Assign
from protocol.digests import new_hasher
from protocol.tasks import BlobRef
from protocol.tensors import UPDATE_METADATA

ROUNDS: Final = 4
"""Enough that the peak of one round, with its checkpoint and clean-up, was seen in the middle of others."""
LONGEST_SECONDS: Final = 1200.0


@dataclass(frozen=True)
class Memory(Measurement):
    """The server's peak RSS for each number of clients; ``growth`` is the last over the first, less 1."""

    params: int
    mode: str
    rounds: int
    clients: list[int]
    server_peak_rss_bytes: list[int]
    growth: float


def measure(params: int, clients: Sequence[int], mode: str, rounds: int = ROUNDS) -> Memory:
    """Run so many rounds with each number of clients, on a server of its own each time.

    Raises: BenchmarkError, DaemonFailed.
    """
    peaks = [_peak_bytes(params, count, mode, rounds) for count in clients]
    return Memory("memory", params, mode, rounds, list(clients), peaks, peaks[-1] / peaks[0] - 1)


def _peak_bytes(params: int, clients: int, mode: str, rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="aifarm-memory-") as name:
        folder = Path(name)
        with running_farm(0, folder / "farm") as farm:
            task_id = submit(farm, _submission(params, clients, mode, rounds))
            uvloop.run(_train(farm, task_id, [Uploader(folder, number, params) for number in range(clients)]))
            return peak_rss_bytes(farm.processes.server.pid)


def _submission(params: int, clients: int, mode: str, rounds: int) -> list[str]:
    """Return the arguments of `farm submit`: one sample for each client in each round."""
    return [
        *(str(TASK), "--no-check"),
        *("--set", f"params={params}", "--set", f"samples={rounds * 2 * clients}"),
        *("--mode", mode, "--rounds", str(rounds), "--round-samples", str(2 * clients), "--batch-samples", "2"),
        *("--min-clients", str(clients), "--max-clients", str(clients), "--evaluate-every", "0"),
        *("--keep-checkpoints", "1"),
    ]


async def _train(farm: RunningFarm, task_id: str, uploaders: Sequence[Uploader]) -> None:
    """Have the light clients do the task to its end. Raises: BenchmarkError."""
    join_url = farm.processes.join_url
    async with AsyncExitStack() as stack:
        work = [asyncio.create_task(_end_of(farm, task_id))]
        for uploader in uploaders:
            await stack.enter_async_context(uploader.reaching(parse_address(join_url)))
            client = LightClient(join_url, f"light-{uploader.number}", uploader)
            connection = await stack.enter_async_context(client.joined())
            work.append(asyncio.create_task(connection.work()))
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
        failures = [o for o in await asyncio.gather(*work, return_exceptions=True) if isinstance(o, Exception)]
        if failures:
            raise BenchmarkError(f"a light client could not go on: {failures[0]!r}") from failures[0]


async def _end_of(farm: RunningFarm, task_id: str) -> None:
    """Wait until the task is completed. Raises: BenchmarkError if it ends otherwise, or does not."""
    async with asyncio.timeout(LONGEST_SECONDS):
        while not is_over(task := (await asyncio.to_thread(farm.api.task, task_id)).task):
            farm.processes.check()
            await asyncio.sleep(POLL_SECONDS)
    if task.state != "completed":
        raise BenchmarkError(f"the task {task.state}: {task.error or task.why}")


class Uploader:
    """Answers an assignment with a file of the model's size, which differs from round to round in its last number.

    Equal files would have one digest, and would be uploaded once.
    """

    def __init__(self, folder: Path, number: int, params: int) -> None:
        self.number = number
        self._transfers: Transfers
        self._http: httpx.AsyncClient
        self._update = folder / f"{number}.update"
        tensors = {f"parts.{i}": np.zeros(size, np.float32) for i, size in enumerate(tensor_sizes(params))}
        safetensors.numpy.save_file(tensors, self._update, dict(UPDATE_METADATA))

    @asynccontextmanager
    async def reaching(self, address: JoinAddress) -> AsyncIterator[None]:
        """Have connections to the farm for the length of the block."""
        async with (
            Transfers(address, client_id=f"light-{self.number}") as self._transfers,
            httpx.AsyncClient(base_url=address.http_url, headers=address.headers, trust_env=False) as self._http,
        ):
            yield

    async def __call__(self, assign: Assign) -> BlobRef:
        """Download the weights if they are not in the message, and upload the update."""
        if assign.weights.inline is None:
            await self._read(assign.weights)
        digest = await asyncio.to_thread(self._renewed, assign.round)
        await self._transfers.upload(digest, self._update)
        return BlobRef(digest=digest, size_bytes=self._update.stat().st_size)

    async def _read(self, weights: BlobRef) -> None:
        """Download and forget."""
        async with self._http.stream("GET", f"/v1/blobs/{weights.digest}", timeout=LONGEST_SECONDS) as response:
            response.raise_for_status()
            async for _ in response.aiter_raw():
                pass

    def _renewed(self, round_number: int) -> str:
        """Make the file one that never was before, and return its digest."""
        last = struct.pack("<f", 1 + self.number + 1000 * round_number)
        with self._update.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[-len(last) :] = last
        return new_hasher().update_mmap(self._update).hexdigest()
