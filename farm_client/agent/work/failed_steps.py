"""Stores at the farm what an executor kept of a step in which a task's code failed, before that is reported."""

from __future__ import annotations

import asyncio
from typing import Final

from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.executors.executor import Executor
from farm_client.agent.work.held_assignment import Held
from farm_client.executor.messages import Failed
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Phase
from protocol.errors import FarmError
from protocol.failed_steps import error_line
from protocol.tasks import BlobRef

_LONGEST_SECONDS: Final = 300.0
"""For which a failure may wait to be told: 256 MiB at 7 Mbit/s."""


class FailedSteps:
    """Stores at most one for each line of a task, as long as this process lives."""

    def __init__(self, transfers: Transfers, longest_seconds: float = _LONGEST_SECONDS) -> None:
        self._transfers = transfers
        self._longest_seconds = longest_seconds
        self._stored: set[tuple[str, str]] = set()

    async def store(self, held: Held, executor: Executor, report: Failed) -> BlobRef | None:
        """Store the file that the report names; None if there is none, or it can't be stored: a note says so then."""
        if report.failed_step is None or (path := executor.room.take(report.failed_step.path)) is None:
            return None
        key = (held.assign.task.task_id, error_line(report.message))
        try:
            size_bytes = path.stat().st_size
            if key in self._stored or not 0 < size_bytes <= held.assign.failed_step_bytes:
                return None
            held.phase = Phase.UPLOADING
            async with asyncio.timeout(self._longest_seconds):
                listener = UploadListener(meter=held.sent, waits=held.waited)
                await self._transfers.upload(report.failed_step.digest, path, listener)
        except (FarmError, OSError) as error:  # a timeout is an OSError
            why = str(error) or "it took too long"
            held.output.add_note(f"the step that failed could not be stored at the farm: {why}")
            return None
        finally:
            path.unlink(missing_ok=True)
        self._stored.add(key)
        return BlobRef(digest=report.failed_step.digest, size_bytes=size_bytes)
