"""Write-behind: a task goes on with its newest version while that is still being written to the disk.

A commit is *volatile* until its checkpoint is durable: the version is in the server's memory, and all that the ledger
would get of the task from then on is held back. When the disk has a version, what was held back up to the commit after
it is saved with it in one transaction, and clients hear that their updates are counted. If the disk has a later version
first, the ones before it are durable by it, and are never written. Whatever ends in between, a crash of the server or
the task's attempt, goes back to the last durable version, weights and books together: the rounds since then are trained
again. People are told of durable versions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from coordinator.commands import FlushCheckpoint
from coordinator.records import CreditEntry
from coordinator.stopping import epoch_end_is_due, evaluation_is_due, is_finished
from protocol.assignments import Ack
from protocol.credit import CREDIT, Credit
from protocol.privacy import is_private
from protocol.wording import counted

if TYPE_CHECKING:
    from coordinator.events import CheckpointDurable
    from coordinator.in_flight import Lease
    from coordinator.records import CheckpointRecord, Entry, Record, TaskRecord
    from coordinator.state import ClientState, TaskRun
    from coordinator.turn import Turn

MOST_ROUNDS: Final = 16
"""So many rounds may be volatile: clients keep their updates of them, and a crash trains them again."""
MOST_SECONDS: Final = 5.0
"""A version that is not durable so long after its commit keeps its task's next round from opening."""
_BOOKS: Final = ("version", "epoch", "cursor", "leftover", "samples_done", "loss", "metrics", "stopped")
"""What of a task's record belongs to its version."""


@dataclass(slots=True)
class VolatileVersion:
    """A version that is not durable, and what the ledger would have got between its commit and the next one.

    ``record`` and ``checkpoint`` are those of its commit, in the round of this ``attempt``.
    """

    record: TaskRecord
    checkpoint: CheckpointRecord
    attempt: int
    committed_at: float
    records: dict[tuple[type, object], Record] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def hold(self, records: Mapping[tuple[type, object], Record], entries: list[Entry]) -> None:
        """Keep back what one turn would have saved."""
        self.records |= records
        self.entries += entries


@dataclass(frozen=True, slots=True)
class Volatile:
    """What a task's ledger lacks: its ``versions`` since the durable one.

    ``record`` and ``checkpoint`` are those of the durable one.
    """

    record: TaskRecord
    checkpoint: CheckpointRecord
    versions: tuple[VolatileVersion, ...]

    @property
    def newest(self) -> VolatileVersion:
        """The task's present version."""
        return self.versions[-1]

    def reached(self, event: CheckpointDurable) -> tuple[VolatileVersion, ...]:
        """Return the versions up to the one that is durable now; none if that was undone meanwhile."""
        written = (event.checkpoint.round, event.attempt)
        known = [(version.checkpoint.round, version.attempt) for version in self.versions]
        return self.versions[: known.index(written) + 1] if written in known else ()


def become_volatile(turn: Turn, run: TaskRun, before: TaskRecord, checkpoint: CheckpointRecord, attempt: int) -> None:
    """A round is committed, and its version is in memory only. ``before`` and ``checkpoint`` are of the last one."""
    known = run.volatile or Volatile(before, checkpoint, ())
    version = VolatileVersion(run.record, run.checkpoint, attempt, turn.now)
    run.volatile = replace(known, versions=(*known.versions, version))
    if waits_for_disk(run, turn.now) is not None:
        turn.do(FlushCheckpoint(run.task_id))


def checkpoint_durable(turn: Turn, event: CheckpointDurable) -> None:
    """A version is on the disk: books and weights become durable as one, and clients get their acknowledgements."""
    run = turn.farm.tasks.get(event.task_id)
    volatile = run.volatile if run is not None else None
    if run is None or volatile is None or not (reached := volatile.reached(event)):
        return
    for version in reached:
        turn.release(version.records, version.entries)
    checkpoint = replace(event.checkpoint, leftover=reached[-1].checkpoint.leftover)
    turn.release_record(checkpoint)
    rest = volatile.versions[len(reached) :]
    run.volatile = Volatile(reached[-1].record, checkpoint, rest) if rest else None
    if run.volatile is None:
        run.checkpoint = checkpoint
    turn.farm.add_credit(entry for version in reached for entry in version.entries if isinstance(entry, CreditEntry))
    for lease in turn.farm.leases.settle(run.leases, upto=checkpoint.round):
        if (client := turn.farm.clients.get(lease.record.client_id)) is not None:
            turn.save(client.record)
            turn.send(client, _counted(turn, client, lease))


def _counted(turn: Turn, client: ClientState, lease: Lease) -> Ack:
    known = turn.farm.credits.get(client.client_id) if CREDIT in client.features else None
    credit = None if known is None else Credit(samples=known.samples, flops=known.flops)
    return Ack(assignment_id=lease.assignment_id, fence=lease.record.fence, counted=True, credit=credit)


def waits_for_disk(run: TaskRun, now: float) -> str | None:
    """Say why the task's next step can't open before its version is durable; None if it need not wait for that.

    What people will be told of, or get, must be durable: the last version, one that stays, one that is looked at. So
    must each one of a private task: one that clients saw and a crash undid would have cost privacy that no book has.
    """
    volatile = run.volatile
    if volatile is None:
        return None
    recipe, version = run.record.spec.recipe, run.record.version
    stays = bool(recipe.keep_every) and version % recipe.keep_every == 0
    is_shown = evaluation_is_due(run.record) or epoch_end_is_due(run.record)
    if stays or is_shown or is_private(recipe) or is_finished(run.record):
        return f"version {version} is being written"
    oldest = volatile.versions[0]
    if len(volatile.versions) >= MOST_ROUNDS or now - oldest.committed_at >= MOST_SECONDS:
        return f"waits for the disk, which has version {volatile.record.version} of {version}"
    return None


def durable_record(run: TaskRun) -> TaskRecord:
    """Return the task as it is now, with the books of its last durable version: what people are told."""
    if run.volatile is None:
        return run.record
    return replace(run.record, **_books_of(run.volatile.record))


def roll_back(turn: Turn, run: TaskRun, why: str) -> None:
    """Back to the last durable version: the rounds since then are trained again."""
    volatile, run.volatile = run.volatile, None
    if volatile is None:
        return
    undone = run.record.version - volatile.record.version
    run.checkpoint = volatile.checkpoint
    run.evaluate_next = False
    turn.save(run.update(**_books_of(volatile.record)))
    for version in volatile.versions:
        turn.release_uncounted(version.records, version.entries)
    turn.note("rounds_rolled_back", f"{counted(undone, 'round')} since the last durable one to train again: {why}", run)
    for lease in turn.farm.leases.settle(run.leases):
        drop = Ack(assignment_id=lease.assignment_id, fence=lease.record.fence, counted=False, message=why)
        turn.send_to(lease.record.client_id, drop)


def _books_of(record: TaskRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _BOOKS}
