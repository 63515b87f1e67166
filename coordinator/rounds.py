"""A round: its samples are parted among clients, the updates come back, one aggregate is committed.

The updates are folded in the order of their place in the round, never in the order of their arrival: an update that
comes before its turn waits. So the aggregate is the same to the bit, whoever was faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import isfinite

from coordinator.commands import CommitRound, DropRound, Fold, OpenRound
from coordinator.credit import credited, entry_of
from coordinator.data_parts import sizes_of_parts
from coordinator.deltas import keep_delta
from coordinator.durability import become_volatile
from coordinator.early_stopping import out_of_time
from coordinator.events import RoundAggregated
from coordinator.handing_out import follows_now, hand_out
from coordinator.in_flight import Part
from coordinator.late_updates import drop_all_late, drop_stale, join_round, outstanding
from coordinator.offers import bury, cancel, clear_up, discard, offer
from coordinator.pipelining import announce, drop_all_ahead, take_up
from coordinator.planning import by_affinity, count_samples, cut, samples_at_hand, share_quantum, shares
from coordinator.prefetch import held_shards
from coordinator.privacy import budget_spent
from coordinator.records import AssignmentRecord, RoundRecord, RoundState, SampleRange
from coordinator.round_plan import plan_round
from coordinator.scoring import expected_speeds
from coordinator.secure_sum import secure_round
from coordinator.secure_telling import ask_survivors
from coordinator.state import ClientState, Step, StepPhase, TaskRun
from coordinator.stopping import evaluation_is_due
from coordinator.turn import Turn
from protocol.assignments import Kind
from protocol.recipe import PartSizes, Recipe
from protocol.secure_aggregation import LEAST_CLIENTS, is_secure
from protocol.tasks import Split
from protocol.wording import counted


def open_round(turn: Turn, run: TaskRun, clients: Sequence[ClientState]) -> None:
    """Open the next round with these clients: one part each, in proportion to their speed."""
    task = run.record
    drop_stale(turn, run)
    plan = plan_round(run, turn.settings.stripe_shards)
    hands_out = run.policy(Kind.TRAIN).hands_out
    if not (hands_out or plan.samples or run.ahead.is_given_out):  # what is left is late: somebody else does it
        drop_all_late(turn, run, "the epoch ends")
        plan = plan_round(run, turn.settings.stripe_shards)
    samples = plan.samples
    run.attempt += 1
    first = run.ahead.given_out_samples
    record = RoundRecord(
        task_id=run.task_id,
        number=task.version,
        state=RoundState.OPEN,
        attempt=run.attempt,
        epoch=task.epoch,
        cursor=task.cursor,
        samples=first + samples,
        opened_at=turn.now,
    )
    run.step = Step(
        kind=Kind.TRAIN,
        number=task.version,
        attempt=run.attempt,
        epoch=task.epoch,
        opened_at=turn.now,
        parts=run.leases.open(run.next_round, record.samples),
        policy=run.policy(Kind.TRAIN),
        collect_since=turn.now,
        round=record,
        next_cursor=plan.next_cursor,
        carried=plan.carried,
    )
    take_up(turn, run, run.step)
    run.step.late_at_open = outstanding(run)
    turn.do(OpenRound(run.task_id, task.version, run.attempt, task.spec, run.checkpoint))
    if hands_out:
        hand_out(turn, run, run.step, clients)
    elif clients and samples:
        part_out(turn, run, clients, plan.ranges, first)
    elif samples:
        turn.farm.leases.wait(run.step.parts, Part(first, plan.ranges, samples))
    join_round(turn, run, run.step)
    run.step.round = replace(record, clients=len({r.client_id for r in run.step.parts.own_records()}))
    turn.save(run.step.round)
    run.update(served_at=turn.now)
    turn.save(run.record)
    fold_in_turn(turn, run, run.step)
    if (first or hands_out) and follows_now(turn, run, run.step) is not None:  # all of it was done ahead, or is late
        commit(turn, run, run.step)


def part_out(
    turn: Turn, run: TaskRun, clients: Sequence[ClientState], ranges: Sequence[SampleRange], position: int = 0
) -> None:
    """Offer consecutive parts of ``ranges`` to the clients, in proportion to their expected speed.

    ``position`` is the place of the first one. Who has the shards of a part already gets it, as far as that goes.
    """
    recipe, step = run.record.spec.recipe, run.step
    is_summed = is_secure(recipe) and step is not None and step.kind is Kind.TRAIN
    if recipe.parts is PartSizes.FIXED and not is_summed:
        _part_out_fixed(turn, run, clients, ranges, position)
        return
    by_id = {c.client_id: c for c in sorted(clients, key=lambda c: c.client_id)}
    speeds = dict(expected_speeds(run, list(by_id.values())))
    sizes = shares(count_samples(ranges), {client_id: speeds[client_id] for client_id in by_id}, share_quantum(recipe))
    if is_summed and step is not None:
        sizes = _with_part_each(recipe, sizes, list(by_id), count_samples(ranges))
        step.secure = secure_round(recipe, step.attempt, len(sizes), turn.now)
    order = by_affinity(ranges, sizes, {client_id: held_shards(run, by_id[client_id]) for client_id in sizes})
    for client_id, piece in zip(order, cut(ranges, [sizes[c] for c in order]), strict=True):
        offer(turn, run, by_id[client_id], Part(position, piece, sizes[client_id]))
        position += sizes[client_id]


def _with_part_each(recipe: Recipe, sizes: dict[str, int], clients: Sequence[str], samples: int) -> dict[str, int]:
    """Return the parts of a secure sum, one of each client.

    Equal ones where the recipe wants that, or where shares by speed, in whole batches, leave too many clients out.
    """
    if recipe.parts is PartSizes.SPEED and len(sizes) >= min(LEAST_CLIENTS, len(clients)):
        return sizes
    most = samples if recipe.parts is PartSizes.SPEED else min(samples, recipe.min_clients)
    return shares(samples, dict.fromkeys(clients[:most], 1.0))


def _part_out_fixed(
    turn: Turn, run: TaskRun, clients: Sequence[ClientState], ranges: Sequence[SampleRange], position: int
) -> None:
    """Offer the recipe's parts, one to each client; the others wait for their turn."""
    kind = Kind.TRAIN if run.step is None else run.step.kind
    _offer_or_wait(turn, run, clients, _in_parts(ranges, sizes_of_parts(ranges, run.record.spec, kind), position))


