"""What comes back from clients: acceptances, refusals, failures, results, aggregates."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coordinator.ahead import arrive_ahead, drop_ahead
from coordinator.commands import DropUpdate
from coordinator.containment import contained
from coordinator.deltas import version_digest
from coordinator.evaluation import finish_evaluation
from coordinator.events import (
    AggregationFailed,
    AssignmentAccepted,
    AssignmentFailed,
    ClientBeat,
    ResultArrived,
    ServerShort,
)
from coordinator.failures import failed
from coordinator.holdings import Claim, find_ahead, find_held, find_late, settle_uncounted
from coordinator.lateness import arrive_late, drop_late
from coordinator.lifecycle import AssignmentState
from coordinator.offers import accept, adopt, bury, renew
from coordinator.records import AssignmentRecord
from coordinator.rounds import commit, fold_in_turn, has_enough
from coordinator.state import Lease, Step, TaskRun
from coordinator.tasks import fail, wait_for_server
from coordinator.throughput import DecayingSum, MovingAverage
from coordinator.turn import Turn
from protocol.compression import CodecName
from protocol.messages import Ack, AssignmentProgress, Kind, Scope

_SHORTEST_SECONDS: Final = 1e-6
"""No computation is shorter: a speed that nobody has would leave no share for the others."""


def accepted(turn: Turn, event: AssignmentAccepted) -> None:
    """A client takes its offer. One that is no longer valid was answered by a cancel already."""
    if held := find_held(turn, event):
        accept(turn, *held)
    elif ahead := find_ahead(turn, event):
        accept(turn, *ahead)


def beat(turn: Turn, event: ClientBeat) -> None:
    """A sign of life: the load, and the progress that renews leases."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return
    client.last_beat = turn.now
    if event.load is not None:
        client.load = event.load
    for progress in event.assignments:
        if (run := turn.farm.home(progress.assignment_id)) is not None:
            contained(turn, run, _renew, event.client_id, progress)


def _renew(turn: Turn, client_id: str, progress: AssignmentProgress) -> None:
    named = Claim(client_id, progress.assignment_id, progress.fence)
    if found := find_held(turn, named) or find_late(turn, named) or find_ahead(turn, named):
        renew(turn, *found, progress)


def arrived(turn: Turn, event: ResultArrived) -> None:
    """A result: counted once, by the first round that may contain it; a repeat is acknowledged and dropped."""
    turn.put_at_stake(event)
    if late := find_late(turn, event):
        _arrived_late(turn, *late, event)
        return
    if ahead := find_ahead(turn, event):
        _arrived_ahead(turn, *ahead, event)
        return
    held = _held_or_adopted(turn, event)
    if held is None:
        _turn_down(turn, event)
        return
    run, step, lease = held
    if problem := _unusable(lease, event):
        here = (event.client_id, event.incarnation, event.assignment_id, event.fence)
        _free_slot(turn, run, lease)  # useless as it is, it is finished
        _drop_update(turn, event)
        failed(turn, AssignmentFailed(*here, code="wrong_result", message=problem, scope=Scope.ELSEWHERE))
        return
    _deliver(turn, run, step, lease, event)


