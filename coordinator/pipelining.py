"""Pipelining: parts of the next round, given out while this one is collected (``policies.Pipelining``).

The samples are the ones that the next round would have handed out; when that round opens, such a part is one of its
own. Until then it is like a late update's: nobody else gets its samples, and in the ledger they are owed, so that a
restart loses none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from coordinator.deltas import cheapest_chain, holds_present
from coordinator.in_flight import Part
from coordinator.late_updates import drop_all
from coordinator.lifecycle import TaskState
from coordinator.offers import offer
from coordinator.planning import count_samples, without_stray
from coordinator.state import ClientState, Step, StepPhase, TaskRun
from coordinator.turn import Turn
from protocol.assignments import Prefetch
from protocol.task_length import samples_of_epochs, smallest_part


def wants_ahead(run: TaskRun) -> bool:
    """Whether clients that are done with their part of the open step may begin with the round to come."""
    step = run.step
    if step is None or step.phase is not StepPhase.COLLECT:
        return False
    return step.policy.wants_ahead(step.number, step.parts, run.ahead)


def offer_ahead(turn: Turn, run: TaskRun, idle: Iterable[ClientState]) -> None:
    """Give each client that has a part of the open round, and a free slot, one part of the next round."""
    busy = {record.client_id for record in run.ahead.records}
    for client in idle:
        step = run.step
        if step is None or not wants_ahead(run):
            return
        part = _next_part(turn, run, step, client)
        if part is not None and client.client_id not in busy:
            step.next_cursor += part.samples
            offer(turn, run, client, part, run.next_round)


def _next_part(turn: Turn, run: TaskRun, step: Step, client: ClientState) -> Part | None:
    """A part as large as the client's in this round; None if it has none, or the epoch has no samples left."""
    recipe, given_out = run.record.spec.recipe, run.ahead.given_out_samples
    mine = [r for r in step.parts.own_records() if r.client_id == client.client_id]
    wanted = min(sum(r.samples for r in mine), recipe.round_samples - given_out)
    left = sum(shard.samples for shard in run.order()) - step.next_cursor
    wanted = without_stray(wanted, left, smallest_part(recipe)) if wanted else 0
    ranges = run.take(step.next_cursor, wanted, turn.settings.stripe_shards) if wanted else ()
    if not ranges or _is_beyond_the_end(run, step):
        return None
    return Part(step.samples + given_out, ranges, count_samples(ranges))


def _is_beyond_the_end(run: TaskRun, step: Step) -> bool:
    """Whether the task will have all its epochs before these samples."""
    epochs = run.record.spec.recipe.epochs
    samples = sum(shard.samples for shard in run.order())
    return epochs is not None and step.epoch * samples + step.next_cursor >= samples_of_epochs(epochs, samples)


def announce(turn: Turn, run: TaskRun) -> None:
    """Send clients that compute ahead the new version to prefetch: it is there when they are done with the old one."""
    for client_id in sorted({record.client_id for record in run.ahead.records}):
        client = turn.farm.clients.get(client_id)
        if client is None or holds_present(run, client):
            continue
        way = tuple(link.blob for link in cheapest_chain(run, client)) or (run.checkpoint.weights,)
        # what is smaller rides inside the next assignment
        if large := tuple(blob for blob in way if not blob.is_small):
            turn.send(client, Prefetch(blobs=large))


def take_up(turn: Turn, run: TaskRun, step: Step) -> None:
    """The round opens: what was done ahead of it are its first parts."""
    place = 0
    for lease in sorted((*step.parts.held.values(), *step.parts.delivered.values()), key=lambda x: x.record.position):
        record = replace(lease.record, attempt=step.attempt, position=place)
        place += record.samples
        turn.farm.leases.place(lease, record, step.policy.scale(step.number - record.round))
        turn.save(record)
    if place and run.record.state is TaskState.PENDING:
        turn.move(run, TaskState.ASSIGNED, "clients began this round ahead of its time")


def drop_all_ahead(turn: Turn, run: TaskRun, why: str) -> None:
    """Give up all that was begun ahead, results included."""
    drop_all(turn, run, run.ahead, why)
