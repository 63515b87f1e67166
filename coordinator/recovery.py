"""From what survived a restart back to a farm. ``docs/recovery.md`` tells the same in words.

Rounds that were open stay open: what clients still hold, or finished meanwhile, counts when they come back. The
accumulator is gone, but so is no update: clients keep theirs until a committed round contains it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

from coordinator.commands import OpenRound
from coordinator.containment import contained
from coordinator.credit import entry_of
from coordinator.data_parts import sizes_of_parts
from coordinator.deltas import forget_deltas
from coordinator.durability import roll_back
from coordinator.events import CheckpointDamaged
from coordinator.farm import FarmState
from coordinator.in_flight import Home, Lease, Part
from coordinator.late_updates import drop_all_late
from coordinator.lifecycle import AssignmentState, TaskState, move_assignment
from coordinator.maps import reopen_map
from coordinator.pipelining import drop_all_ahead
from coordinator.planning import count_samples, cut
from coordinator.records import AssignmentRecord, RoundRecord, RoundState, SampleRange, Snapshot
from coordinator.round_plan import plan_round
from coordinator.rounds import abandon
from coordinator.state import ClientState, Step, TaskRun
from coordinator.tasks import fail, stored_run
from coordinator.turn import Turn
from protocol.assignments import Kind
from protocol.privacy import is_private
from protocol.recipe import PartSizes
from protocol.secure_aggregation import is_secure

RESTARTED = "the server restarted; the task waits for its clients to come back"


def restore(snapshot: Snapshot) -> FarmState:
    """Build the farm in memory. Nothing is decided here; ``mend`` does that in its turn."""
    farm = FarmState(
        last_fence=max([snapshot.last_fence, *(a.fence for a in snapshot.assignments)]),
        interrupted_rounds=list(snapshot.rounds),
        interrupted_assignments=list(snapshot.assignments),
    )
    farm.credits = {one.client_id: one for one in snapshot.credits}
    for client in snapshot.clients:
        farm.admit(ClientState(record=client))
    newest = {c.task_id: c for c in sorted(snapshot.checkpoints, key=lambda c: c.round)}
    for record in snapshot.tasks:
        farm.add(stored_run(record, newest.get(record.task_id), snapshot.failed_steps))
    return farm


def mend(turn: Turn) -> None:
    """Settle what the stop interrupted. Doing it twice changes nothing."""
    rounds, held = turn.farm.interrupted_rounds, turn.farm.interrupted_assignments
    turn.farm.interrupted_rounds, turn.farm.interrupted_assignments = [], []
    reopened: set[tuple[str, int]] = set()
    for interrupted in rounds:
        if (run := turn.farm.tasks.get(interrupted.task_id)) is not None:
            contained(turn, run, _mend_round, run, interrupted, held, reopened)
    for run in list(turn.farm.live.values()):
        mine = [a for a in held if a.task_id == run.task_id and a.client_id in turn.farm.clients]
        if run.record.spec.map is not None and mine:
            contained(turn, run, reopen_map, run, mine)
    for interrupted in rounds:
        if (interrupted.task_id, interrupted.attempt) not in reopened:
            turn.save(replace(interrupted, state=RoundState.ABANDONED))
    for assignment in held:
        if turn.farm.leases.get(assignment.assignment_id) is None:
            state = move_assignment(assignment.assignment_id, assignment.state, AssignmentState.EXPIRED)
            turn.save(replace(assignment, state=state, error=RESTARTED))
    for run in list(turn.farm.live.values()):
        contained(turn, run, _mend_task, run)


def _mend_round(
    turn: Turn, run: TaskRun, interrupted: RoundRecord, held: list[AssignmentRecord], reopened: set[tuple[str, int]]
) -> None:
    if _reopen(turn, run, interrupted, held):
        reopened.add((interrupted.task_id, interrupted.attempt))


def _mend_task(turn: Turn, run: TaskRun) -> None:
    if run.record.state in (TaskState.ASSIGNED, TaskState.RUNNING):
        turn.move(run, TaskState.PENDING, RESTARTED)
    _forget_the_old_clock(turn, run)


def _forget_the_old_clock(turn: Turn, run: TaskRun) -> None:
    """If the wall clock was set back meanwhile, a backoff of seconds might end in an hour."""
    latest = turn.now + turn.settings.task_retry.longest_seconds
    if run.record.not_before > latest:
        turn.save(run.update(not_before=latest))


def fall_back(turn: Turn, event: CheckpointDamaged) -> None:
    """The newest checkpoint can't be read: go back to the last one that can, weights, books and round number together.

    The rounds since then are trained again. Without any readable checkpoint the task fails, and so does a private one:
    what it spent of privacy is counted by its rounds.
    """
    run = turn.farm.tasks.get(event.task_id)
    if run is None or run.step is None or run.step.attempt != event.attempt:
        return
    kept = event.fallback
    if kept is None:
        fail(turn, run, f"no checkpoint of it can be read: {event.message}", retryable=False)
        return
    if is_private(run.record.spec.recipe):
        why = "clients saw the rounds since then, and no accountant would count them twice"
        fail(turn, run, f"{event.message}; it can't go back to round {kept.round}: {why}", retryable=False)
        return
    abandon(turn, run, event.message)
    drop_all_ahead(turn, run, event.message)
    drop_all_late(turn, run, event.message)
    forget_deltas(turn, run)
    roll_back(turn, run, event.message)
    for record in event.undone:
        turn.save(replace(record, counted=False, counted_in=None))
        turn.credit(entry_of(record, -1))
    turn.farm.add_credit(entry_of(record, -1) for record in event.undone)
    lost = run.record.version - kept.round
    run.checkpoint = kept
    run.evaluate_next = False
    turn.save(
        run.update(
            version=kept.round,
            epoch=kept.epoch,
            cursor=kept.cursor,
            leftover=kept.leftover,
            samples_done=run.record.samples_done - sum(a.samples for a in event.undone),
            metrics=kept.metrics,
        )
    )
    message = f"CHECKPOINT DAMAGED: {event.message}; back to round {kept.round}, rounds to train again: {lost}"
    turn.note("checkpoint_damaged", message, run)


def _reopen(turn: Turn, run: TaskRun, interrupted: RoundRecord, held: list[AssignmentRecord]) -> bool:
    """Open the round again under the same attempt, its parts reserved for the clients that held them."""
    run.attempt = max(run.attempt, interrupted.attempt)
    live = run.record.state in (TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING)
    plan = plan_round(run, turn.settings.stripe_shards)
    if is_secure(run.record.spec.recipe):  # its keys are gone with the memory
        return False
    if not live or interrupted.number != run.record.version or plan.samples != interrupted.samples:
        return False
    opening = (run.task_id, interrupted.attempt, Kind.TRAIN)
    # a part that was begun ahead of its round has the round before it; one that still is has no place in this round
    mine = [a for a in held if (a.task_id, a.attempt, a.kind) == opening and a.position < interrupted.samples]
    mine = [a for a in mine if a.client_id in turn.farm.clients]  # who was removed brings nothing any more
    recipe = run.record.spec.recipe
    fixed = sizes_of_parts(plan.ranges, run.record.spec, Kind.TRAIN) if recipe.parts is PartSizes.FIXED else []
    parts = _parts(plan.ranges, mine, turn.now + turn.settings.return_seconds, fixed)
    pieces = {part.position: part.ranges for part in parts}
    if any(pieces[a.position] != a.ranges for a in mine):  # late updates changed what the round consists of
        return False
    run.step = Step(
        kind=Kind.TRAIN,
        number=interrupted.number,
        attempt=interrupted.attempt,
        epoch=interrupted.epoch,
        opened_at=turn.now,
        parts=run.leases.open(Home(Kind.TRAIN, interrupted.number), interrupted.samples),
        policy=run.policy(Kind.TRAIN),
        collect_since=turn.now,
        round=interrupted,
        next_cursor=plan.next_cursor,
        carried=plan.carried,
    )
    run.answered.round = interrupted
    for part in parts:
        turn.farm.leases.wait(run.step.parts, part)
    for record in mine:
        scale = run.step.policy.scale(interrupted.number - record.round)
        turn.farm.leases.restore(Lease(record, run.step.parts.home, scale=scale))
    turn.do(OpenRound(run.task_id, interrupted.number, interrupted.attempt, run.record.spec, run.checkpoint))
    turn.note("round_reopened", f"round {interrupted.number} waits for {len(mine)} parts that clients held", run)
    return True


def _parts(ranges: tuple[SampleRange, ...], held: list[AssignmentRecord], until: float, fixed: list[int]) -> list[Part]:
    """Cut the round where held parts begin and end, and fixed ones do; the rest is free for anyone."""
    ends = {a.position: a.position + a.samples for a in held}
    places = sorted({0, count_samples(ranges), *ends, *ends.values(), *accumulate(fixed)})
    sizes = [b - a for a, b in pairwise(places)]
    pieces = cut(ranges, sizes)
    return [
        Part(place, piece, size, until if place in ends else 0.0)
        for place, piece, size in zip(places, pieces, sizes, strict=False)
    ]
