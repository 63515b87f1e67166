"""An assignment in flight, and the shelves on which those of one round, and of one task, lie.

A lease is *held* by its client; *dormant* if that client is gone or far too slow, so that others may begin its part;
*delivered* when its result is here; *committed* in a round whose commit is not durable yet. Which round may count it is
one fact, its *home*: the open round; the round to come, for what is done ahead of it; or none, for what missed its own
round and is counted by whichever round collects when it arrives. The version that it is based on is ``record.round``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import NamedTuple

from coordinator.records import AssignmentRecord, SampleRange, light_record
from protocol.assignments import AssignmentProgress, Kind
from protocol.tasks import BlobRef


class Stage(Enum):
    """Where an assignment in flight is."""

    HELD = auto()
    """Its client works on it, or was asked to."""
    DORMANT = auto()
    """Its client is gone or too slow: its part is given out again, and whoever delivers first is counted."""
    DELIVERED = auto()
    """Its result is here, and no committed round contains it."""
    COMMITTED = auto()
    """A committed round contains it, and that commit is not durable."""


class Home(NamedTuple):
    """A round (kind train), or what looks at a version."""

    kind: Kind
    number: int


@light_record
class Part:
    """A consecutive part of a round (or of an evaluation) that nobody holds."""

    position: int
    ranges: tuple[SampleRange, ...]
    samples: int
    reserved_until: float = 0.0
    """Before this it is kept for a client that held it and may come back."""


@dataclass(slots=True)
class Lease:
    """An assignment in flight: where it is, which round may count it, and what renews and ends it."""

    record: AssignmentRecord
    home: Home | None
    stage: Stage = Stage.HELD
    update: BlobRef | None = None
    """What it delivered, until it is folded; small ones with their bytes."""
    scale: float = 1.0
    """The factor of a stale update's weight."""
    saved: AssignmentRecord | None = None
    """As the ledger has it; None if it does not know it yet."""
    progress: AssignmentProgress | None = None
    deadline: float = inf
    """The latest end, from the client's measured speed, whatever progress it reports."""
    is_measured: bool = False
    """Whether that speed is known."""
    began_at: float = 0.0
    """When this client was given it, or came back with it."""
    grown_at: float = -inf
    """When a report last said more than those before it."""
    computing_at: float = inf
    """When it was first said to be computing."""
    uploading_at: float = inf
    """When it was first said to be computed."""

    @property
    def assignment_id(self) -> str:
        """The assignment's id."""
        return self.record.assignment_id

    @property
    def is_late(self) -> bool:
        """Whether its own round is closed: any round that collects may count it, and none waits for it."""
        return self.home is None


