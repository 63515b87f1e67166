"""Leases: offering parts of a step to clients, and what renews, ends or loses them."""

from __future__ import annotations

from bisect import insort
from dataclasses import replace

from coordinator.deltas import cheapest_chain, holds_present
from coordinator.eligibility import needed_ram_bytes
from coordinator.evidence import Evidence
from coordinator.lifecycle import AssignmentState, TaskState, move_assignment
from coordinator.prefetch import likely_next
from coordinator.records import AssignmentRecord
from coordinator.state import ClientState, Lease, Part, Step, TaskRun
from coordinator.stints import begin_stint
from coordinator.stragglers import take_in
from coordinator.turn import Turn
from protocol.messages import Assign, AssignmentProgress, Cancel, Phase, Slice, TaskBrief
from protocol.tasks import TaskSpec


def brief(task_id: str, spec: TaskSpec) -> TaskBrief:
    """Return what a client must know of a task."""
    return TaskBrief(
        task_id=task_id,
        name=spec.name,
        mode=spec.recipe.mode,
        code=spec.code,
        frozen=spec.frozen,
        entry=spec.entry,
        config=spec.config,
        seed=spec.recipe.seed,
        batch_samples=spec.recipe.batch_samples,
        dataset_kind=spec.dataset.kind,
        needed_ram_bytes=needed_ram_bytes(spec),
        keep_inner_optimizer=spec.recipe.keep_inner_optimizer,
        ignore=spec.recipe.ignore,
        tuple_columns=spec.recipe.tuple_columns,
        update_codec=spec.recipe.update_codec,
        weights_codec=spec.recipe.weights_codec,
        pipeline=spec.recipe.pipeline,
    )


def offer(turn: Turn, run: TaskRun, client: ClientState, part: Part, book: dict[str, Lease] | None = None) -> None:
    """Lease a part of the task's open step, or of the round to come (``book``), to a client that has a free slot."""
    step = _step(run)
    if run.record.state is TaskState.PENDING:
        turn.move(run, TaskState.ASSIGNED, f"offered to {client.record.name}")
        step.collect_since = turn.now
    record = AssignmentRecord(
        assignment_id=turn.new_id(),
        task_id=run.task_id,
        round=step.number,
        attempt=step.attempt,
        kind=step.kind,
        epoch=step.epoch,
        client_id=client.client_id,
        incarnation=client.incarnation,
        fence=turn.farm.next_fence(turn.now),
        state=AssignmentState.OFFERED,
        ranges=part.ranges,
        position=part.position,
        samples=part.samples,
        offered_at=turn.now,
        expires_at=turn.now + turn.settings.offer_seconds,
    )
    lease = _lease(turn, run, client, record)
    (step.leases if book is None else book)[record.assignment_id] = lease
    turn.farm.know(run, record.assignment_id)
    client.held.add(record.assignment_id)
    client.slots -= 1
    begin_stint(client, run, turn.settings, turn.now)
    run.join(client)
    turn.save(record)
    turn.send(client, _assign(turn, run, client, record), holds_weights=holds_present(run, client))


def _lease(turn: Turn, run: TaskRun, client: ClientState, record: AssignmentRecord) -> Lease:
    settings, average = turn.settings, client.speeds.get(run.task_id)
    if average is None or not average.value:
        return Lease(record, began_at=turn.now)
    patience = settings.deadline_grace_seconds + settings.deadline_factor * record.samples / average.value
    return Lease(record, began_at=turn.now, deadline=turn.now + patience, is_measured=True)


def _assign(turn: Turn, run: TaskRun, client: ClientState, record: AssignmentRecord) -> Assign:
    shards = run.record.spec.dataset.shards
    return Assign(
        assignment_id=record.assignment_id,
        fence=record.fence,
        kind=record.kind,
        task=run.brief,
        round=record.round,
        epoch=record.epoch,
        weights=run.checkpoint.weights,
        deltas=cheapest_chain(run, client),
        slices=tuple(Slice(shard=shards[r.shard], start=r.start, stop=r.stop) for r in record.ranges),
        lease_seconds=turn.settings.stall_seconds,
        prefetch=likely_next(run, client, record, turn.settings.stripe_shards),
    )


def accept(turn: Turn, run: TaskRun, lease: Lease) -> None:
    """The client takes the offer; the first acceptance sets the task running."""
    if lease.record.state is AssignmentState.OFFERED:
        turn.move_lease(lease, AssignmentState.ACCEPTED, expires_at=turn.now + turn.settings.stall_seconds)
    if run.record.state is TaskState.ASSIGNED:
        started = run.record.started_at or turn.now
        turn.move(run, TaskState.RUNNING, "a client started to work", started_at=started)


def renew(turn: Turn, run: TaskRun, lease: Lease, progress: AssignmentProgress) -> None:
    """Renew a lease, if the client got any further since its last report."""
    accept(turn, run, lease)
    if not take_in(lease, progress, turn.now, turn.settings):
        return
    lease.record = replace(lease.record, expires_at=turn.now + turn.settings.stall_seconds)
    if progress.phase is Phase.COMPUTING and lease.record.state is AssignmentState.ACCEPTED:
        turn.move_lease(lease, AssignmentState.RUNNING)


