"""What comes back from clients: acceptances, refusals, failures, results, aggregates."""

from __future__ import annotations

from dataclasses import replace

from coordinator.ahead import arrive_ahead, drop_ahead
from coordinator.commands import DropUpdate
from coordinator.deltas import version_digest
from coordinator.eligibility import qualifies
from coordinator.evaluation import finish_evaluation
from coordinator.events import (
    AggregationFailed,
    AssignmentAccepted,
    AssignmentFailed,
    AssignmentRejected,
    ClientBeat,
    ResultArrived,
    TaskBroken,
)
from coordinator.lateness import arrive_late, drop_late
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.offers import accept, adopt, bury, lose, renew, trip
from coordinator.records import AssignmentRecord
from coordinator.rounds import commit, fold_in_turn, has_enough
from coordinator.state import ClientState, Cooldown, Lease, Step, TaskRun
from coordinator.tasks import fail
from coordinator.throughput import DecayingSum, MovingAverage
from coordinator.turn import Turn
from protocol.compression import CodecName
from protocol.messages import Ack, Kind, RejectCode, Scope


def accepted(turn: Turn, event: AssignmentAccepted) -> None:
    """A client takes its offer. One that is no longer valid was answered by a cancel already."""
    if held := turn.farm.lease(event.assignment_id, event.fence):
        run, _, lease = held
        accept(turn, run, lease)
    elif ahead := turn.farm.ahead(event.assignment_id, event.fence):
        accept(turn, *ahead)


def _other_round(turn: Turn, assignment_id: str, fence: int) -> tuple[TaskRun, Lease] | None:
    """Find what a client does for another round than the open one."""
    return turn.farm.late(assignment_id, fence) or turn.farm.ahead(assignment_id, fence)


