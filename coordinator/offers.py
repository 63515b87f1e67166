"""Leases: offering parts of a step to clients, and what renews, ends or loses them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Protocol

from coordinator.commands import DropUpdate
from coordinator.deltas import cheapest_chain, holds_present
from coordinator.eligibility import needed_ram_bytes
from coordinator.evidence import Evidence
from coordinator.failed_steps import wanted_step_bytes
from coordinator.in_flight import Home, Lease, Part, Stage
from coordinator.leases import Named
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.policies import policy_of
from coordinator.prefetch import likely_next, likely_round
from coordinator.records import AssignmentRecord, SampleRange
from coordinator.secure_sum import agrees_on_keys
from coordinator.state import ClientState, Step, StepPhase, TaskRun
from coordinator.stints import begin_stint
from coordinator.stragglers import take_in
from coordinator.turn import Turn
from protocol.assignments import Ack, Assign, AssignmentProgress, Cancel, Kind, Phase, Slice
from protocol.frozen import unchecked
from protocol.recipe import InnerState, Mode
from protocol.secure_aggregation import written_codec
from protocol.task_length import task_length
from protocol.tasks import Split, TaskBrief, TaskSpec

_own_assign: Final = unchecked(Assign)
_own_slice: Final = unchecked(Slice)


class Answer(Named, Protocol):
    """A client's message that ends an assignment."""

    @property
    def incarnation(self) -> int:
        """The number of its connection."""


def brief(task_id: str, spec: TaskSpec) -> TaskBrief:
    """Return what a client must know of a task."""
    length = task_length(spec.recipe, spec.recipe.mode, spec.dataset.samples(Split.TRAIN))
    followed_by_clients = spec.recipe.schedule is not None and spec.recipe.mode is Mode.WEIGHTS
    return TaskBrief(
        task_id=task_id,
        name=spec.name,
        submitter=spec.submitter,
        topics=spec.topics,
        mode=spec.recipe.mode,
        code=spec.code,
        frozen=spec.frozen,
        base=spec.base,
        environment=spec.environment,
        entry=spec.entry,
        config=spec.config,
        seed=spec.recipe.seed,
        batch_samples=spec.recipe.batch_samples,
        dataset_kind=spec.dataset.kind,
        needed_ram_bytes=needed_ram_bytes(spec),
        modules=spec.requirements.modules,
        inner_state=spec.recipe.inner_state,
        keep_inner_optimizer=spec.recipe.inner_state is InnerState.KEPT,
        ignore=spec.recipe.ignore,
        tuple_columns=spec.recipe.tuple_columns,
        clip_norm=spec.recipe.clip_norm,
        clip_value=spec.recipe.clip_value,
        proximal_mu=spec.recipe.proximal_mu,
        fragments=spec.recipe.fragments,
        fragment_pattern=spec.recipe.fragment_pattern,
        fragment_mix=spec.recipe.fragment_mix,
        fragment_overlap_steps=spec.recipe.fragment_overlap_steps,
        scaffold_clients=spec.recipe.scaffold_clients,
        schedule=spec.recipe.schedule,
        schedule_steps=length.steps if followed_by_clients else 0,
        length=length,
        precision=spec.recipe.precision,
        compile=spec.recipe.compile,
        snapshot_seconds=spec.recipe.snapshot_seconds,
        update_codec=written_codec(spec.recipe),
        weights_codec=spec.recipe.weights_codec,
        pipeline=policy_of(spec.recipe, Kind.TRAIN if spec.map is None else Kind.MAP).works_ahead,
        map=spec.map,
    )


def offer(turn: Turn, run: TaskRun, client: ClientState, part: Part, home: Home | None = None) -> None:
    """Lease a part of the task's open step, or of the round to come (``home``), to a client that has a free slot."""
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
    turn.farm.leases.grant(_timed(turn, run, client, Lease(record, home or step.parts.home)))
    begin_stint(client, run, turn.settings, turn.now)
    run.join(client)
    turn.save(record)
    turn.send(client, _assign(turn, run, client, record, home), holds_weights=holds_present(run, client))


def _timed(turn: Turn, run: TaskRun, client: ClientState, lease: Lease) -> Lease:
    """Let a lease begin now, with an end that follows from the client's measured speed."""
    settings, average = turn.settings, client.speeds.get(run.task_id)
    lease.began_at = turn.now
    if not run.policy(lease.record.kind).counts_samples:
        lease.deadline, lease.is_measured = turn.now + run.record.spec.recipe.longest_round_seconds, True
    elif average is not None and average.value:
        seconds = settings.deadline_factor * lease.record.samples / average.value
        lease.deadline, lease.is_measured = turn.now + settings.deadline_grace_seconds + seconds, True
    return lease