@dataclass(slots=True)
class StepParts:
    """The parts of one round or evaluation, by where each is; or all assignments that are late (no ``home``).

    Of a round that is open each part is in one place: it waits, is held, or is delivered. ``samples`` counts its own;
    what is delivered beyond them came late, from earlier rounds.
    """

    home: Home | None = None
    samples: int = 0
    waiting: list[Part] = field(default_factory=list)
    """In the order of their positions."""
    held: dict[str, Lease] = field(default_factory=dict)
    dormant: dict[str, Lease] = field(default_factory=dict)
    dormant_at: dict[int, dict[str, Lease]] = field(default_factory=dict)
    """The dormant ones by position: several may be of the same part."""
    delivered: dict[str, Lease] = field(default_factory=dict)
    """In the order in which they arrived."""
    unfolded: dict[int, Lease] = field(default_factory=dict)
    """Those of them whose updates wait for their turn to be folded, by position."""
    own_samples: int = 0
    """Samples of its own parts that are delivered."""
    is_closed: bool = False
    """Whether nobody else is given a part any more: whoever has none now has no part in it."""
    dropped: list[Part] = field(default_factory=list)
    """Of those, the parts that nobody holds."""

    def __iter__(self) -> Iterator[Lease]:
        """Iterate over the leases, the held ones first."""
        yield from self.held.values()
        yield from self.dormant.values()
        yield from self.delivered.values()

    @property
    def records(self) -> list[AssignmentRecord]:
        """Return what is held, then what is delivered."""
        return [lease.record for book in (self.held, self.delivered) for lease in book.values()]

    @property
    def delivered_records(self) -> list[AssignmentRecord]:
        """Return what is delivered, in the order in which it arrived."""
        return [lease.record for lease in self.delivered.values()]

    def dormant_records(self, position: int) -> list[AssignmentRecord]:
        """Return the dormant assignments of the part at a position."""
        return [lease.record for lease in self.dormant_at.get(position, {}).values()]

    @property
    def are_all_here(self) -> bool:
        """Whether all of its own parts are delivered."""
        return not self.held and not self.waiting

    @property
    def count(self) -> int:
        """Count its parts, wherever each is."""
        return len(self.waiting) + len(self.dropped) + len(self.held) + len(self.delivered)

    @property
    def is_given_out(self) -> bool:
        """Whether any is held or delivered."""
        return bool(self.held or self.delivered)

    def own_records(self) -> Iterator[AssignmentRecord]:
        """Iterate over the held and the delivered assignments of the round's own parts."""
        return (record for record in self.records if record.position < self.samples)

    @property
    def delivered_samples(self) -> int:
        """Count the samples of the updates that arrived, late ones included."""
        return sum(lease.record.samples for lease in self.delivered.values())

    @property
    def given_out_samples(self) -> int:
        """Count the samples that are held or delivered."""
        return sum(record.samples for record in self.records)

    def is_waiting(self, position: int) -> bool:
        """Whether the part at a position waits for a client, be it for the one alone that held it."""
        return self.find_waiting(position) is not None or any(part.position == position for part in self.dropped)

    def find_waiting(self, position: int) -> int | None:
        """Return the index of the waiting part at a position."""
        if not self.waiting:
            return None
        index = bisect_left(self.waiting, position, key=position_of)
        return index if index < len(self.waiting) and self.waiting[index].position == position else None

    def shelf(self, stage: Stage) -> dict[str, Lease]:
        """Return the leases of a stage."""
        return {Stage.HELD: self.held, Stage.DORMANT: self.dormant, Stage.DELIVERED: self.delivered}[stage]

    def take_in(self, lease: Lease) -> None:
        """Count a delivered lease to this round; its update waits for its turn to be folded."""
        record = lease.record
        self.delivered[record.assignment_id] = lease
        if record.position < self.samples:
            self.own_samples += record.samples
        if lease.update is not None:
            self.unfolded[record.position] = lease

    def take_out(self, lease: Lease) -> None:
        """Undo ``take_in``: its round is given up."""
        if self.samples and lease.record.position < self.samples:
            self.own_samples -= lease.record.samples
        if self.unfolded.get(lease.record.position) is lease:
            del self.unfolded[lease.record.position]


@dataclass(slots=True)
class TaskLeases:
    """One task's assignments in flight, by the round that may count them."""

    late: StepParts = field(default_factory=StepParts)
    committed: dict[str, Lease] = field(default_factory=dict)
    rounds: dict[Home, StepParts] = field(default_factory=dict)

    def held(self) -> Iterator[Lease]:
        """Iterate over what clients work on: the late ones, those ahead of their round, then those of the open one."""
        yield from self.late.held.values()
        for parts in sorted(self.rounds.values(), key=lambda parts: parts.samples > 0):
            yield from parts.held.values()

    @property
    def any_held(self) -> bool:
        """Whether clients work on any."""
        return bool(self.late.held) or any(parts.held for parts in self.rounds.values())

    def of(self, home: Home | None) -> StepParts:
        """Return the parts of a round, or what is late."""
        if home is None:
            return self.late
        parts = self.rounds.get(home)
        if parts is None:
            parts = self.rounds[home] = StepParts(home)
        return parts

    def open(self, home: Home, samples: int) -> StepParts:
        """Open a round of so many samples; what was done ahead of it is in it already: give each its place."""
        parts = self.of(home)
        parts.samples = samples
        return parts

    def close(self, parts: StepParts) -> None:
        """A round is over, and nothing of it is in flight but what is committed."""
        if parts.home is not None:
            self.rounds.pop(parts.home, None)

    def clear(self) -> None:
        """Drop all of them."""
        self.late, self.committed, self.rounds = StepParts(), {}, {}

    def __iter__(self) -> Iterator[Lease]:
        """Iterate over all of them."""
        for parts in (self.late, *self.rounds.values()):
            yield from parts
        yield from self.committed.values()


def position_of(part: Part) -> int:
    """Return the place of a part in its round: waiting parts are kept in this order."""
    return part.position


def part_of(record: AssignmentRecord) -> Part:
    """Return what an assignment is of, to be given to somebody else."""
    return Part(record.position, record.ranges, record.samples)
