"""How long a client stays with a task: long against an executor's start, which each change of task may cost it.

A client begins a *stint* with the first part of a task that it is given. For ``quantum_seconds`` from then on it is
kept for that task, also for the moment between two rounds (``keep_seconds`` at most), against all tasks of no higher
priority; then the queue decides again.
"""

from __future__ import annotations

from coordinator.settings import CoordinatorSettings
from coordinator.state import ClientState, TaskRun

_REMEMBERED = 4
"""Tasks that a client may still have an executor of."""


def begin_stint(client: ClientState, run: TaskRun, settings: CoordinatorSettings, now: float) -> None:
    """The client is given a part of a task: its stint begins, or goes on."""
    stints, own = client.stints, run.task_id
    if not is_in_stint(client, run, settings, now):
        stints.pop(own, None)
        stints[own] = now
    if len(stints) > 1:
        for task_id in list(stints)[: -max(len(client.held) + client.slots, 1)]:
            if task_id != own:
                del stints[task_id]
    if not client.recent:
        client.recent = (own,)
    elif client.recent[0] != own:
        others = [task_id for task_id in client.recent if task_id != own]
        client.recent = (own, *others[: _REMEMBERED - 1])


def end_stint(client: ClientState, run: TaskRun) -> None:
    """The client will not work on a task: it is not kept for it, and has no executor of it."""
    client.stints.pop(run.task_id, None)
    client.recent = tuple(task_id for task_id in client.recent if task_id != run.task_id)


def is_in_stint(client: ClientState, run: TaskRun, settings: CoordinatorSettings, now: float) -> bool:
    """Whether the client is to stay with the task for now."""
    since = client.stints.get(run.task_id)
    return since is not None and now - since < settings.quantum_seconds


def expected_by(client: ClientState, settings: CoordinatorSettings, now: float) -> list[str]:
    """Return the ids of the tasks that a free slot of the client may be kept for, for the moment."""
    if not client.stints or now - client.freed_at >= settings.keep_seconds:
        return []
    return [task_id for task_id, since in client.stints.items() if now - since < settings.quantum_seconds]
