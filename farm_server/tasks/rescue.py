"""Finds a checkpoint to fall back to when the one that the next round starts from can't be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from coordinator.commands import OpenRound
from coordinator.events import AggregationFailed, CheckpointDamaged, Event
from coordinator.records import CheckpointRecord, LogRecord
from farm_server.environment.clock import Clock
from protocol.errors import FarmError
from storage.checkpoints import CheckpointStore
from storage.ports.blob_store import BlobStore
from storage.ports.ledger import Ledger

_log = structlog.get_logger(__name__)


class Rescue:
    """On the event loop. ``ask`` tells the coordinator and returns when all that follows is durable."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        blobs: BlobStore,
        checkpoints: CheckpointStore,
        clock: Clock,
        ask: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._clock = clock
        self._ask = ask
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, command: OpenRound, message: str) -> None:
        """Look for a fallback in the background, and hand the coordinator what is found."""
        task = asyncio.create_task(self._rescue(command, message), name="rescue")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Stop looking; the next start begins anew."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _rescue(self, command: OpenRound, message: str) -> None:
        task_id, number = command.task_id, command.round
        _log.error("CHECKPOINT DAMAGED", task=task_id, round=number, error=message)
        try:
            kept = await self._ledger.checkpoints(task_id)
            older = [c for c in reversed(kept) if c.round < command.checkpoint.round]
            fallback = await asyncio.to_thread(self._newest_intact, older)
            if fallback is not None:
                await asyncio.to_thread(self._drop_damaged, [c for c in kept if c.round > fallback.round])
            await self._ask(await self._event(command, message, fallback))
        except Exception as error:
            reason = error.message if isinstance(error, FarmError) else repr(error)
            _log.exception("no fallback could be chosen", task=task_id)
            await self._ask(AggregationFailed(task_id, number, command.attempt, f"{message}; {reason}"))

    async def _event(self, command: OpenRound, message: str, fallback: CheckpointRecord | None) -> CheckpointDamaged:
        where = (command.task_id, command.round, command.attempt, message, fallback)
        if fallback is None:
            return CheckpointDamaged(*where)
        counted = await self._ledger.assignments(command.task_id, counted_only=True)
        undone = tuple(a for a in counted if a.counted_in is not None and a.counted_in >= fallback.round)
        lost = command.checkpoint.round - fallback.round
        text = f"CHECKPOINT DAMAGED: {message}; back to round {fallback.round}, rounds to train again: {lost}"
        line = LogRecord(self._clock.now(), command.task_id, "", "server", command.round, "error", text)
        await self._ledger.save((), (line,))
        return CheckpointDamaged(*where, undone)

    def _newest_intact(self, newest_first: list[CheckpointRecord]) -> CheckpointRecord | None:
        return next((c for c in newest_first if self._checkpoints.damage(c) is None), None)

    def _drop_damaged(self, checkpoints: list[CheckpointRecord]) -> None:
        """Remove bytes that are no good: trained again they are the same, and must be stored, not taken for known."""
        for checkpoint in checkpoints:
            for ref in checkpoint.blobs:
                if self._blobs.drop_if_damaged(ref.digest):
                    _log.warning("a damaged blob was removed", task=checkpoint.task_id, blob=ref.digest)
