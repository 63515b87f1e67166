"""What comes back from clients: acceptances, refusals, failures, results, aggregates."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coordinator.commands import DropUpdate
from coordinator.containment import contained
from coordinator.deltas import version_digest
from coordinator.epoch_ends import keep_artefacts
from coordinator.events import (
    AggregationFailed,
    AssignmentAccepted,
    AssignmentFailed,
    ClientBeat,
    ResultArrived,
    ServerShort,
)
from coordinator.failures import failed
from coordinator.handing_out import follows_now
from coordinator.in_flight import Lease, Stage
from coordinator.late_updates import join_round
from coordinator.leases import Claim
from coordinator.lifecycle import AssignmentState
from coordinator.offers import accept, adopt, bury, renew, settle_uncounted
from coordinator.records import AssignmentRecord
from coordinator.rounds import fold_in_turn
from coordinator.secure_steps import advertise
from coordinator.secure_sum import takes_masked
from coordinator.state import Step, StepPhase, TaskRun
from coordinator.step_ends import go_on
from coordinator.tasks import fail, wait_for_server
from coordinator.throughput import DecayingSum, MovingAverage
from coordinator.turn import Turn
from protocol.artefacts import bounds_fault
from protocol.assignments import Ack, Kind
from protocol.compression import CodecName
from protocol.messages import Scope

_SHORTEST_SECONDS: Final = 1e-6
"""No computation is shorter: a speed that nobody has would leave no share for the others."""


def accepted(turn: Turn, event: AssignmentAccepted) -> None:
    """A client takes its offer. One that is no longer valid was answered by a cancel already."""
    if (lease := turn.farm.leases.find(event, Stage.HELD)) is not None:
        run = turn.farm.tasks[lease.record.task_id]
        accept(turn, run, lease)
        advertise(turn, run, lease, event.keys)


def beat(turn: Turn, event: ClientBeat) -> None:
    """A sign of life: the load, and the progress that renews leases."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return
    client.last_beat = turn.now
    if event.load is not None:
        client.load = event.load
        client.link = event.load.link or client.link
    for progress in event.assignments:
        said = Claim(event.client_id, progress.assignment_id, progress.fence)
        if (lease := turn.farm.leases.find(said, Stage.HELD)) is not None:
            run = turn.farm.tasks[lease.record.task_id]
            contained(turn, run, renew, run, lease, progress)


def arrived(turn: Turn, event: ResultArrived) -> None:
    """A result: counted once, by the first round that may contain it; a repeat is acknowledged and dropped."""
    turn.put_at_stake(event)
    lease = turn.farm.leases.find(event, Stage.HELD, Stage.DORMANT)
    run = turn.farm.tasks[lease.record.task_id] if lease is not None else None
    if lease is not None and run is not None and lease.stage is Stage.DORMANT:
        lease = _adopted(turn, run, lease, event)
    if lease is None or run is None:
        settle_uncounted(turn, event, "it came late or twice; nothing is lost")
        _drop_update(turn, event)
    elif problem := _unusable(run, lease, event):
        _turn_down(turn, run, lease, event, problem)
    else:
        _deliver(turn, run, lease, event)


def _adopted(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> Lease | None:
    """Give a client that finished what it held before its connection ended that lease again."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return None
    if not run.policy(lease.record.kind).works_ahead:
        turn.farm.leases.add_slots(client.client_id, -1)  # it has finished: it has no slot to give back on delivery
    return adopt(turn, run, lease, client)


def _turn_down(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived, problem: str) -> None:
    """A result that nobody can use: the client is done with it, and somebody else gets the part."""
    _drop_update(turn, event)
    if not run.policy(lease.record.kind).works_ahead:
        turn.farm.leases.add_slots(event.client_id, 1)
    here = (event.client_id, event.incarnation, event.assignment_id, event.fence)
    failed(turn, AssignmentFailed(*here, code="wrong_result", message=problem, scope=Scope.ELSEWHERE))


def _drop_update(turn: Turn, event: ResultArrived) -> None:
    if event.update is not None:
        turn.do(DropUpdate(event.update))


def _unusable(run: TaskRun, lease: Lease, event: ResultArrived) -> str | None:
    policy = run.policy(lease.record.kind)
    if policy.counts_samples and event.samples != lease.record.samples:
        return f"the result is of {event.samples} samples, the assignment of {lease.record.samples}"
    if event.update is None and policy.brings_updates:
        return "the result has no update"
    if run.step is not None and (secure := run.step.secure) is not None and not takes_masked(secure, lease.record):
        return "the result came before its round had agreed on masks, or without it"
    if event.output is None and policy.brings_outputs:
        return "the result has no outputs"
    return bounds_fault((file.name, file.size_bytes) for file in event.artefacts)


def _deliver(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> None:
    record = _done(turn, run, lease, event)
    step = run.step
    if step is not None and lease.home == step.parts.home:
        bury(turn, step, record.position)
        if step.kind is Kind.EPOCH_END:
            keep_artefacts(turn, run, event.artefacts)
        _continue(turn, run, step, record)
    elif lease.is_late:
        if step is not None and step.policy.counts_late and step.phase is StepPhase.COLLECT:
            join_round(turn, run, step)
            if step.policy.hands_out:
                _continue(turn, run, step, record)
        turn.note("late_update", f"an update of round {record.round} counts in a later one", run)


def _continue(turn: Turn, run: TaskRun, step: Step, record: AssignmentRecord) -> None:
    """A part of the open step is here: go on with what that allows."""
    if step.policy.brings_updates:
        fold_in_turn(turn, run, step)
    else:
        ack = Ack(assignment_id=record.assignment_id, fence=record.fence, counted=True)
        turn.send(turn.farm.clients[record.client_id], ack)
    if (follows := follows_now(turn, run, step)) is not None:
        go_on(turn, run, step, follows)


def _done(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> AssignmentRecord:
    """Take in a delivered assignment, and learn from it."""
    accept(turn, run, lease)
    record = turn.move_lease(
        lease,
        AssignmentState.DELIVERED,
        delivered_at=turn.now,
        update=(ref := event.update or event.output) and ref.bare(),
        metrics=dict(event.metrics),
        team=turn.farm.clients[lease.record.client_id].record.team,
        flops_per_sample=event.flops_per_sample,
    )
    client, policy = turn.farm.clients[record.client_id], run.policy(record.kind)
    turn.farm.leases.deliver(lease, event.update, turn.now)
    if not policy.works_ahead:  # it says so itself in a moment; the next round need not wait for that
        turn.farm.leases.add_slots(record.client_id, 1)
    client.record = replace(client.record, delivered=client.record.delivered + 1, last_seen=turn.now)
    client.failures.pop(run.task_id, None)
    run.desertions = 0
    if client.breaker.succeeded():
        turn.note("breaker_closed", f"{client.record.name} works again", run, client)
    if run.brief.weights_codec.name is not CodecName.NONE:
        client.versions[run.task_id] = version_digest(run, record)
    client.cached.update(s.blob.digest for r in record.ranges if (s := run.record.spec.dataset.shards[r.shard]).blob)
    if policy.is_the_work and event.compute_seconds > 0:
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
    """The server ran short of something, or is well again; it becomes the reason that tasks show for their wait."""
    turn.farm.server_lacks = event.reason
