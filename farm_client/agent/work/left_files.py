"""Stores at the farm the files that a task's ``on_epoch_end`` left, before its result is put into the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.executors.executor import Executor
from farm_client.agent.work.held_assignment import Held
from farm_client.executor.messages import LeftFile
from farm_client.transfer.upload import UploadListener
from protocol.artefacts import Artefact, bounds_fault
from protocol.assignments import Phase
from protocol.digests import digest_bytes
from protocol.errors import FarmError


async def store_left_files(
    held: Held, executor: Executor, left: Iterable[LeftFile], transfers: Transfers
) -> tuple[Artefact, ...]:
    """Store these files of the executor's scratch folder; return what they are at the farm.

    Raises: FarmError for a file that is not in that folder or over the bounds, and as an upload; OSError.
    """
    sent_bytes = 0
    stored: list[Artefact] = []
    for file in left:
        if (path := executor.room.take(file.path)) is None:
            raise FarmError(f"the executor named {file.name}, which is no file of its scratch folder")
        size_bytes = path.stat().st_size
        told = [(one.name, one.size_bytes) for one in stored]
        if (why := bounds_fault([*told, (file.name, size_bytes)])) is not None:
            raise FarmError(f"on_epoch_end: {why}")
        digest = await asyncio.to_thread(_digest, path)
        held.phase = Phase.UPLOADING
        listener = UploadListener(meter=partial(_sent_after, held, sent_bytes), waits=held.waited)
        await transfers.upload(digest, path, listener)
        path.unlink(missing_ok=True)
        sent_bytes += size_bytes
        stored.append(Artefact(name=file.name, digest=digest, size_bytes=size_bytes))
    return tuple(stored)


def _digest(path: Path) -> str:
    return digest_bytes(path.read_bytes())


def _sent_after(held: Held, before_bytes: int, count: int) -> None:
    """Take how many bytes of one file have left, ``before_bytes`` after those of the files before it."""
    held.sent(before_bytes + count)