def release(turn: Turn, run: TaskRun, lease: Lease) -> ClientState:
    """Take a lease off the books of its step and its client; returns the client."""
    record = lease.record
    _step(run).leases.pop(record.assignment_id)
    client = turn.farm.clients[record.client_id]
    client.held.discard(record.assignment_id)
    client.freed_at = turn.now
    return client


def suspend(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    """The client is gone, or far too slow: somebody else may start as well, and whoever delivers first is counted."""
    step = _step(run)
    client = release(turn, run, lease)
    step.dormant[lease.record.assignment_id] = replace(lease.record, error=why)
    client.dormant.add(run.task_id)
    insort(step.waiting, _part(lease.record), key=_position)
    turn.note("assignment_suspended", f"{client.record.name}: {why}", run, client)


def adopt(turn: Turn, run: TaskRun, record: AssignmentRecord, client: ClientState) -> Lease:
    """Lease a dormant assignment to its client again; a replacement that works on the same part is stopped."""
    step = _step(run)
    del step.dormant[record.assignment_id]
    for other in [x for x in step.leases.values() if x.record.position == record.position]:
        cancel(turn, run, other, "the client that began it came back first")
    step.waiting = [part for part in step.waiting if part.position != record.position]
    if run.record.state is TaskState.PENDING:
        turn.move(run, TaskState.ASSIGNED, f"{client.record.name} came back")
        step.collect_since = turn.now
    expires_at = turn.now + turn.settings.stall_seconds
    record = replace(record, incarnation=client.incarnation, expires_at=expires_at, error=None)
    lease = _lease(turn, run, client, record)
    step.leases[record.assignment_id] = lease
    client.held.add(record.assignment_id)
    run.join(client)
    return lease


def bury(turn: Turn, step: Step, position: int | None = None) -> None:
    """Expire dormant assignments that can't count any more: those of a part, for it is delivered, or all.

    Who is still there and was outrun on a part gets nothing more of the task for a while.
    """
    for record in list(step.dormant.values()):
        if position is None or record.position == position:
            del step.dormant[record.assignment_id]
            state = move_assignment(record.assignment_id, record.state, AssignmentState.EXPIRED)
            turn.save(replace(record, state=state))
            client = turn.farm.clients[record.client_id]
            if not client.online or client.incarnation != record.incarnation:
                continue
            why = "somebody else was faster" if position is not None else "its round is over"
            turn.send(client, Cancel(assignment_id=record.assignment_id, fence=record.fence, reason=why))
            if position is not None:
                client.back_off(record.task_id, "it was outrun on its part", turn.settings.outrun_retry, turn.now)


def forget(turn: Turn, run: TaskRun, record: AssignmentRecord) -> None:
    """The client came back without this assignment: nobody need wait for it."""
    step = _step(run)
    del step.dormant[record.assignment_id]
    turn.save(replace(record, state=move_assignment(record.assignment_id, record.state, AssignmentState.EXPIRED)))
    step.waiting = [replace(p, reserved_until=0.0) if p.position == record.position else p for p in step.waiting]


def lose(turn: Turn, run: TaskRun, lease: Lease, to: AssignmentState, why: str) -> ClientState:
    """End a lease without a result: its samples go back to the step, for somebody else."""
    step = _step(run)
    record = turn.move_lease(lease, to, error=why)
    turn.save(record)
    client = release(turn, run, lease)
    insort(step.waiting, _part(record), key=_position)
    turn.note(f"assignment_{to}", f"{client.record.name}: {why}", run, client)
    return client


def cancel(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    """End a lease from the server's side and tell the client to stop."""
    client = lose(turn, run, lease, AssignmentState.EXPIRED, why)
    if client.incarnation == lease.record.incarnation:
        turn.send(client, Cancel(assignment_id=lease.record.assignment_id, fence=lease.record.fence, reason=why))


def trip(turn: Turn, run: TaskRun, client: ClientState) -> None:
    """Count a fault of the machine, met on this task, in its circuit breaker."""
    settings = turn.settings
    if client.breaker.failed(run.task_id, turn.now, settings.breaker_failures, settings.breaker_retry):
        verdict = client.breaker.allows(turn.now, 0)
        turn.note("breaker_opened", f"{client.record.name}: {verdict.reason}", client=client)


def clear_up(turn: Turn, run: TaskRun, step: Step) -> None:
    """A round is committed: the code works, and who said that it works nowhere has a fault of its own."""
    delivered = {record.client_id for record in step.delivered}
    for client_id in sorted((run.evidence.speakers - delivered) & turn.farm.clients.keys()):
        trip(turn, run, turn.farm.clients[client_id])
    run.evidence = Evidence()


def overdue(turn: Turn, lease: Lease) -> str | None:
    """Return why a lease is over, or None."""
    record = lease.record
    if turn.now <= record.expires_at:
        return None
    if record.state is AssignmentState.OFFERED:
        return f"did not answer the offer within {turn.settings.offer_seconds:.0f} s"
    return f"made no progress for {turn.settings.stall_seconds:.0f} s"


def _part(record: AssignmentRecord) -> Part:
    return Part(record.position, record.ranges, record.samples)


def _position(part: Part) -> int:
    return part.position


def _step(run: TaskRun) -> Step:
    if run.step is None:
        raise RuntimeError(f"task {run.task_id} has no open step")
    return run.step
