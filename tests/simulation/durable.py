"""What is on the server's disk: the ledger, each change of it audited, and the journal that takes its time."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from coordinator.commands import Save
from coordinator.credit import entry_of
from coordinator.durability import MOST_ROUNDS
from coordinator.lifecycle import ASSIGNMENT_EDGES, TASK_EDGES
from coordinator.records import AssignmentRecord, CheckpointRecord, CreditEntry, RoundRecord, RoundState, TaskRecord
from protocol.assignments import Kind
from storage.memory_facts import MemoryFacts
from tests.coordinator.credit_books import Key, worth
from tests.simulation.exact_weights import aggregate_of, value_of
from tests.simulation.violation import check

if TYPE_CHECKING:
    from tests.simulation.world import World

_S = TypeVar("_S", bound=StrEnum)


def _reachable(edges: Mapping[_S, frozenset[_S]]) -> dict[_S, frozenset[_S]]:
    """Return where each state may get in any number of moves: of several in one turn only the last is written."""
    reached = {state: {state, *to} for state, to in edges.items()}
    for _ in edges:
        reached = {state: {far for near in to for far in reached[near]} for state, to in reached.items()}
    return {state: frozenset(to) for state, to in reached.items()}


_TASK_MAY_BECOME = _reachable(TASK_EDGES)
_ASSIGNMENT_MAY_BECOME = _reachable(ASSIGNMENT_EDGES)


class AuditedLedger(MemoryFacts):
    """What the shipped in-memory ledger holds is durable. Each transaction is checked against those before it."""

    def __init__(self, blobs: Mapping[str, int]) -> None:
        super().__init__()
        self._blobs = blobs
        self._seen: dict[tuple[str, int, int], int] = defaultdict(int)
        """Rows that committed rounds contain, as bits, by task, epoch and shard."""
        self._fences: set[int] = set()
        self._votes: dict[str, dict[int | None, dict[str, tuple[str, int]]]] = defaultdict(lambda: defaultdict(dict))
        """What each counted assignment brought, by task, the round that counted it, and name."""
        self._task_fences: dict[str, int] = defaultdict(int)
        self._worth: Counter[Key] = Counter()
        """What is counted, as credit."""
        self._fallbacks: dict[str, int] = {}
        """The version that a task may go back to, because all later checkpoints are damaged."""

    def undo(self, task_id: str, version: int) -> tuple[AssignmentRecord, ...]:
        """Return what was counted since a version, and let the task go back to it."""
        self._fallbacks[task_id] = version
        mine = [a for a in self.assignments.values() if a.task_id == task_id and a.kind is Kind.TRAIN]
        return tuple(a for a in mine if a.counted_in is not None and a.counted_in >= version)

    def save(self, command: Save) -> None:
        """Take in one transaction. Raises: Violation."""
        versions = {r.task_id: r.version for r in command.records if isinstance(r, TaskRecord)}
        for record in command.records:
            match record:
                case AssignmentRecord():
                    self._audit_assignment(record)
                case RoundRecord():
                    task_id = record.task_id
                    self._audit_round(record, versions[task_id] if task_id in versions else self.tasks[task_id].version)
                case TaskRecord():
                    self._audit_task(record)
                case CheckpointRecord():
                    check(record.weights.digest in self._blobs, f"checkpoint {record.round} is on disk before its row")
        before = {task_id: self.tasks.get(task_id) for task_id in versions}
        self.apply(command.records, command.entries)
        self._audit_credit(command)
        for task_id, old in before.items():
            if old is None or old.version != self.tasks[task_id].version:
                self._audit_model(self.tasks[task_id])

    def _audit_credit(self, command: Save) -> None:
        """Check that the credit of all that this transaction touched is what counted assignments are worth."""
        touched = {r.assignment_id for r in command.records if isinstance(r, AssignmentRecord) and r.counted}
        if touched or any(isinstance(entry, CreditEntry) for entry in command.entries):
            counted = Counter({key: amount for key, amount in self._worth.items() if amount})
            check(worth(self.credits.values()) == counted, "the credit is not that of the counted assignments")

    def _audit_task(self, record: TaskRecord) -> None:
        if old := self.tasks.get(record.task_id):
            check(record.state in _TASK_MAY_BECOME[old.state], f"task {old.task_id}: {old.state} to {record.state}")
            if record.version < old.version:
                allowed = self._fallbacks.pop(old.task_id, None)
                check(record.version == allowed, f"task {old.task_id} goes back from version {old.version}")
            stays = record.spec.recipe.keep_every
            skipped = range(old.version + 1, record.version)
            check(len(skipped) < MOST_ROUNDS, f"task {old.task_id} skips versions after {old.version}")
            check(not stays or all(n % stays for n in skipped), f"task {old.task_id} skips a version that stays")

    def _audit_round(self, record: RoundRecord, version: int) -> None:
        if old := self.rounds.get((record.task_id, record.number)):
            again = version <= record.number  # the task fell back to before it
            kept = again or old.state is not RoundState.COMMITTED or record.state is RoundState.COMMITTED
            check(kept, f"round {record.number} of {record.task_id} is committed and becomes {record.state}")

    def _audit_assignment(self, record: AssignmentRecord) -> None:
        name = record.assignment_id
        old = self.assignments.get(name)
        if old is None:
            check(
                record.fence > self._task_fences[record.task_id], f"the fence of {name} is not the highest of its task"
            )
            self._task_fences[record.task_id] = record.fence
            check(record.fence not in self._fences, f"{name} has a fence that was given before")
            self._fences.add(record.fence)
        else:
            check(record.state in _ASSIGNMENT_MAY_BECOME[old.state], f"{name}: {old.state} to {record.state}")
            if old.counted and not record.counted:
                self._uncount(old)
            check((record.fence, record.ranges) == (old.fence, old.ranges), f"{name} is another assignment now")
        if record.counted and record.kind in {Kind.TRAIN, Kind.MAP} and not (old and old.counted):
            self._count(record)

    def _count(self, record: AssignmentRecord) -> None:
        for part in record.ranges:
            rows = ((1 << part.samples) - 1) << part.start
            key = (record.task_id, record.epoch, part.shard)
            check(not self._seen[key] & rows, f"{record.assignment_id} counts samples of {key} a second time")
            self._seen[key] |= rows
        vote = (record.client_id, value_of(record.epoch, record.ranges))
        self._votes[record.task_id][record.counted_in][record.assignment_id] = vote
        self._worth.update(worth([entry_of(record)]))

    def _uncount(self, record: AssignmentRecord) -> None:
        """Take back what ``record``, as it was until now, brought."""
        allowed = self._fallbacks.get(record.task_id)
        undone = allowed is not None and record.counted_in is not None and record.counted_in >= allowed
        check(undone, f"{record.assignment_id} was counted and no longer is")
        for part in record.ranges:
            self._seen[record.task_id, record.epoch, part.shard] &= ~(((1 << part.samples) - 1) << part.start)
        self._worth.subtract(worth([entry_of(record)]))
        del self._votes[record.task_id][record.counted_in][record.assignment_id]

    def _audit_model(self, task: TaskRecord) -> None:
        found = self.checkpoints.get((task.task_id, task.version))
        check(found is not None, f"version {task.version} of {task.task_id} has no checkpoint")
        if found is not None:
            rounds = self._votes[task.task_id].values()
            expected = sum(aggregate_of(task.spec.recipe, votes.values()) for votes in rounds)
            exact = self._blobs[found.weights.digest] == expected
            check(exact, f"version {task.version} of {task.task_id} is not what its counted assignments make")


@dataclass(slots=True)
class Ticket:
    """One transaction on its way to the disk."""

    save: Save
    durable: bool = False


class Journal:
    """Writes what waits as one group, after the disk's delay; tries again while the disk refuses."""

    def __init__(self, world: World, on_durable: Callable[[], None]) -> None:
        self._world = world
        self._on_durable = on_durable
        self._waiting: deque[Ticket] = deque()
        self._writing: list[Ticket] = []
        self._crashed = False

    def submit(self, save: Save) -> Ticket:
        """Queue a transaction."""
        ticket = Ticket(save)
        self._waiting.append(ticket)
        if not self._writing:
            self._begin()
        return ticket

    def crash(self) -> None:
        """Lose what waits; of the group that is being written any first part is durable."""
        self._crashed = True
        for ticket in self._writing[: self._world.rng.randint(0, len(self._writing))]:
            self._world.ledger.save(ticket.save)

    def _begin(self) -> None:
        self._writing, self._waiting = list(self._waiting), deque()
        self._world.agenda.after(self._world.weather.disk_seconds(), self._end)

    def _end(self) -> None:
        if self._crashed:
            return
        if self._world.weather.disk_refuses():
            self._world.agenda.after(1.0, self._end)
            return
        written, self._writing = self._writing, []
        for ticket in written:
            self._world.ledger.save(ticket.save)
            ticket.durable = True
        if self._waiting:
            self._begin()
        self._on_durable()