def beat(turn: Turn, event: ClientBeat) -> None:
    """A sign of life: the load, and the progress that renews leases."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is None:
        return
    client.last_beat = turn.now
    if event.load is not None:
        client.load = event.load
    for progress in event.assignments:
        if held := turn.farm.lease(progress.assignment_id, progress.fence):
            run, _, lease = held
            renew(turn, run, lease, progress)
        elif other := _other_round(turn, progress.assignment_id, progress.fence):
            renew(turn, *other, progress)


def rejected(turn: Turn, event: AssignmentRejected) -> None:
    """A client hands an assignment back undone; it is not asked again at once."""
    if late := turn.farm.late(event.assignment_id, event.fence):
        drop_late(turn, *late, event.message, AssignmentState.REJECTED)
        return
    why, to = f"{event.code.replace('_', ' ')}: {event.message}", AssignmentState.REJECTED
    if ahead := turn.farm.ahead(event.assignment_id, event.fence):
        run, lease = ahead
        client = drop_ahead(turn, run, lease, why, to)
    elif held := turn.farm.lease(event.assignment_id, event.fence):
        run, _, lease = held
        client = lose(turn, run, lease, to, why)
    else:
        return
    if event.code is RejectCode.DOES_NOT_FIT:
        wait = turn.settings.does_not_fit_seconds
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"it does not fit: {event.message}")
    elif event.code is RejectCode.DRAINING:
        client.draining = True
    else:
        wait = turn.settings.client_retry.longest_seconds(1)
        client.cooldowns[run.task_id] = Cooldown(turn.now + wait, f"{event.code}: {event.message}")


def failed(turn: Turn, event: AssignmentFailed) -> None:
    """An assignment went wrong: somebody else gets it, unless the researcher's code is at fault everywhere.

    It may be the server that found so: then the client keeps the result until it hears that nobody wants it.
    """
    _settle_uncounted(turn, event, f"not counted: {event.message}")
    if late := turn.farm.late(event.assignment_id, event.fence):
        drop_late(turn, *late, event.message, AssignmentState.FAILED)
        return
    why, to = f"{event.code}: {event.message}", AssignmentState.FAILED
    if ahead := turn.farm.ahead(event.assignment_id, event.fence):
        run, lease = ahead
        client = drop_ahead(turn, run, lease, why, to)
    elif held := turn.farm.lease(event.assignment_id, event.fence):
        run, _, lease = held
        client = lose(turn, run, lease, to, why)
    else:
        return
    turn.log(run, client, event.traceback or event.message)
    client.record = replace(client.record, failed=client.record.failed + 1)
    turn.save(client.record)
    run.failures += 1
    if event.scope is Scope.NOBODY:
        _code_failed(turn, run, client, event)
        return
    client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)
    trip(turn, client)
    if run.failures >= turn.settings.round_failures:
        fail(turn, run, f"{run.failures} assignments failed, the last one: {event.message}", retryable=True)


def _code_failed(turn: Turn, run: TaskRun, client: ClientState, event: AssignmentFailed) -> None:
    run.code_failures[client.client_id] = event.message
    askable = sum(1 for c in turn.farm.online() if not c.draining and qualifies(c.record, run.record.spec).value)
    enough = len(run.code_failures) >= min(turn.settings.code_failure_clients, max(askable, 1))
    if enough or run.failures >= turn.settings.round_failures:
        where = "a client" if len(run.code_failures) == 1 else f"{len(run.code_failures)} clients"
        fail(turn, run, f"the task's code failed on {where}: {event.message}", retryable=False)
        return
    client.back_off(run.task_id, event.message, turn.settings.client_retry, turn.now)


def arrived(turn: Turn, event: ResultArrived) -> None:
    """A result: counted once, by the first round that may contain it; a repeat is acknowledged and dropped."""
    if late := turn.farm.late(event.assignment_id, event.fence):
        _arrived_late(turn, *late, event)
        return
    if ahead := turn.farm.ahead(event.assignment_id, event.fence):
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
    if problem or event.update is None or lease.record.client_id != event.client_id:
        drop_late(turn, run, lease, problem or "it came from another client")
        _drop_update(turn, event)
        return
    record = _done(turn, run, lease, event)
    del run.late[record.assignment_id]
    arrive_late(run, record, event.update)
    turn.note("late_update", f"an update of round {record.round} counts in a later one", run)


def _arrived_ahead(turn: Turn, run: TaskRun, lease: Lease, event: ResultArrived) -> None:
    problem = _unusable(lease, event)
    if problem or event.update is None or lease.record.client_id != event.client_id:
        drop_ahead(turn, run, lease, problem or "it came from another client")
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
    _settle_uncounted(turn, event, "it came late or twice; nothing is lost")
    _drop_update(turn, event)


def _drop_update(turn: Turn, event: ResultArrived) -> None:
    if event.update is not None:
        turn.do(DropUpdate(event.update))


def _settle_uncounted(turn: Turn, event: ResultArrived | AssignmentFailed, why: str) -> None:
    """Let the client forget it; what is in an open step already is settled when the round commits."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is not None and not turn.farm.is_delivered(event.assignment_id):
        turn.send(client, Ack(assignment_id=event.assignment_id, fence=event.fence, counted=False, message=why))


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
    step.delivered.append(record)
    if event.update is not None:
        step.updates[record.assignment_id] = event.update
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
        client.speeds.setdefault(run.task_id, MovingAverage()).add(record.samples / event.compute_seconds)
    _charge(turn, run, event.compute_seconds)
    return record


def _charge(turn: Turn, run: TaskRun, seconds: float) -> None:
    submitter = run.record.spec.submitter
    used = turn.farm.usage.setdefault(submitter, DecayingSum(turn.settings.usage_half_life_seconds))
    used.add(seconds, turn.now)


def aggregation_failed(turn: Turn, event: AggregationFailed) -> None:
    """The server could not load, fold or commit: the round is given up and the task retried after a backoff."""
    run = turn.farm.tasks.get(event.task_id)
    if run is not None and run.step is not None and run.step.attempt == event.attempt:
        fail(turn, run, event.message, retryable=True)


def broken(turn: Turn, event: TaskBroken) -> None:
    """A defect of the server: the attempt is given up and the task retried, as for any failure of the server."""
    run = turn.farm.tasks.get(event.task_id)
    if run is not None and run.step is not None and run.record.state is not TaskState.PAUSED:
        fail(turn, run, event.message, retryable=True)
