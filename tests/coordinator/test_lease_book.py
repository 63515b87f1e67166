"""The book of assignments under any sequence of what may happen to them, and that nobody writes past it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import coordinator
from coordinator.in_flight import Home, Lease, Part, Stage, StepParts, TaskLeases
from coordinator.leases import Claim, LeaseBook
from coordinator.lifecycle import AssignmentState
from coordinator.records import AssignmentRecord, SampleRange
from protocol.assignments import Kind
from protocol.tasks import BlobRef
from tests.coordinator.book_checks import faults_of_book, faults_of_round
from tests.coordinator.farm_simulation import Simulation, spec

SIZES = (3, 1, 4, 2)
UPDATE = BlobRef(digest="f" * 64, size_bytes=3, inline=b"abc")
OWNED = {
    "slots",
    "held",
    "dormant",
    "freed_at",
    "waiting",
    "dropped",
    "is_closed",
    "unfolded",
    "dormant_at",
    "delivered",
    "committed",
    "stage",
    "home",
    "saved",
}
"""What only the book writes, of clients, shelves and leases."""
CALLS = {"append", "add", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "update"}

pick = st.randoms(use_true_random=False)


@dataclass
class Client:
    """What the book knows of a client."""

    online: bool = True
    slots: int = 2
    freed_at: float = 0.0
    held: dict[str, Lease] = field(default_factory=dict)
    dormant: dict[str, Lease] = field(default_factory=dict)


class AnyTurns(RuleBasedStateMachine):
    """Rounds of two tasks open, change and end; each turn is about one of them, and is kept or undone."""

    def __init__(self) -> None:
        super().__init__()
        self.clients = {f"c{n}": Client() for n in range(3)}
        self.book = LeaseBook(self.clients)
        self.tasks = {"t1": TaskLeases(), "t2": TaskLeases()}
        for task_id, leases in self.tasks.items():
            self.book.add_task(task_id, leases)
        self.open: dict[str, StepParts | None] = {"t1": None, "t2": None}
        self.number = dict.fromkeys(self.tasks, 0)
        self.names = 0

    @initialize(task_id=st.sampled_from(["t1", "t2"]))
    def begin(self, task_id: str) -> None:
        self.task_id = task_id
        self.remember()

    def remember(self) -> None:
        """Note how the turn found it."""
        self.before = {x.assignment_id: x.record for x in self.leases}
        self.slots_before = {client_id: client.slots for client_id, client in self.clients.items()}
        self.others = {x.assignment_id for x in self.tasks["t1" if self.task_id == "t2" else "t2"]}

    @property
    def leases(self) -> TaskLeases:
        return self.tasks[self.task_id]

    @property
    def parts(self) -> StepParts | None:
        return self.open[self.task_id]

    def record(self, client_id: str, part: Part) -> AssignmentRecord:
        self.names += 1
        return AssignmentRecord(
            assignment_id=f"a{self.names}",
            task_id=self.task_id,
            round=self.number[self.task_id],
            attempt=1,
            kind=Kind.TRAIN,
            epoch=0,
            client_id=client_id,
            incarnation=1,
            fence=self.names,
            state=AssignmentState.OFFERED,
            ranges=part.ranges,
            position=part.position,
            samples=part.samples,
            offered_at=0.0,
            expires_at=1.0,
        )

    def free(self) -> list[str]:
        return [client_id for client_id, client in self.clients.items() if client.slots > 0]

    def take(self, stage: Stage, random: object, *, own: bool = False) -> Lease | None:
        found = [
            x
            for x in self.leases
            if x.stage is stage and not (own and (self.parts is None or x.home != self.parts.home))
        ]
        return random.choice(found) if found else None  # type: ignore[attr-defined]

    # rounds

    @precondition(lambda self: self.parts is None)
    @rule()
    def opens(self) -> None:
        number = self.number[self.task_id]
        home = Home(Kind.TRAIN, number)
        ahead = self.leases.of(home).given_out_samples
        parts = self.open[self.task_id] = self.leases.open(home, ahead + sum(SIZES))
        start = 0
        for lease in sorted([*parts.held.values(), *parts.delivered.values()], key=lambda x: x.record.position):
            self.book.place(lease, replace(lease.record, position=start), 0.5)
            start += lease.record.samples
        for size in SIZES:
            self.book.wait(parts, Part(start, (SampleRange(0, start, start + size),), size))
            start += size
        self.joins()

    def joins(self) -> None:
        for late in list(self.leases.late.delivered.values()):
            assert self.parts is not None
            end = max([self.parts.samples, *(r.position + r.samples for r in self.parts.delivered_records)])
            self.book.join(late, self.parts, replace(late.record, position=end), 0.5)

    @precondition(lambda self: self.parts is not None and self.free())
    @rule(random=pick)
    def is_offered(self, random: object) -> None:
        assert self.parts is not None
        if self.parts.waiting:
            part, client_id = random.choice(self.parts.waiting), random.choice(self.free())  # type: ignore[attr-defined]
            before = self.clients[client_id].slots
            self.book.grant(Lease(self.record(client_id, part), self.parts.home))
            assert self.clients[client_id].slots == before - 1
            assert not self.parts.is_waiting(part.position)

    @precondition(lambda self: self.parts is not None and self.free())
    @rule(random=pick)
    def is_offered_ahead(self, random: object) -> None:
        home = Home(Kind.TRAIN, self.number[self.task_id] + 1)
        part = Part(100 + self.leases.of(home).given_out_samples, (SampleRange(1, self.names, self.names + 2),), 2)
        self.book.grant(Lease(self.record(random.choice(self.free()), part), home))  # type: ignore[attr-defined]

    @precondition(lambda self: self.parts is not None)
    @rule(lets_finish=st.booleans())
    def is_committed(self, lets_finish: bool) -> None:
        parts = self.parts
        assert parts is not None
        if lets_finish:
            self.book.let_finish(parts)
        for lease in [*parts.held.values(), *parts.dormant.values()]:
            self.book.end(lease, 1.0)
        self.book.clear_waiting(parts)
        while parts.unfolded:
            lease, _ = self.book.fold(parts, min(parts.unfolded))
            assert lease.update is None
        self.book.commit(parts)
        self.leases.close(parts)
        self.open[self.task_id] = None
        self.number[self.task_id] += 1

    @precondition(lambda self: self.parts is not None)
    @rule()
    def is_abandoned(self) -> None:
        parts = self.parts
        assert parts is not None
        for lease in [*parts, *self.leases.of(Home(Kind.TRAIN, self.number[self.task_id] + 1))]:
            self.book.end(lease, 1.0)
        self.leases.close(parts)
        self.open[self.task_id] = None

    @rule(behind=st.none() | st.integers(0, 2))
    def is_durable(self, behind: int | None) -> None:
        upto = None if behind is None else self.number[self.task_id] - behind
        committed = [x for x in self.leases if x.stage is Stage.COMMITTED]
        reached = [x for x in committed if upto is None or (x.home is not None and x.home.number < upto)]
        assert self.book.settle(self.leases, upto) == reached

    # assignments

    @rule(random=pick)
    def is_lost(self, random: object) -> None:
        if lease := self.take(Stage.HELD, random, own=True):
            self.book.suspend(lease, 1.0)

    @rule(random=pick)
    def comes_back(self, random: object) -> None:
        lease = self.take(Stage.DORMANT, random)
        if lease is not None and self.parts is not None and self.parts.is_waiting(lease.record.position):
            self.book.adopt(Lease(replace(lease.record, incarnation=2), lease.home, saved=lease.saved))

    @rule(random=pick)
    def delivers(self, random: object) -> None:
        if lease := self.take(Stage.HELD, random):
            client_id = lease.record.client_id
            lease.record = replace(lease.record, state=AssignmentState.DELIVERED)
            self.book.deliver(lease, UPDATE, 1.0)
            self.book.add_slots(client_id, 1)
            if self.parts is None:
                return
            for other in list(self.parts.dormant.values()):
                if lease.home == self.parts.home and other.record.position == lease.record.position:
                    self.book.end(other, 1.0)
            self.joins()

    @rule(random=pick, stage=st.sampled_from([Stage.HELD, Stage.DORMANT]))
    def comes_to_nothing(self, random: object, stage: Stage) -> None:
        if lease := self.take(stage, random):
            self.book.end(lease, 1.0)

    @rule(random=pick)
    def is_asked_for(self, random: object) -> None:
        """A client speaks of what is its own, or of what is not."""
        for stage in Stage:
            if lease := self.take(stage, random):
                said = Claim(lease.record.client_id, lease.assignment_id, lease.record.fence)
                assert self.book.find(said, stage) is lease
                assert self.book.find(said, *(set(Stage) - {stage})) is None
                assert self.book.find(replace(said, client_id="another"), stage) is None
                assert self.book.find(replace(said, fence=said.fence + 1), stage) is None

    # turns

    @rule(task_id=st.sampled_from(["t1", "t2"]))
    def holds(self, task_id: str) -> None:
        self.book.keep({x.assignment_id: x.record for x in self.leases})
        self.task_id = task_id
        self.remember()

    @rule()
    def says_ready(self) -> None:
        """Between two turns a client says how many it can take; it has not seen what it was offered."""
        self.holds(self.task_id)
        for client_id, client in self.clients.items():
            offered = sum(x.record.state is AssignmentState.OFFERED for x in client.held.values())
            self.book.set_slots(client_id, 2)
            assert client.slots == max(2 - offered, 0)
        self.remember()

    @rule()
    def breaks(self) -> None:
        in_flight = self.book.undo(self.task_id, 2.0)
        assert {x.assignment_id: x.saved for x in in_flight} == self.before
        assert not list(self.leases)
        assert {client_id: client.slots for client_id, client in self.clients.items()} == self.slots_before
        assert {x.assignment_id for x in self.tasks["t1" if self.task_id == "t2" else "t2"]} == self.others
        self.open[self.task_id] = None
        self.remember()

    @invariant()
    def the_indexes_agree(self) -> None:
        assert not faults_of_book(self.book, self.tasks, self.clients)

    @invariant()
    def each_part_of_an_open_round_is_in_one_place(self) -> None:
        for parts in self.open.values():
            assert parts is None or not faults_of_round(parts)


AnyTurns.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_turns = AnyTurns.TestCase


def writes(node: ast.AST) -> str | None:
    """Return the attribute that a statement or a call changes, if it is one of the book's own."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        targets = [node.func.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("insort", "setattr"):
        targets = node.args[:1]
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    flat = [target.value if isinstance(target, ast.Subscript) else target for target in flat]
    return next((t.attr for t in flat if isinstance(t, ast.Attribute) and t.attr in OWNED), None)


def test_nobody_writes_past_the_book() -> None:
    package = Path(coordinator.__file__).parent
    found = [
        f"{path.name}:{node.lineno} changes .{name}"
        for path in sorted(package.rglob("*.py"))
        if path.name not in ("leases.py", "in_flight.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := writes(node)) is not None
    ]
    assert found == []


def test_a_write_past_the_book_would_be_seen() -> None:
    for line in (
        "client.slots -= 1",
        "client.held.pop(x)",
        "del step.parts.waiting[0]",
        "insort(p.waiting, x)",
        "a.held[x] = 1",
    ):
        assert any(writes(node) for node in ast.walk(ast.parse(line))), line


def test_people_and_the_shell_find_an_assignment_while_it_is_in_flight() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(rounds=1))
    name = ada.held[0].assignment_id
    found = farm.coordinator.assignment(name)
    assert found is not None
    assert (found.client_id, found.task_id, found.round) == ("id-ada", "t1", 0)
    farm.deliver(ada)
    assert farm.coordinator.assignment(name) is None
    assert farm.coordinator.assignment("another") is None
