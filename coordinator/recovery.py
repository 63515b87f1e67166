"""From what survived a restart back to a farm. ``docs/recovery.md`` tells the same in words.

Rounds that were open stay open: what clients still hold, or finished meanwhile, counts when they come back. The
accumulator is gone, but so is no update: clients keep theirs until a committed round contains it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from coordinator.commands import OpenRound
from coordinator.lifecycle import AssignmentState, TaskState, move_assignment
from coordinator.planning import count_samples, cut
from coordinator.records import AssignmentRecord, RoundRecord, RoundState, SampleRange, Snapshot
from coordinator.rounds import evaluation_is_due, next_cursor, round_ranges
from coordinator.state import ClientState, Farm, Part, Step, TaskRun
from coordinator.tasks import new_run
from coordinator.turn import Turn
from protocol.messages import Kind

RESTARTED = "the server restarted; the task waits for its clients to come back"


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
        run.evaluate_next = not run.checkpoint.metrics and evaluation_is_due(run)
    return farm


def mend(turn: Turn) -> None:
    """Settle what the stop interrupted. Doing it twice changes nothing."""
    rounds, held = turn.farm.interrupted_rounds, turn.farm.interrupted_assignments
    turn.farm.interrupted_rounds, turn.farm.interrupted_assignments = [], []
    for interrupted in rounds:
        run = turn.farm.tasks.get(interrupted.task_id)
        if run is None or not _reopen(turn, run, interrupted, held):
            turn.save(replace(interrupted, state=RoundState.ABANDONED))
    for assignment in held:
        if turn.farm.dormant(assignment.assignment_id, assignment.fence) is None:
            state = move_assignment(assignment.assignment_id, assignment.state, AssignmentState.EXPIRED)
            turn.save(replace(assignment, state=state, error=RESTARTED))
    for run in turn.farm.tasks.values():
        if run.record.state in (TaskState.ASSIGNED, TaskState.RUNNING):
            turn.move(run, TaskState.PENDING, RESTARTED)


def _reopen(turn: Turn, run: TaskRun, interrupted: RoundRecord, held: list[AssignmentRecord]) -> bool:
    """Open the round again under the same attempt, its parts reserved for the clients that held them."""
    run.attempt = max(run.attempt, interrupted.attempt)
    live = run.record.state in (TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING)
    ranges = round_ranges(turn, run)
    if not live or interrupted.number != run.record.version or count_samples(ranges) != interrupted.samples:
        return False
    opening = (run.task_id, interrupted.number, interrupted.attempt)
    mine = [a for a in held if (a.task_id, a.round, a.attempt) == opening and a.kind is Kind.TRAIN]
    run.step = Step(
        kind=Kind.TRAIN,
        number=interrupted.number,
        attempt=interrupted.attempt,
        epoch=interrupted.epoch,
        samples=interrupted.samples,
        opened_at=turn.now,
        collect_since=turn.now,
        round=interrupted,
        next_cursor=next_cursor(run, interrupted.samples),
        waiting=_parts(ranges, mine, turn.now + turn.settings.return_seconds),
        dormant={a.assignment_id: a for a in mine},
    )
    turn.do(OpenRound(run.task_id, interrupted.number, interrupted.attempt, run.record.spec, run.checkpoint))
    turn.note("round_reopened", f"round {interrupted.number} waits for {len(mine)} parts that clients held", run)
    return True


def _parts(ranges: tuple[SampleRange, ...], held: list[AssignmentRecord], until: float) -> list[Part]:
    """Cut the round at the places where held parts begin and end; the rest is free for anyone."""
    ends = {a.position: a.position + a.samples for a in held}
    places = sorted({0, count_samples(ranges), *ends, *ends.values()})
    sizes = [b - a for a, b in pairwise(places)]
    pieces = cut(ranges, sizes)
    return [
        Part(place, piece, size, until if place in ends else 0.0)
        for place, piece, size in zip(places, pieces, sizes, strict=False)
    ]