def _assign(turn: Turn, run: TaskRun, client: ClientState, record: AssignmentRecord, home: Home | None) -> Assign:
    """Return the message of an offer. Before a part of the round to come (``home``) lies the open round, too."""
    step = _step(run)
    before, in_round = run.record.samples_done, step.samples
    if home is not None or step.policy.hands_out:
        before, in_round = before + (home is not None) * step.samples, run.record.spec.recipe.round_samples
    upcoming = likely_round(run, record, turn.settings.stripe_shards) if home is None else ()
    return _own_assign(
        assignment_id=record.assignment_id,
        fence=record.fence,
        kind=record.kind,
        task=run.brief,
        round=record.round,
        epoch=record.epoch,
        weights=run.checkpoint.weights,
        deltas=cheapest_chain(run, client),
        inner_state=run.checkpoint.inner_state if record.kind is Kind.TRAIN else None,
        slices=_slices(run, record.ranges),
        position=record.position,
        data_part=_data_part(run, record) if run.record.spec.recipe.scaffold_clients else None,
        lease_seconds=turn.settings.stall_seconds,
        # where parts are handed out, the next one begins wherever the others will have got to by then
        prefetch=() if step.policy.hands_out else likely_next(run, client, record, turn.settings.stripe_shards),
        upcoming=_slices(run, upcoming) if upcoming else (),
        samples_before=before,
        round_samples=in_round,
        failed_step_bytes=wanted_step_bytes(run) if record.kind is Kind.TRAIN and step.secure is None else 0,
        secure=None if step.secure is None else step.secure.terms,
    )


def _data_part(run: TaskRun, record: AssignmentRecord) -> int | None:
    """Return the virtual client of a part, where its control variate, of a task that keeps them, belongs to that."""
    dataset = run.record.spec.dataset
    return dataset.part_of_shard[record.ranges[0].shard] if record.kind is Kind.TRAIN and dataset.parts else None


def _slices(run: TaskRun, ranges: Iterable[SampleRange]) -> tuple[Slice, ...]:
    shards = run.record.spec.dataset.shards
    return tuple([_own_slice(shard=shards[r.shard], start=r.start, stop=r.stop) for r in ranges])


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
    works_unseen = not run.policy(lease.record.kind).counts_samples and turn.now <= lease.deadline
    if not (take_in(lease, progress, turn.now, turn.settings) or works_unseen):
        return
    lease.record = replace(lease.record, expires_at=turn.now + turn.settings.stall_seconds)
    if progress.phase is Phase.COMPUTING and lease.record.state is AssignmentState.ACCEPTED:
        turn.move_lease(lease, AssignmentState.RUNNING)


