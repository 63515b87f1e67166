"""Late updates: with ``max_staleness`` an assignment that misses its round still counts in one of the next.

Its samples are not given to anybody else meanwhile, so that each still counts once; in the ledger they are owed all the
same, so that a restart loses none of them. A stale update weighs less, by (1 + staleness) ** -0.5.
Source: Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934, section 5.2 (polynomial, a = 0.5).
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.commands import DropUpdate
from coordinator.lifecycle import AssignmentState
from coordinator.records import AssignmentRecord, SampleRange
from coordinator.state import LateResult, Lease, Step, StepPhase, TaskRun
from coordinator.turn import Turn
from protocol.messages import Ack, Cancel, Kind
from protocol.tasks import BlobRef


def discount(staleness: int) -> float:
    """Return the factor of a stale update's weight; ``staleness`` is in rounds."""
    return float((1 + staleness) ** -0.5)


def outstanding(run: TaskRun) -> tuple[SampleRange, ...]:
    """Return the samples that assignments of other rounds may still deliver, or have, and no round contains yet."""
    records = [lease.record for lease in run.late.values()] + [late.record for late in run.late_results]
    records += sorted(run.ahead_records(), key=lambda record: record.position)
    return tuple(r for record in records for r in record.ranges)


def available_leftover(run: TaskRun) -> tuple[SampleRange, ...]:
    """Return the owed samples that nobody is working on."""
    busy = set(outstanding(run))
    return tuple(r for r in run.record.leftover if r not in busy)


def let_finish(run: TaskRun, step: Step) -> None:
    """The round commits without them: those that still work on a part of it may finish."""
    run.late.update(step.leases)
    step.leases.clear()


def arrive_late(run: TaskRun, record: AssignmentRecord, update: BlobRef) -> None:
    """Take in a late result: the round that is being collected contains it, else the next one."""
    run.late_results.append(LateResult(record, update))
    if run.step is not None and run.step.kind is Kind.TRAIN and run.step.phase is StepPhase.COLLECT:
        join_round(run, run.step)


def join_round(run: TaskRun, step: Step) -> None:
    """Put the late results at the end of a round, after all of its own parts."""
    for late in run.late_results:
        place = step.samples + sum(a.samples for a in step.delivered if a.position >= step.samples)
        record = replace(late.record, position=place)
        step.take_in(record, late.update)
        step.scales[record.assignment_id] = discount(step.number - record.round)
    run.late_results.clear()


def drop_late(turn: Turn, run: TaskRun, lease: Lease, why: str, to: AssignmentState = AssignmentState.EXPIRED) -> None:
    """Give a late assignment up; its samples are owed again."""
    record = turn.move_lease(lease, to, error=why)
    del run.late[record.assignment_id]
    turn.save(record)
    client = turn.farm.clients[record.client_id]
    client.held.discard(record.assignment_id)
    client.freed_at = turn.now
    if client.incarnation == record.incarnation and to is AssignmentState.EXPIRED:
        turn.send(client, Cancel(assignment_id=record.assignment_id, fence=record.fence, reason=why))


def drop_stale(turn: Turn, run: TaskRun) -> None:
    """Before a round opens: give up what would be staler in it than the recipe allows."""
    oldest = run.record.version - run.record.spec.recipe.max_staleness
    for lease in list(run.late.values()):
        if lease.record.round < oldest:
            drop_late(turn, run, lease, "it is staler than the recipe allows")


def drop_all_late(turn: Turn, run: TaskRun, why: str) -> None:
    """Give up all that is late, results that no round contains yet included."""
    for lease in list(run.late.values()):
        drop_late(turn, run, lease, why)
    for late in run.late_results:
        turn.save(late.record)
        turn.do(DropUpdate(late.update))
        drop = Ack(assignment_id=late.record.assignment_id, fence=late.record.fence, counted=False, message=why)
        turn.send_to(late.record.client_id, drop)
    run.late_results.clear()
