"""What a person may call a task: its id, a unique beginning of the id, or its name (the newest of that name)."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import NotFound
from protocol.rest import TaskView


def find_round(tasks: Sequence[TaskView], reference: str) -> tuple[TaskView, int | None]:
    """Return the task and the round that ``TASK@N`` means; the round is None without ``@N``. Raises: NotFound."""
    task, at, number = reference.rpartition("@")
    if at and number.isdecimal():
        return find_task(tasks, task), int(number)
    return find_task(tasks, reference), None


def find_task(tasks: Sequence[TaskView], reference: str) -> TaskView:
    """Return the task meant by ``reference``: an id before a name before a beginning of an id.

    Raises: NotFound if it is none's, or the beginning of several ids (which the message lists).
    """
    for task in tasks:
        if task.task_id == reference:
            return task
    if named := [task for task in tasks if task.name == reference]:
        return max(named, key=lambda task: task.submitted_at)
    begun = [task for task in tasks if reference and task.task_id.startswith(reference.lower())]
    if len(begun) == 1:
        return begun[0]
    if begun:
        ids = ", ".join(sorted(task.task_id for task in begun))
        raise NotFound(f"{reference!r} is the beginning of several task ids ({ids}): give more of it")
    raise NotFound(f"there is no task {reference!r} on this farm: `farm ls` lists the tasks")
