"""The priority queue of tasks: who is served first when clients are free.

Order: priority band, highest first; then the submitter that used the farm least of late; of one submitter's tasks the
one that had least of late, and of equal ones the one that was served longest ago. What counts is client-seconds, not
turns: a task of small rounds gets as much as its neighbours. A waiting task's band rises by one every
``ageing_seconds``, up to 9, so that nothing starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from coordinator.records import TaskRecord
from coordinator.throughput import DecayingSum

TOP_BAND = 9


def band(task: TaskRecord, now: float, ageing_seconds: float) -> int:
    """Return the task's priority, raised by the time it has waited since it was last served."""
    waited = max(now - max(task.served_at, task.created_at), 0.0)
    return min(task.priority + int(waited / ageing_seconds), max(TOP_BAND, task.priority))


def queue_order(
    tasks: Iterable[TaskRecord],
    usage: Mapping[str, DecayingSum],
    now: float,
    ageing_seconds: float,
    spent: Mapping[str, float] = MappingProxyType({}),
) -> list[TaskRecord]:
    """Return the tasks in the order in which they are served.

    ``usage`` is client-seconds by submitter, ``spent`` by task id.
    """
    used = {submitter: seconds.read(now) for submitter, seconds in usage.items()}

    def key(task: TaskRecord) -> tuple[int, float, float, float, float, str]:
        mine, its = used.get(task.spec.submitter, 0.0), spent.get(task.task_id, 0.0)
        return (-band(task, now, ageing_seconds), mine, its, task.served_at, task.created_at, task.task_id)

    return sorted(tasks, key=key)


def fair_share(idle: int, peers: int, needed: int) -> int:
    """Return how many of ``idle`` clients a task may take while ``peers`` tasks of its band (itself included) wait.

    Never fewer than it ``needed`` to open a round at all.
    """
    return max(-(-idle // max(peers, 1)), min(needed, idle))
