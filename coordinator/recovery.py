"""From what survived a restart back to a farm: rounds that were open are opened again from the last commit."""

from __future__ import annotations

from dataclasses import replace

from coordinator.lifecycle import AssignmentState, TaskState, move_assignment
from coordinator.records import RoundState, Snapshot
from coordinator.rounds import evaluation_is_due
from coordinator.state import ClientState, Farm
from coordinator.tasks import new_run
from coordinator.turn import Turn

RESTARTED = "the server restarted; the round starts again from the last commit"


def restore(snapshot: Snapshot) -> Farm:
    """Build the farm in memory. Nothing is decided here; ``mend`` does that in its turn."""
    farm = Farm(
        clients={c.client_id: ClientState(record=c) for c in snapshot.clients},
        last_fence=max((a.fence for a in snapshot.assignments), default=0),
        interrupted_rounds=list(snapshot.rounds),
        interrupted_assignments=list(snapshot.assignments),
    )
    newest = {c.task_id: c for c in sorted(snapshot.checkpoints, key=lambda c: c.round)}
    for record in snapshot.tasks:
        run = farm.tasks[record.task_id] = new_run(record, newest.get(record.task_id))
        run.attempt = max((r.attempt for r in snapshot.rounds if r.task_id == record.task_id), default=0)
        run.evaluate_next = not run.checkpoint.metrics and evaluation_is_due(run)
    return farm


def mend(turn: Turn) -> None:
    """Settle what the stop interrupted. Doing it twice changes nothing."""
    for interrupted in turn.farm.interrupted_rounds:
        turn.save(replace(interrupted, state=RoundState.ABANDONED))
    for held in turn.farm.interrupted_assignments:
        state = move_assignment(held.assignment_id, held.state, AssignmentState.EXPIRED)
        turn.save(replace(held, state=state, error=RESTARTED))
    turn.farm.interrupted_rounds.clear()
    turn.farm.interrupted_assignments.clear()
    for run in turn.farm.tasks.values():
        if run.record.state in (TaskState.ASSIGNED, TaskState.RUNNING) and run.step is None:
            turn.move(run, TaskState.PENDING, RESTARTED)
