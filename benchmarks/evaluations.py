"""A task's evaluations as they come, each with the bytes that the server had counted when its version was committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.farm import BenchmarkError
from benchmarks.meters import ServerCount, server_count
from farm_client.sdk.api import FarmApi
from farm_client.sdk.outcome import is_over
from protocol.rest import TaskView

POLL_SECONDS: Final = 0.1
STALLED_SECONDS: Final = 180.0


@dataclass(frozen=True)
class Evaluated:
    """A held-out metric of a version, and what was counted by the time that version was first seen committed."""

    round: int
    name: str
    value: float
    count: ServerCount


def evaluations(api: FarmApi, task_id: str, before: ServerCount) -> Iterator[Evaluated]:
    """Yield each evaluated metric until the task is over; counts are what was added since ``before``.

    Raises: BenchmarkError if the task fails or stalls.
    """
    counts: dict[int, ServerCount] = {}
    seen, moved_at, over = 0, time.monotonic(), False
    while True:
        metrics = api.metrics(task_id, after=seen)
        # Asked for later, so that the round of every metric is among those that were seen committed.
        task = api.task(task_id).task
        counts.setdefault(task.round, server_count(api.address) - before)
        for metric in metrics:
            seen, moved_at = metric.seq, time.monotonic()
            if metric.source == "eval":
                count = counts[min(number for number in counts if number >= metric.round)]
                yield Evaluated(metric.round, metric.name, metric.value, count)
        if over:
            _check_completed(task)
            return
        over = is_over(task)  # its last metrics are there by now: once more
        if time.monotonic() - moved_at > STALLED_SECONDS:
            raise BenchmarkError(f"{task.name} stalled: {task.why}")
        time.sleep(POLL_SECONDS)


def _check_completed(task: TaskView) -> None:
    if task.state != "completed":
        raise BenchmarkError(f"{task.name} {task.state}: {task.error or task.why}")
