"""The one owner of the assignments in flight, from the offer to the commit of the round that counts them.

Only the book changes what clients hold, how many slots they have free, and which parts of a round wait for a client;
its three indexes, by id, by client and by task, agree between any two calls. It remembers what one turn of a task
changes until that turn is kept: a turn that breaks is undone.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.in_flight import Lease, Part, Stage, StepParts, TaskLeases, part_of, position_of
from coordinator.lifecycle import AssignmentState
from coordinator.records import AssignmentRecord
from protocol.tasks import BlobRef


class Named(Protocol):
    """What names an assignment in a client's message."""

    @property
    def client_id(self) -> str:
        """Who says it."""

    @property
    def assignment_id(self) -> str:
        """Of which assignment."""

    @property
    def fence(self) -> int:
        """The token of the lease that it believes to hold."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A client names an assignment."""

    client_id: str
    assignment_id: str
    fence: int


class Holder(Protocol):
    """What the book writes of a client."""

    online: bool
    slots: int
    freed_at: float
    held: dict[str, Lease]
    dormant: dict[str, Lease]


@dataclass(slots=True)
class _Changes:
    """What one turn of a task changed, as far as undoing it needs that."""

    granted: set[str] = field(default_factory=set)
    ended: dict[str, Lease] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    """The free slots of clients before it, by client id."""