def part_out_equally(
    turn: Turn, run: TaskRun, clients: Sequence[ClientState], ranges: Sequence[SampleRange], parts: int
) -> None:
    """Offer so many equal parts, one to each of these clients; the others wait for those that come free."""
    sizes = shares(count_samples(ranges), {str(number): 1.0 for number in range(parts)})
    _offer_or_wait(turn, run, clients, _in_parts(ranges, list(sizes.values()), 0))


def _in_parts(ranges: Sequence[SampleRange], sizes: Sequence[int], position: int) -> list[Part]:
    places = accumulate(sizes, initial=position)
    return [Part(place, piece, size) for place, piece, size in zip(places, cut(ranges, sizes), sizes, strict=False)]


def _offer_or_wait(turn: Turn, run: TaskRun, clients: Sequence[ClientState], parts: Sequence[Part]) -> None:
    """Offer parts, one to each client, that has its shards if possible; the other parts wait for their turn."""
    left = sorted(clients, key=lambda c: c.client_id)
    for part in parts:
        if left:
            client = max(left, key=lambda c: samples_at_hand(part.ranges, held_shards(run, c)))
            left.remove(client)
            offer(turn, run, client, part)
        elif run.step is not None:
            turn.farm.leases.wait(run.step.parts, part)


def fold_in_turn(turn: Turn, run: TaskRun, step: Step, skip_gaps: bool = False) -> None:
    """Give the accumulator the updates whose turn has come; with ``skip_gaps`` all that arrived."""
    if skip_gaps:
        for position in sorted(step.parts.unfolded):
            _fold(turn, run, step, position)
    while step.folded_to in step.parts.unfolded:
        _fold(turn, run, step, step.folded_to)


