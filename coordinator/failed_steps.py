"""Steps in which a task's code failed: which of them the farm keeps for the task's author."""

from __future__ import annotations

from coordinator.events import AssignmentFailed
from coordinator.records import FailedStepRecord
from coordinator.state import ClientState, TaskRun
from coordinator.turn import Turn
from protocol.failed_steps import MOST_KEPT, error_line, largest_failed_step_bytes
from protocol.messages import Scope


def wanted_step_bytes(run: TaskRun) -> int:
    """Return how large a file the farm takes of the task's next failed step; 0 if it has enough of them."""
    if len(run.failed_lines) >= MOST_KEPT:
        return 0
    return largest_failed_step_bytes(run.record.spec.initial_weights.size_bytes)


def keep_failed_step(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    """Keep what a client stored of the step in which the task's code failed, the first time that it fails there.

    What is not kept is a blob that nothing refers to, and goes by itself.
    """
    step, line = event.failed_step, error_line(event.message)
    if step is None or event.scope is not Scope.NOBODY or line in run.failed_lines:
        return
    if not 0 < step.size_bytes <= wanted_step_bytes(run):
        return
    run.failed_lines.add(line)
    turn.save(FailedStepRecord(run.task_id, line, step.digest, step.size_bytes))
    turn.note("failed_step_kept", f"state and batch of the failure at {line} are kept: farm pull --failed", run, client)
