"""A process to be killed: saves checkpoints for ever and prints each number once it is acknowledged."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path

from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore, NewCheckpoint
from storage.ledger import SqlLedger
from tests.storage import records as a

PIPELINED = 8
"""Saves under way at once, so that groups form and one is cut by the kill."""


async def _save_for_ever(folder: Path) -> None:
    ledger = await SqlLedger.open(folder / "ledger.db")
    checkpoints = CheckpointStore(FolderBlobStore(folder / "blobs"))
    waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
    number = max((task.version for task in (await ledger.load()).tasks), default=-1)
    while True:
        number += 1
        weights, optimizer = f"weights {number} ".encode() * 100, f"optimizer {number}".encode()
        new = NewCheckpoint("t1", number, 0, number, 1.0, [weights], [optimizer], metrics={"loss": 1 / (number + 1)})
        written = await asyncio.to_thread(checkpoints.write, new)
        saved = ledger.submit([a.task(version=number), written.record], [a.event(str(number))])
        waiting.append((number, saved))
        if len(waiting) == PIPELINED:
            acknowledged, future = waiting.popleft()
            await future
            print(acknowledged, flush=True)


if __name__ == "__main__":
    asyncio.run(_save_for_ever(Path(sys.argv[1])))