def _fold(turn: Turn, run: TaskRun, step: Step, position: int) -> None:
    lease, update = turn.farm.leases.fold(step.parts, position)
    record, samples = lease.record, lease.record.samples
    names = (record.assignment_id, record.client_id)
    turn.do(Fold(run.task_id, step.number, step.attempt, *names, update, samples, lease.scale))
    step.folded_to = position + samples


def commit(turn: Turn, run: TaskRun, step: Step) -> None:
    """Close the collection: fold the rest and ask for the aggregate. What is missing is owed to the next round."""
    if step.policy.lets_finish:
        turn.farm.leases.let_finish(step.parts)
    for lease in list(step.parts.held.values()):
        cancel(turn, run, lease, "the round was committed at quorum without it")
    bury(turn, step)
    missing = [r for part in turn.farm.leases.clear_waiting(step.parts) for r in part.ranges]
    fold_in_turn(turn, run, step, skip_gaps=True)
    step.owed = _owed_after(run, step, missing)
    if step.secure is not None:
        _forgive_too_few(run, step)
        ask_survivors(turn, run, step, step.secure)
    else:
        make_version(turn, run, step)


def make_version(turn: Turn, run: TaskRun, step: Step) -> None:
    """Ask for the aggregate of what is folded; of a secure sum all is here that unmasks it."""
    step.phase = StepPhase.COMMIT
    unmasking = None if step.secure is None else step.secure.unmasking()
    turn.do(CommitRound(run.task_id, step.number, step.attempt, *_next_place(run, step), unmasking))


def _forgive_too_few(run: TaskRun, step: Step) -> None:
    """Owe no samples of which no round could be made: an epoch that has fewer than its clients left is over."""
    fresh = max(run.record.spec.dataset.samples(Split.TRAIN) - step.next_cursor, 0)
    if not fresh and count_samples(step.owed) < LEAST_CLIENTS:
        step.owed = ()


def _owed_after(run: TaskRun, step: Step, missing: Sequence[SampleRange]) -> tuple[SampleRange, ...]:
    """What the next round inherits: this round's missing parts, what it had no room for, and what is still late."""
    taken = {r for record in step.parts.delivered_records for r in record.ranges}
    known = {*missing, *step.carried}
    late = [r for r in (*step.late_at_open, *outstanding(run)) if r not in taken and r not in known]
    return (*missing, *step.carried, *dict.fromkeys(late))


def _next_place(run: TaskRun, step: Step) -> tuple[int, int]:
    end = run.record.spec.dataset.samples(Split.TRAIN)
    if step.next_cursor >= end and not step.owed:
        return step.epoch + 1, 0
    return step.epoch, step.next_cursor