class LeaseBook:
    """All assignments in flight, by id; with ``clients``, what each holds; by task, ``TaskLeases``.

    The three indexes agree between any two calls.
    """

    def __init__(self, clients: Mapping[str, Holder]) -> None:
        self._clients = clients
        self._by_id: dict[str, Lease] = {}
        self._of_tasks: dict[str, TaskLeases] = {}
        self._changes = _Changes()

    def __len__(self) -> int:
        """Count the assignments in flight."""
        return len(self._by_id)

    def add_task(self, task_id: str, leases: TaskLeases) -> None:
        """Keep a task's assignments here from now on."""
        self._of_tasks[task_id] = leases

    def drop_task(self, task_id: str) -> None:
        """Drop a task, and what of it is in flight."""
        if task_id in self._of_tasks:
            self.undo(task_id, 0.0)
            del self._of_tasks[task_id]

    def close_task(self, task_id: str) -> None:
        """Forget a task of which nothing is in flight. Raises: RuntimeError if something is."""
        if next(iter(self._of_tasks[task_id]), None) is not None:
            raise RuntimeError(f"something of task {task_id} is in flight")
        del self._of_tasks[task_id]

    def get(self, assignment_id: str) -> Lease | None:
        """Find an assignment that is in flight."""
        return self._by_id.get(assignment_id)

    def find(self, said: Named, *stages: Stage) -> Lease | None:
        """Find the lease that a message names: in one of these stages, and under that client's fencing token."""
        lease = self._by_id.get(said.assignment_id)
        if lease is None or lease.stage not in stages or lease.record.fence != said.fence:
            return None
        return lease if lease.record.client_id == said.client_id else None

    # rounds

    def extend(self, parts: StepParts, samples: int) -> int:
        """Let a round that hands parts out have so many samples more; returns the place of the first one."""
        place, parts.samples = parts.samples, parts.samples + samples
        return place

    def wait(self, parts: StepParts, part: Part) -> None:
        """Let a part that nobody holds wait for a client; of a round that is closed, for the one alone that held it."""
        insort(parts.dropped if parts.is_closed else parts.waiting, part, key=position_of)

    def close_list(self, parts: StepParts) -> None:
        """Give no part of a round to anybody else from now on."""
        parts.is_closed = True
        parts.waiting, parts.dropped = [], parts.waiting

    def clear_waiting(self, parts: StepParts) -> list[Part]:
        """Let no part wait any more; return those that did, in their order."""
        waiting = sorted((*parts.waiting, *parts.dropped), key=position_of) if parts.dropped else parts.waiting
        parts.waiting, parts.dropped = [], []
        return waiting

    def divide(self, parts: StepParts, position: int, pieces: Iterable[Part]) -> None:
        """Let the pieces of a waiting part wait in its place; with none of them nobody waits for it any more."""
        self._stop_waiting(parts, position)
        for piece in pieces:
            self.wait(parts, piece)

    def postpone(self, parts: StepParts, seconds: float) -> None:
        """Keep reserved parts for so much longer."""
        parts.waiting = [
            replace(part, reserved_until=part.reserved_until + seconds) if part.reserved_until else part
            for part in parts.waiting
        ]

    def place(self, lease: Lease, record: AssignmentRecord, scale: float) -> None:
        """Give what was done ahead of a round, which opens, its place in it; in the order of these places."""
        parts = self._parts(lease)
        shelf = parts.shelf(lease.stage)
        del shelf[lease.assignment_id]
        lease.record, lease.scale = record, scale
        if lease.stage is Stage.DELIVERED:
            parts.take_in(lease)
        else:
            shelf[lease.assignment_id] = lease

    def join(self, lease: Lease, parts: StepParts, record: AssignmentRecord, scale: float) -> None:
        """Count a late result to a round that collects."""
        del self._leases(lease).late.delivered[lease.assignment_id]
        lease.home, lease.record, lease.scale = parts.home, record, scale
        parts.take_in(lease)

    def let_finish(self, parts: StepParts) -> None:
        """The round closes without what is still held: whichever round collects when it arrives counts it."""
        for name, lease in parts.held.items():
            lease.home = None
            self._leases(lease).late.held[name] = lease
        parts.held.clear()

    # leases

    def grant(self, lease: Lease) -> None:
        """Lease a part to a client, which has one free slot less; the part waits no longer."""
        record = lease.record
        client = self._clients[record.client_id]
        parts = self._parts(lease)
        self._changes.granted.add(record.assignment_id)
        if parts.waiting:
            self._stop_waiting(parts, record.position)
        self._by_id[record.assignment_id] = lease
        parts.held[record.assignment_id] = lease
        client.held[record.assignment_id] = lease
        self._set_slots(record.client_id, client, client.slots - 1)

    def restore(self, lease: Lease) -> None:
        """Take in what an earlier life of the server had given out; its client may come back with it."""
        name = lease.assignment_id
        lease.stage, lease.saved = Stage.DORMANT, lease.record
        self._by_id[name] = lease
        self._lay_down(lease)

    def suspend(self, lease: Lease, now: float) -> None:
        """The client is gone or too slow: its part waits for another one, too, and either may deliver it."""
        parts = self._parts(lease)
        self._take(parts, lease, now)
        lease.stage = Stage.DORMANT
        self._lay_down(lease)
        self.wait(parts, part_of(lease.record))

    def adopt(self, lease: Lease) -> None:
        """The client of a dormant assignment holds it again; nobody else holds its part."""
        name, parts = lease.assignment_id, self._parts(lease)
        client = self._clients[lease.record.client_id]
        self._pick_up(lease)
        self._stop_waiting(parts, lease.record.position)
        lease.stage = Stage.HELD
        self._by_id[name] = parts.held[name] = client.held[name] = lease

    def deliver(self, lease: Lease, update: BlobRef | None, now: float) -> None:
        """The result is here; ``lease.record`` says so already. Its round counts it, if it collects."""
        parts = self._parts(lease)
        self._take(parts, lease, now)
        lease.stage, lease.update = Stage.DELIVERED, update
        if parts.samples:
            parts.take_in(lease)
        else:
            parts.delivered[lease.assignment_id] = lease

    def end(self, lease: Lease, now: float) -> None:
        """Nothing comes of it. A part of an open round that was held waits for another client again."""
        parts = self._parts(lease)
        self._forget(lease)
        if lease.stage is Stage.HELD:
            self._take(parts, lease, now)
            if parts.samples:
                self.wait(parts, part_of(lease.record))
            return
        if lease.stage is Stage.DELIVERED:
            del parts.delivered[lease.assignment_id]
            parts.take_out(lease)
        else:
            self._pick_up(lease)
            if (index := parts.find_waiting(lease.record.position)) is not None:
                parts.waiting[index] = replace(parts.waiting[index], reserved_until=0.0)

    def commit(self, parts: StepParts) -> None:
        """A round is committed with all that is delivered; that is settled once the new version is durable."""
        for lease in parts.delivered.values():
            lease.stage = Stage.COMMITTED
            self._leases(lease).committed[lease.assignment_id] = lease
        parts.delivered.clear()

    def finish(self, parts: StepParts) -> None:
        """What is delivered of a step that makes no version is settled: it is not in flight any more."""
        for lease in parts.delivered.values():
            self._forget(lease)
            parts.take_out(lease)
        parts.delivered.clear()

    def fold(self, parts: StepParts, position: int) -> tuple[Lease, BlobRef]:
        """The update at a position goes to the accumulator; returns it with its lease."""
        lease = parts.unfolded.pop(position)
        update, lease.update = lease.update, None
        if update is None:
            raise RuntimeError(f"assignment {lease.assignment_id} was folded already")
        return lease, update

    def settle(self, leases: TaskLeases, upto: int | None = None) -> list[Lease]:
        """What is committed is durable, or undone: return it; it is not in flight any more.

        With ``upto`` only what that version contains.
        """
        settled = [x for x in leases.committed.values() if upto is None or (x.home and x.home.number < upto)]
        for lease in settled:
            del leases.committed[lease.assignment_id]
            self._forget(lease)
        return settled

    # slots

    def set_slots(self, client_id: str, slots: int) -> None:
        """The client says how many more assignments it can take; it had not seen yet what it has not answered."""
        client = self._clients[client_id]
        unseen = sum(1 for lease in client.held.values() if lease.record.state is AssignmentState.OFFERED)
        client.slots = max(slots - unseen, 0)

    def add_slots(self, client_id: str, slots: int) -> None:
        """The client has so many more free slots than before, which it need not say."""
        client = self._clients[client_id]
        self._set_slots(client_id, client, client.slots + slots)

    def leave(self, client_id: str) -> None:
        """The client is gone and takes nothing."""
        self._clients[client_id].slots = 0

    # turns

    def keep(self, records: Mapping[str, AssignmentRecord]) -> None:
        """A turn of a task holds; the ledger will have these ``records`` of its assignments, by id."""
        self._changes = _Changes()
        for name, record in records.items():
            if (lease := self._by_id.get(name)) is not None:
                lease.saved = record

    def undo(self, task_id: str, now: float) -> list[Lease]:
        """A turn of a task broke, anywhere: take all of its assignments off the books.

        Returns those that were in flight before that turn; their clients have the slots that they had then.
        """
        changes, self._changes = self._changes, _Changes()
        mine = {name: lease for name, lease in self._by_id.items() if lease.record.task_id == task_id}
        for name in mine:
            del self._by_id[name]
        self._of_tasks[task_id].clear()
        for client_id, client in self._clients.items():
            self._take_all(client, task_id, now)
            if client_id in changes.slots:
                client.slots = changes.slots[client_id]
        before = {**mine, **changes.ended}
        return [lease for name, lease in before.items() if name not in changes.granted]

    def _take_all(self, client: Holder, task_id: str, now: float) -> None:
        for book in (client.held, client.dormant):
            for name in [name for name, lease in book.items() if lease.record.task_id == task_id]:
                del book[name]
                client.freed_at = now

    def _take(self, parts: StepParts, lease: Lease, now: float) -> Holder:
        """Take a held lease off its round and its client."""
        del parts.held[lease.assignment_id]
        client = self._clients[lease.record.client_id]
        client.held.pop(lease.assignment_id, None)
        client.freed_at = now
        return client

    def _leases(self, lease: Lease) -> TaskLeases:
        return self._of_tasks[lease.record.task_id]

    def _parts(self, lease: Lease) -> StepParts:
        return self._leases(lease).of(lease.home)

    def _lay_down(self, lease: Lease) -> None:
        """Put a dormant lease where its round and its client find it."""
        name, parts = lease.assignment_id, self._parts(lease)
        parts.dormant[name] = self._clients[lease.record.client_id].dormant[name] = lease
        parts.dormant_at.setdefault(lease.record.position, {})[name] = lease

    def _pick_up(self, lease: Lease) -> None:
        """Undo ``_lay_down``."""
        name, parts, position = lease.assignment_id, self._parts(lease), lease.record.position
        del parts.dormant[name], self._clients[lease.record.client_id].dormant[name], parts.dormant_at[position][name]
        if not parts.dormant_at[position]:
            del parts.dormant_at[position]

    def _stop_waiting(self, parts: StepParts, position: int) -> None:
        if (index := parts.find_waiting(position)) is not None:
            del parts.waiting[index]
        if parts.dropped:
            parts.dropped = [part for part in parts.dropped if part.position != position]

    def _set_slots(self, client_id: str, client: Holder, slots: int) -> None:
        self._changes.slots.setdefault(client_id, client.slots)
        client.slots = slots

    def _forget(self, lease: Lease) -> None:
        del self._by_id[lease.assignment_id]
        self._changes.ended[lease.assignment_id] = lease
