"""A map: its items are cut into parts for whoever is free, and each part's outputs are kept as they arrive.

In the books a map is one epoch over its data, read in order: ``cursor`` and ``leftover`` of its record say which items
have no output yet, as they do for a task that is trained. They are saved with each output, in one transaction, so that
a restart goes on with exactly what is missing. There are no rounds, no versions and no checkpoints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isfinite

from coordinator.credit import credited, entry_of
from coordinator.in_flight import Home, Lease, Part, StepParts
from coordinator.map_policy import Measure, items_for
from coordinator.narrowing import in_whole_batches
from coordinator.offers import clear_up, offer
from coordinator.records import AssignmentRecord, OutputRecord, SampleRange
from coordinator.state import ClientState, Step, TaskRun
from coordinator.turn import Turn
from coordinator.witnesses import judges
from protocol.assignments import Kind
from protocol.maps import FAILED_ITEMS, MapPlan
from protocol.tasks import Dataset, Split


def open_map(turn: Turn, run: TaskRun, clients: Sequence[ClientState]) -> None:
    """Open what is left of a map, and give these clients their first parts."""
    run.attempt += 1
    step = _open(turn, run, _missing(run))
    run.update(served_at=turn.now)
    offer_items(turn, run, step, clients)


def reopen_map(turn: Turn, run: TaskRun, held: Sequence[AssignmentRecord]) -> None:
    """Open a map after a restart; what clients held is kept for them for a while, and counts if they bring it."""
    run.attempt = max(record.attempt for record in held)
    places = {record.position: record for record in held}
    parts: list[Part] = []
    dataset, until = run.record.spec.dataset, turn.now + turn.settings.return_seconds
    for part in _missing(run):
        inside = [place for place in places if part.position <= place < part.position + part.samples]
        ends = [place + places[place].samples for place in inside]
        edges = sorted({part.position, part.position + part.samples, *inside, *ends})
        for start, stop in pairwise(edges):
            if start in places:
                parts.append(replace(part_between(dataset, start, stop), reserved_until=until))
            else:
                pieces = in_whole_batches(start, stop, _plan(run).batch_items, dataset.samples(Split.TRAIN))
                parts += [part_between(dataset, *piece) for piece in pieces]
    step = _open(turn, run, parts)
    for record in held:
        turn.farm.leases.restore(Lease(record, step.parts.home))
    turn.note("map_reopened", f"the map waits for {len(held)} parts that clients held", run)


def _open(turn: Turn, run: TaskRun, parts: Iterable[Part]) -> Step:
    step = run.step = Step(
        kind=Kind.MAP,
        number=run.record.version,
        attempt=run.attempt,
        epoch=run.record.epoch,
        opened_at=turn.now,
        parts=run.leases.open(Home(Kind.MAP, run.record.version), run.record.spec.dataset.samples(Split.TRAIN)),
        policy=run.policy(Kind.MAP),
        collect_since=turn.now,
    )
    for part in parts:
        turn.farm.leases.wait(step.parts, part)
    return step


def offer_items(turn: Turn, run: TaskRun, step: Step, clients: Sequence[ClientState]) -> None:
    """Give each client a part to its measure, of the first one that waits: so outputs come nearly in order."""
    for client in clients:
        if (part := next(_offerable(turn, run, step.parts, client), None)) is not None:
            _offer(turn, run, step, client, part)


def _offerable(turn: Turn, run: TaskRun, parts: StepParts, client: ClientState) -> Iterator[Part]:
    for part in parts.waiting:
        if is_for_others(turn, run, part, client):
            continue
        slow = {(r.client_id, r.incarnation) for r in parts.dormant_records(part.position)}
        if part.reserved_until <= turn.now and (client.client_id, client.incarnation) not in slow:
            yield part


def is_for_others(turn: Turn, run: TaskRun, part: Part, client: ClientState) -> bool:
    """Whether a part ended this client's executor, and another client's has yet to tell whose fault that is."""
    deaths = run.suspects.deaths.get((part.position, part.position + part.samples), {})
    return client.client_id in deaths and bool(judges(turn, run) - deaths.keys())


def _offer(turn: Turn, run: TaskRun, step: Step, client: ClientState, part: Part) -> None:
    """Offer a part, or as much of its beginning as suits the client; the rest goes on waiting."""
    if part.position in step.parts.dormant_at:  # somebody may come back with just this
        offer(turn, run, client, part)
        return
    left = sum(one.samples for one in step.parts.waiting)
    items = min(items_for(_plan(run), _measure(run, client), left, len(step.parts.held) + 1), part.samples)
    dataset, end = run.record.spec.dataset, part.position + part.samples
    offer(turn, run, client, part_between(dataset, part.position, part.position + items))
    if items < part.samples:
        turn.farm.leases.wait(step.parts, part_between(dataset, part.position + items, end))


def _measure(run: TaskRun, client: ClientState) -> Measure:
    speed = client.speeds.get(run.task_id)
    return Measure(
        items_per_second=(speed.value or 0.0) if speed is not None else 0.0,
        item_bytes=run.output_bytes.value or 0.0,
        round_trip=client.link.round_trip_seconds,
    )


def _plan(run: TaskRun) -> MapPlan:
    return run.record.spec.map or MapPlan()


def keep_outputs(turn: Turn, run: TaskRun, step: Step) -> None:
    """What arrived of the map counts; its outputs, and what is left of the map, are saved together."""
    delivered = step.parts.delivered_records
    for record in credited(run.flops, delivered):
        turn.save(replace(record, counted=True, counted_in=step.number))
        turn.credit(entry_of(record))
        if record.update is not None:
            ref = record.update
            turn.save(OutputRecord(run.task_id, record.position, record.samples, ref.digest, ref.size_bytes))
            run.output_bytes.add(ref.size_bytes / record.samples)
        run.evidence.parts.discard(record.position)
        run.suspects.clear(record.position, record.position + record.samples)
    if not run.evidence.parts:
        clear_up(turn, run, step)
    turn.farm.leases.finish(step.parts)
    samples = sum(record.samples for record in delivered)
    run.speed.add(samples / max(turn.now - step.collect_since, 1e-3))
    step.collect_since = turn.now
    count_items(turn, run, step, samples, sum(map(_failed_items, delivered)))


def _failed_items(record: AssignmentRecord) -> int:
    """Return for how many of a part's items the function raised, as its client says."""
    told = record.metrics.get(FAILED_ITEMS, 0.0)
    return int(min(max(told, 0.0), record.samples)) if isfinite(told) else 0


