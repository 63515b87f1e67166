"""Commands on tasks from people: each is durable when its method returns."""

from __future__ import annotations

from coordinator.events import Action, TaskAction, TaskPrioritized
from farm_server.tasks.ended_tasks import EndedTasks
from farm_server.tasks.removal import Removal
from farm_server.tasks.submissions import Submissions
from protocol.tasks import TaskSpec


class TaskCommands:
    """``tasks`` hands the coordinator an event, and returns once all that it decided is durable."""

    def __init__(self, tasks: EndedTasks, submissions: Submissions, removal: Removal) -> None:
        self._tasks = tasks
        self._submissions = submissions
        self._removal = removal

    async def submit(self, spec: TaskSpec) -> tuple[str, bool]:
        """Take a task in; return its id, and whether it is new: a repeat finds the first one. Raises: FarmError."""
        return await self._submissions.submit(spec)

    async def act(self, task_id: str, action: Action) -> None:
        """Pause, resume, cancel or retry. Raises: NotFound; Conflict where the state forbids it; Unavailable."""
        await self._tasks.ask(TaskAction(task_id, action))

    async def prioritize(self, task_id: str, priority: int) -> None:
        """Give a task another priority. Raises: NotFound; Conflict where it is over; Unavailable."""
        await self._tasks.ask(TaskPrioritized(task_id, priority))

    async def remove(self, task_id: str, *, force: bool) -> None:
        """Remove a task that is over, or with ``force`` cancel it first. Raises: NotFound; Conflict; Unavailable."""
        await self._removal.remove(task_id, force=force)
