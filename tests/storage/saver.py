"""A process to be killed: saves checkpoints for ever and prints each number once it is acknowledged."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path

from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore
from storage.ledger import Ledger
from tests.storage import records as a

PIPELINED = 8
"""Saves under way at once, so that groups form and one is cut by the kill."""


async def _save_for_ever(folder: Path) -> None:
    ledger = await Ledger.open(folder / "ledger.db")
    checkpoints = CheckpointStore(FolderBlobStore(folder / "blobs"))
    waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
    number = max((task.version for task in (await ledger.load()).tasks), default=-1)
    while True:
        number += 1
        weights, optimizer = f"weights {number} ".encode() * 100, f"optimizer {number}".encode()
        checkpoint = await asyncio.to_thread(
            checkpoints.write, "t1", number, 0, number, weights, optimizer, 1.0, {"loss": 1 / (number + 1)}
        )
        saved = ledger.submit([a.task(version=number), checkpoint], [a.event(str(number))])
        waiting.append((number, saved))
        if len(waiting) == PIPELINED:
            acknowledged, future = waiting.popleft()
            await future
            print(acknowledged, flush=True)


if __name__ == "__main__":
    asyncio.run(_save_for_ever(Path(sys.argv[1])))