def round_aggregated(turn: Turn, event: RoundAggregated) -> None:
    """The new version is made: commit the round, its assignments and the task's new version as one.

    The ledger gets all of that once the version is durable: see ``coordinator.durability``.
    """
    run = turn.farm.tasks.get(event.task_id)
    step = run.step if run else None
    if run is None or step is None or step.round is None:
        return
    if step.attempt != event.attempt or step.phase is not StepPhase.COMMIT:
        return  # an answer about a round that was abandoned since
    delivered = step.parts.delivered_records
    metrics = mean_metrics(delivered)
    samples = step.parts.delivered_samples
    summary = _summary(step, samples, max(turn.now - step.opened_at, 1e-6), metrics)
    seconds = max(turn.now - step.opened_at, 1e-6)
    run.speed.add(samples / seconds)
    before, of_before = run.record, run.checkpoint
    run.checkpoint = replace(event.checkpoint, leftover=step.owed)
    keep_delta(turn, run, event.delta)
    turn.save(
        replace(
            step.round,
            state=RoundState.COMMITTED,
            committed_at=turn.now,
            samples=samples,
            clients=max(step.round.clients, len({record.client_id for record in delivered})),
            loss=metrics.get("loss"),
            metrics=metrics,
        )
    )
    for assignment in credited(run.flops, delivered):
        turn.save(replace(assignment, counted=True, counted_in=step.number))
        turn.credit(entry_of(assignment))
    clear_up(turn, run, step)
    turn.farm.leases.commit(step.parts)
    run.leases.close(step.parts)
    run.step = None
    run.server_faults = 0
    task = run.update(
        version=step.number + 1,
        epoch=run.checkpoint.epoch,
        cursor=run.checkpoint.cursor,
        leftover=step.owed,
        samples_done=run.record.samples_done + samples,
        loss=metrics.get("loss", run.record.loss),
        stopped=run.record.stopped
        or out_of_time(run.record, turn.now)
        or budget_spent(run.record.spec.recipe, step.number + 1),
    )
    turn.save(task)
    turn.measure(run, step.number, "train", metrics)
    turn.note("round_committed", summary, run)
    run.evaluate_next = evaluation_is_due(task)
    become_volatile(turn, run, before, of_before, step.attempt)
    announce(turn, run)


def _summary(step: Step, samples: int, seconds: float, metrics: Mapping[str, float]) -> str:
    loss = f", loss {metrics['loss']:.4g}" if "loss" in metrics else ""
    done = f"{counted(samples, 'sample')} of {counted(len(step.parts.delivered), 'client')}"
    return f"{step.policy.title(step.number)}: {done} in {seconds:.2f} s{loss}"


def mean_metrics(delivered: Sequence[AssignmentRecord]) -> dict[str, float]:
    """Return the sample-weighted mean of each metric, over the assignments that report it."""
    names = {name for record in delivered for name in record.metrics}
    means = {}
    for name in sorted(names):
        having = [r for r in delivered if name in r.metrics]
        means[name] = _mean([r.metrics[name] for r in having], [r.samples for r in having])
    return means


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return the weighted mean of finite values, which is finite however large they are."""
    total = sum(weights)
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    if isfinite(mean):
        return mean
    mean = sum(value * (weight / total) for value, weight in zip(values, weights, strict=True))
    return min(max(mean, min(values)), max(values))  # shares may add up to a little over 1


def close_look(turn: Turn, run: TaskRun, step: Step) -> None:
    """A step that brings no updates is over; what was delivered of it was acknowledged then."""
    for record in step.parts.delivered_records:
        turn.save(record)
    turn.farm.leases.finish(step.parts)
    run.leases.close(step.parts)
    run.step = None


def abandon(turn: Turn, run: TaskRun, why: str) -> None:
    """Give the open step up: leases are cancelled and nothing of it counts. The task resumes from its last commit."""
    step = run.step
    if step is None:
        return
    for lease in list(step.parts.held.values()):
        cancel(turn, run, lease, why)
    if step.policy.brings_updates:
        drop_all_ahead(turn, run, why)
    bury(turn, step)
    if not step.policy.brings_updates:
        close_look(turn, run, step)
        run.evaluate_next |= step.kind is Kind.EVALUATE
        return
    for lease in list(step.parts.delivered.values()):
        discard(turn, run, lease, why)
    run.leases.close(step.parts)
    run.step = None
    if step.round is not None:
        turn.save(replace(step.round, state=RoundState.ABANDONED))
    turn.do(DropRound(run.task_id, step.number, step.attempt))
    turn.note("round_abandoned", f"round {step.number} was given up: {why}", run)
