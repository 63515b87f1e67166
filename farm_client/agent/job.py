"""The life of one assignment on this machine: fetch, hand to an executor, bring the update to the farm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from farm_client.agent.executor import Executor
from farm_client.agent.executor_pool import ExecutorPool
from farm_client.agent.fetcher import Fetcher
from farm_client.agent.held import Held, inline_update
from farm_client.agent.transfers import Transfers
from farm_client.executor.messages import Advance, Done
from farm_client.executor.process import Stream
from protocol.errors import FarmError
from protocol.messages import Error, Phase, Reject, Result
from protocol.tasks import BlobRef


@dataclass(frozen=True, slots=True)
class Tools:
    """What assignments are done with; it outlives connections."""

    pool: ExecutorPool
    fetcher: Fetcher
    transfers: Transfers


class Job:
    """One assignment being done. Cancel the task that runs ``do`` to stop it."""

    def __init__(self, held: Held, tools: Tools, inline_bytes: int) -> None:
        self.held = held
        self.let_finish = False
        """When cancelled in mid-step: leave the executor to its step, which nobody waits for, instead of killing it."""
        self.update_file: Path | None = None
        """The update that was uploaded; delete it when the farm has acknowledged the result."""
        self._tools = tools
        self._inline_bytes = inline_bytes

    async def do(self) -> Result | Error | Reject:
        """Do the assignment and return what to tell the farm of its outcome."""
        executor = self._tools.pool.take(self.held.assign.task.task_id)
        try:
            needed = self.held.blobs(executor.held_weights if executor else None)
            with self._tools.fetcher.cache.pinned([ref.digest for ref in (*needed, self.held.assign.task.code)]):
                await self._fetch(needed)
                if executor is None:
                    executor = await self._load()
                done = await self._compute(executor)
            return self.held.result(done, await self._bring(done, executor))
        except (FarmError, OSError, ValidationError) as error:
            return self.held.failure(error)
        finally:
            if executor is not None:
                self._release(executor)

    def arrived_bytes(self) -> int:
        """Count the bytes of its running downloads that are here."""
        arrived = self._tools.fetcher.arrived_bytes
        return sum(arrived.get(ref.digest, 0) for ref in self.held.blobs(None)) if arrived else 0

    async def _fetch(self, refs: Iterable[BlobRef]) -> None:
        missing = [ref for ref in refs if self._tools.fetcher.cache.ready(ref.digest) is None]
        if not missing:
            return
        try:
            async with asyncio.TaskGroup() as group:
                for ref in missing:
                    group.create_task(self._tools.fetcher.fetch(ref))
        except* (FarmError, OSError) as errors:
            raise errors.exceptions[0] from None

    async def _load(self) -> Executor:
        task = self.held.assign.task
        bundle = await self._tools.fetcher.fetch(task.code)
        self.held.phase = Phase.STARTING
        return await self._tools.pool.take_new(task, bundle, self._inline_bytes, self._hear_line)

    async def _compute(self, executor: Executor) -> Done:
        self.held.phase = Phase.COMPUTING
        executor.hear_line, executor.hear_advance = self._hear_line, self._hear_advance
        return await executor.run(self.held.run_order(self._tools.fetcher.cache, executor.held_weights))

    async def _bring(self, done: Done, executor: Executor) -> BlobRef | None:
        """Return the update as the result will name it; a file is brought to the farm first."""
        if done.update_path is None:
            return inline_update(done)
        path = Path(done.update_path)
        if not executor.owns(path) or done.update_digest is None:
            raise FarmError("the executor named an update that is not in its scratch folder")
        self.held.phase = Phase.UPLOADING
        self.update_file = path
        ref = BlobRef(digest=done.update_digest, size_bytes=done.update_bytes)
        await self._tools.transfers.upload(ref.digest, path)
        return ref

    def _hear_line(self, stream: Stream, line: str) -> None:
        self.held.output.add_line(stream, line)

    def _hear_advance(self, advance: Advance) -> None:
        self.held.samples_done = advance.samples_done
        self.held.output.add_metrics(advance.metrics)

    def _release(self, executor: Executor) -> None:
        in_mid_step = executor.running is not None
        if in_mid_step and not self.let_finish:
            self._tools.pool.kill(executor)
        else:
            self._tools.pool.give_back(executor)