def _arrived_late(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> None:
    problem = _unusable(lease, event)
    if problem or event.update is None:
        drop_late(turn, run, lease, problem or "the result has no update")
        _drop_update(turn, event)
        return
    record = _done(turn, run, lease, event)
    del run.late[record.assignment_id]
    arrive_late(run, record, event.update)
    turn.note("late_update", f"an update of round {record.round} counts in a later one", run)


def _arrived_ahead(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> None:
    problem = _unusable(lease, event)
    if problem or event.update is None:
        drop_ahead(turn, run, lease, problem or "the result has no update")
        _drop_update(turn, event)
        return
    arrive_ahead(run, _done(turn, run, lease, event), event.update)


def _free_slot(turn: Turn, run: TaskRun, lease: Lease) -> None:
    """A client that delivers has a free slot. With pipelining it had it, and said so, when it began to deliver."""
    if not _is_pipelined(run, lease.record):
        turn.farm.clients[lease.record.client_id].slots += 1


def _is_pipelined(run: TaskRun, record: AssignmentRecord) -> bool:
    return run.brief.pipeline and record.kind is Kind.TRAIN


def _held_or_adopted(turn: Turn, event: ResultArrived) -> tuple[TaskRun, Step, Lease] | None:
    held = turn.farm.lease(event.assignment_id, event.fence)
    if held is not None:
        return held if held[2].record.client_id == event.client_id else None
    client = turn.farm.current(event.client_id, event.incarnation)
    dormant = turn.farm.dormant(event.assignment_id, event.fence)
    if client is None or dormant is None or dormant[2].client_id != event.client_id:
        return None
    run, step, record = dormant
    if not _is_pipelined(run, record):
        client.slots -= 1  # it has finished, and so has no slot to give back when it delivers
    return run, step, adopt(turn, run, record, client)


def _turn_down(turn: Turn, event: ResultArrived) -> None:
    settle_uncounted(turn, event, "it came late or twice; nothing is lost")
    _drop_update(turn, event)


def _drop_update(turn: Turn, event: ResultArrived) -> None:
    if event.update is not None:
        turn.do(DropUpdate(event.update))


def _unusable(lease: Lease, event: ResultArrived) -> str | None:
    if event.samples != lease.record.samples:
        return f"the result is of {event.samples} samples, the assignment of {lease.record.samples}"
    if lease.record.kind is Kind.TRAIN and event.update is None:
        return "the result has no update"
    return None


def _deliver(turn: Turn, run: TaskRun, step: Step, lease: Lease, event: ResultArrived) -> None:
    record = _done(turn, run, lease, event)
    del step.leases[record.assignment_id]
    bury(turn, step, record.position)
    step.take_in(record, event.update)
    if step.kind is Kind.EVALUATE:
        turn.send(
            turn.farm.clients[record.client_id],
            Ack(assignment_id=record.assignment_id, fence=record.fence, counted=True),
        )
        if not step.leases and not step.waiting:
            finish_evaluation(turn, run, step)
        return
    fold_in_turn(turn, run, step)
    if has_enough(run, step):
        commit(turn, run, step)


def _done(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> AssignmentRecord:
    """Take a delivered assignment off its client's books, and learn from it."""
    accept(turn, run, lease)
    record = turn.move_lease(
        lease,
        AssignmentState.DELIVERED,
        delivered_at=turn.now,
        update=event.update and event.update.model_copy(update={"inline": None}),
        metrics=dict(event.metrics),
    )
    client = turn.farm.clients[record.client_id]
    client.held.discard(record.assignment_id)
    client.freed_at = turn.now
    _free_slot(turn, run, lease)  # it says so itself in a moment; the next round need not wait for that
    client.record = replace(client.record, delivered=client.record.delivered + 1, last_seen=turn.now)
    client.failures.pop(run.task_id, None)
    run.desertions = 0
    if client.breaker.succeeded():
        turn.note("breaker_closed", f"{client.record.name} works again", run, client)
    if run.brief.weights_codec.name is not CodecName.NONE:
        client.versions[run.task_id] = version_digest(run, record)
    client.cached.update(s.blob.digest for r in record.ranges if (s := run.record.spec.dataset.shards[r.shard]).blob)
    if record.kind is Kind.TRAIN and event.compute_seconds > 0:
        seconds = max(event.compute_seconds, _SHORTEST_SECONDS)
        client.speeds.setdefault(run.task_id, MovingAverage()).add(record.samples / seconds)
    # nobody computes for longer than the lease was held, whatever a client says
    _charge(turn, run, min(event.compute_seconds, max(turn.now - record.offered_at, 1.0)))
    return record


def _charge(turn: Turn, run: TaskRun, seconds: float) -> None:
    submitter = run.record.spec.submitter
    used = turn.farm.usage.setdefault(submitter, DecayingSum(turn.settings.usage_half_life_seconds))
    used.add(seconds, turn.now)
    run.spent.add(seconds, turn.now)


def aggregation_failed(turn: Turn, event: AggregationFailed) -> None:
    """The server could not load, fold or commit: the round is given up and the task retried after a backoff."""
    run = turn.farm.tasks.get(event.task_id)
    if run is None or run.step is None or run.step.attempt != event.attempt:
        return
    if event.servers_fault:
        wait_for_server(turn, run, event.message)
    else:
        fail(turn, run, event.message, retryable=True)


def server_short(turn: Turn, event: ServerShort) -> None:
    """The server ran short of something, or is well again; people are told what tasks wait for."""
    turn.farm.server_lacks = event.reason
