"""Whether a task is over, and how it ended, read from the view that the farm gives of it."""

from __future__ import annotations

from enum import StrEnum

from protocol.errors import FarmError
from protocol.rest import TaskView


class TaskOutcome(StrEnum):
    """How a task ended. The values are the task's final states."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskEnded(FarmError):
    """The task failed or was cancelled; `farm retry` goes on with one that failed."""

    code = "task_ended"

    def __init__(self, task: TaskView) -> None:
        super().__init__(f"{task.name} ({task.task_id}) {task.state}: {task.error or task.why}")
        self.task = task


def outcome_of(task: TaskView) -> TaskOutcome | None:
    """Return how the task ended, or None while it may still train."""
    return TaskOutcome(task.state) if task.state in set(TaskOutcome) else None


def is_over(task: TaskView) -> bool:
    """Return whether the task has ended."""
    return outcome_of(task) is not None