def count_items(turn: Turn, run: TaskRun, step: Step, samples: int, failed: int) -> None:
    """Save that so many items more are done, ``failed`` of them without a proper output, and which ones are not."""
    cursor, leftover = _left(run, step.parts)
    done = {"samples_done": run.record.samples_done + samples, "items_failed": run.record.items_failed + failed}
    turn.save(run.update(cursor=cursor, leftover=leftover, **done))
    if step.parts.are_all_here:
        run.leases.close(step.parts)
        run.step = None


def _left(run: TaskRun, parts: StepParts) -> tuple[int, tuple[SampleRange, ...]]:
    """Return what has no output yet: all items from the first number on, and the ranges before it."""
    missing = [(part.position, part.samples) for part in parts.waiting]
    missing += [(lease.record.position, lease.record.samples) for lease in parts.held.values()]
    dataset = run.record.spec.dataset
    cursor, leftover = dataset.samples(Split.TRAIN), []
    for position, samples in sorted(missing, reverse=True):
        if position + samples == cursor:
            cursor = position
        else:
            leftover.append((position, position + samples))
    return cursor, tuple(one for start, stop in reversed(leftover) for one in ranges_between(dataset, start, stop))


def _missing(run: TaskRun) -> list[Part]:
    """Return what has no output yet, as parts in the order of the data."""
    record, dataset = run.record, run.record.spec.dataset
    stretches: list[tuple[int, int]] = []
    for one in record.leftover:
        start = dataset.starts[one.shard] + one.start
        if stretches and stretches[-1][1] == start:  # a part goes on in the next shard
            start = stretches.pop()[0]
        stretches.append((start, dataset.starts[one.shard] + one.stop))
    if record.cursor < (end := dataset.samples(Split.TRAIN)):
        stretches.append((record.cursor, end))
    batch, end = _plan(run).batch_items, dataset.samples(Split.TRAIN)
    whole = (
        piece for start, stop in run.suspects.apart(stretches) for piece in in_whole_batches(start, stop, batch, end)
    )
    return [part_between(dataset, *piece) for piece in whole]


def part_between(dataset: Dataset, start: int, stop: int) -> Part:
    """Return the part of the items ``start`` to ``stop`` of a data set."""
    return Part(start, tuple(ranges_between(dataset, start, stop)), stop - start)


def ranges_between(dataset: Dataset, start: int, stop: int) -> Iterator[SampleRange]:
    """Return where the items ``start`` to ``stop`` of a data set are."""
    index = bisect_right(dataset.starts, start) - 1
    while start < stop:
        shard = dataset.shards[index]
        first = dataset.starts[index]
        end = min(first + shard.samples, stop)
        yield SampleRange(shard.index, start - first, end - first)
        start, index = end, index + 1