def suspend(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    """The client is gone, or far too slow: somebody else may start as well, and whoever delivers first is counted.

    Nobody waits for what is not a part of the open step, or while its clients agree on keys: that is given up.
    """
    if run.step is None or lease.home != run.step.parts.home or agrees_on_keys(run.step.secure):
        give_up(turn, run, lease, AssignmentState.EXPIRED, why)
        return
    lease.record = replace(lease.record, error=why)
    turn.farm.leases.suspend(lease, turn.now)
    client = turn.farm.clients[lease.record.client_id]
    turn.note("assignment_suspended", f"{client.record.name}: {why}", run, client)


def adopt(turn: Turn, run: TaskRun, dormant: Lease, client: ClientState) -> Lease:
    """Lease a dormant assignment to its client again; a replacement that works on the same part is stopped."""
    step = _step(run)
    position = dormant.record.position
    if not step.parts.is_waiting(position):
        for other in [x for x in step.parts.held.values() if x.record.position == position]:
            cancel(turn, run, other, "the client that began it came back first")
    if run.record.state is TaskState.PENDING:
        turn.move(run, TaskState.ASSIGNED, f"{client.record.name} came back")
        step.collect_since = turn.now
    expires_at = turn.now + turn.settings.stall_seconds
    record = replace(dormant.record, incarnation=client.incarnation, expires_at=expires_at, error=None)
    lease = Lease(record, dormant.home, scale=dormant.scale, saved=dormant.saved)
    turn.farm.leases.adopt(_timed(turn, run, client, lease))
    run.join(client)
    return lease


def bury(turn: Turn, step: Step, position: int | None = None) -> None:
    """Expire dormant assignments that can't count any more: those of a part, for it is delivered, or all.

    Who is still there and was outrun on a part gets nothing more of the task for a while.
    """
    why = "somebody else was faster" if position is not None else "its round is over"
    dormant = step.parts.dormant if position is None else step.parts.dormant_at.get(position, {})
    for lease in list(dormant.values()):
        record = lease.record
        client = dismiss(turn, lease, why)
        if client is not None and position is not None:
            client.back_off(record.task_id, "it was outrun on its part", turn.settings.outrun_retry, turn.now)


def dismiss(turn: Turn, lease: Lease, why: str) -> ClientState | None:
    """Nothing comes of a dormant assignment; returns its client, told to stop, if that is still there."""
    record = lease.record
    forget(turn, lease)
    client = turn.farm.clients[record.client_id]
    if not client.online or client.incarnation != record.incarnation:
        return None
    turn.send(client, Cancel(assignment_id=record.assignment_id, fence=record.fence, reason=why))
    return client


def forget(turn: Turn, lease: Lease) -> None:
    """Nothing comes of a dormant assignment: nobody need wait for its client."""
    turn.save(turn.move_lease(lease, AssignmentState.EXPIRED))
    turn.farm.leases.end(lease, turn.now)


def give_up(turn: Turn, run: TaskRun, lease: Lease, to: AssignmentState, why: str) -> ClientState:
    """End an assignment without a result, so that others get its samples; returns its client.

    A client that did not say so itself (``to`` is expired) is told to stop.
    """
    client = turn.farm.clients[lease.record.client_id]
    if lease.stage is Stage.DORMANT:
        forget(turn, lease)
        return client
    record = turn.move_lease(lease, to, error=why)
    turn.save(record)
    turn.farm.leases.end(lease, turn.now)
    _owe(run, lease)
    turn.note(f"assignment_{to}", f"{client.record.name}{_when(run, lease)}: {why}", run, client)
    if client.incarnation == record.incarnation and to is AssignmentState.EXPIRED:
        turn.send(client, Cancel(assignment_id=record.assignment_id, fence=record.fence, reason=why))
    return client


def cancel(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    """End an assignment from the server's side and send the client a cancel."""
    give_up(turn, run, lease, AssignmentState.EXPIRED, why)


def discard(turn: Turn, run: TaskRun, lease: Lease, why: str) -> None:
    """A result that is here counts for nothing."""
    record = lease.record
    turn.save(record)
    turn.farm.leases.end(lease, turn.now)
    _owe(run, lease)
    if lease.update is not None:
        turn.do(DropUpdate(lease.update))
    drop = Ack(assignment_id=record.assignment_id, fence=record.fence, counted=False, message=why)
    turn.send_to(record.client_id, drop)


def _owe(run: TaskRun, lease: Lease) -> None:
    """The open round hands on what was begun ahead of the next one; after its commit the ledger has that as owed.

    Where parts are handed out for as long as it is open, what was late is handed out again.
    """
    step, ranges = run.step, lease.record.ranges
    if step is None or step.phase is not StepPhase.COLLECT:
        return
    if lease.is_late and step.policy.hands_out:
        step.late_at_open = tuple(r for r in step.late_at_open if r not in ranges)
        step.carried = (*step.carried, *ranges)
    elif lease.home == run.next_round:
        step.carried = (*step.carried, *ranges)


def _when(run: TaskRun, lease: Lease) -> str:
    if lease.is_late:
        return ", after its round"
    return ", ahead of its round" if lease.home == run.next_round else ""


def settle_uncounted(turn: Turn, said: Answer, why: str) -> None:
    """Let the client forget it; an update that is here already is settled when its round commits."""
    client = turn.farm.current(said.client_id, said.incarnation)
    lease = turn.farm.leases.get(said.assignment_id)
    if client is None or (lease is not None and _waits_for_a_commit(turn, lease)):
        return
    turn.send(client, Ack(assignment_id=said.assignment_id, fence=said.fence, counted=False, message=why))


def _waits_for_a_commit(turn: Turn, lease: Lease) -> bool:
    is_here = lease.stage in (Stage.DELIVERED, Stage.COMMITTED)
    return is_here and turn.farm.tasks[lease.record.task_id].policy(lease.record.kind).brings_updates


def trip(turn: Turn, run: TaskRun, client: ClientState) -> None:
    """Count a fault of the machine, met on this task, in its circuit breaker."""
    settings = turn.settings
    if client.breaker.failed(run.task_id, turn.now, settings.breaker_failures, settings.breaker_retry):
        verdict = client.breaker.allows(turn.now, 0)
        turn.note("breaker_opened", f"{client.record.name}: {verdict.reason}", client=client)


def clear_up(turn: Turn, run: TaskRun, step: Step) -> None:
    """A round is committed: the code works, and a client that reported the contrary has a fault of its own."""
    delivered = {record.client_id for record in step.parts.delivered_records}
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


def _step(run: TaskRun) -> Step:
    if run.step is None:
        raise RuntimeError(f"task {run.task_id} has no open step")
    return run.step
