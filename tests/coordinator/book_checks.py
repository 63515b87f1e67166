"""What always holds of the book of assignments, wherever it is looked at."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.in_flight import Lease, Stage, StepParts, TaskLeases
from coordinator.leases import Holder, LeaseBook
from coordinator.state import TaskRun


def faults_of_book(book: LeaseBook, tasks: Mapping[str, TaskLeases], clients: Mapping[str, Holder]) -> list[str]:
    """Return where the indexes disagree: what is in flight lies in one place, and is known by id and by client."""
    faults: list[str] = []
    seen: dict[str, Lease] = {}
    for task_id, leases in tasks.items():
        for parts in (leases.late, *leases.rounds.values()):
            faults += _faults_of_shelves(parts)
        for lease in leases:
            faults += [f"{lease.assignment_id} lies in two places"] if lease.assignment_id in seen else []
            faults += [f"{lease.assignment_id} lies with {task_id}"] if lease.record.task_id != task_id else []
            seen[lease.assignment_id] = lease
    faults += [f"{name} is known wrongly" for name in seen.keys() ^ book._by_id.keys()]
    faults += [f"{name} is known as another" for name, lease in seen.items() if book.get(name) is not lease]
    for client_id, client in clients.items():
        mine = [lease for lease in seen.values() if lease.record.client_id == client_id]
        for stage, held in ((Stage.HELD, client.held), (Stage.DORMANT, client.dormant)):
            if held.keys() != {lease.assignment_id for lease in mine if lease.stage is stage}:
                faults.append(f"{client_id} has {[*held]} as {stage.name}")
        faults += [f"{client_id} has {client.slots} slots"] if client.slots < 0 else []
    return faults


def _faults_of_shelves(parts: StepParts) -> list[str]:
    faults = [
        f"{name} lies on a wrong shelf"
        for stage in (Stage.HELD, Stage.DORMANT, Stage.DELIVERED)
        for name, lease in parts.shelf(stage).items()
        if (lease.assignment_id, lease.stage, lease.home) != (name, stage, parts.home)
    ]
    places = {name: place for place, found in parts.dormant_at.items() for name in found}
    if places != {name: lease.record.position for name, lease in parts.dormant.items()}:
        faults.append(f"dormant at {places}")
    faults += [f"no update waits at {place}" for place, lease in parts.unfolded.items() if lease.update is None]
    own = sum(r.samples for r in parts.delivered_records if r.position < parts.samples)
    return [*faults, "its own samples are miscounted"] if parts.own_samples != own else faults


def faults_of_round(parts: StepParts) -> list[str]:
    """Return which samples of an open round are not exactly once waiting, held or delivered."""
    return _faults_of_pieces(parts, [(r.position, r.samples) for r in parts.own_records()])


def faults_of_map(run: TaskRun, parts: StepParts) -> list[str]:
    """Return which items of a map have not exactly one of these: an output, a client, a place in the queue."""
    record, starts = run.record, run.record.spec.dataset.starts
    missing = {starts[one.shard] + row for one in record.leftover for row in range(one.start, one.stop)}
    missing |= set(range(record.cursor, parts.samples))
    pieces = [(r.position, r.samples) for r in parts.own_records()]
    faults = _faults_of_pieces(parts, pieces + [(item, 1) for item in range(parts.samples) if item not in missing])
    done = parts.samples - len(missing)
    return faults if done == record.samples_done else [*faults, f"{done} items are done of {record.samples_done}"]


def _faults_of_pieces(parts: StepParts, pieces: list[tuple[int, int]]) -> list[str]:
    pieces += [(part.position, part.samples) for part in (*parts.waiting, *parts.dropped)]
    faults: list[str] = []
    end = 0
    for position, samples in sorted(pieces):
        if position != end:
            faults.append(f"samples at {min(position, end)}: held twice or by nobody")
        end = position + samples
    faults += [f"samples from {end} on are nobody's"] if end != parts.samples else []
    open_places = {p.position for p in (*parts.waiting, *parts.dropped)} | {
        x.record.position for x in parts.held.values()
    }
    settled = [name for name, x in parts.dormant.items() if x.record.position not in open_places]
    return faults + [f"{name} is dormant, and its part is settled" for name in settled]
