"""Recipes of many small rounds: only some commits are durable, and what came after the last of them rolls back as one.

A round that is committed in memory only (*volatile*) has its weights in the server's memory, and all that the ledger
would get of its task is held back until the next durable commit: books and weights become durable together, in one
transaction. Until then clients keep their updates. Weights too large for a message make every round durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from coordinator.stopping import is_finished
from protocol.compression import CodecName
from protocol.limits import INLINE_BYTES
from protocol.messages import Ack
from protocol.tasks import Split, TaskSpec
from protocol.wording import counted

if TYPE_CHECKING:
    from coordinator.records import CheckpointRecord, Entry, Record, TaskRecord
    from coordinator.state import Step, TaskRun
    from coordinator.turn import Turn

_BOOKS: Final = ("version", "epoch", "cursor", "leftover", "samples_done", "loss", "metrics")
"""What of a task's record belongs to its version."""


@dataclass(slots=True)
class Volatile:
    """What happened to a task since its last durable commit. ``record`` and ``checkpoint`` are those of then."""

    record: TaskRecord
    checkpoint: CheckpointRecord
    records: dict[tuple[type, object], Record] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def hold(self, records: Mapping[tuple[type, object], Record], entries: list[Entry]) -> None:
        """Keep back what one turn would have saved."""
        self.records |= records
        self.entries += entries


def may_be_volatile(spec: TaskSpec) -> bool:
    """Whether rounds of this task may be committed in memory only."""
    recipe = spec.recipe
    small = spec.initial_weights.size_bytes <= INLINE_BYTES
    return recipe.durable_every > 1 and small and recipe.weights_codec.name is CodecName.NONE


def must_be_durable(turn: Turn, run: TaskRun, step: Step, epoch: int, cursor: int) -> bool:
    """Whether the round that is being committed has to be durable; ``epoch`` and ``cursor`` are those after it."""
    spec, version = run.record.spec, step.number + 1
    if not may_be_volatile(spec):
        return True
    recipe = spec.recipe
    before = run.volatile.record.version if run.volatile else run.record.version
    evaluated = recipe.evaluate_every and spec.dataset.samples(Split.HOLDOUT) and not version % recipe.evaluate_every
    after = replace(run.record, version=version, epoch=epoch, cursor=cursor, leftover=step.owed)
    overdue = turn.now - run.durable_at >= recipe.durable_seconds
    return bool(version - before >= recipe.durable_every or overdue or evaluated or is_finished(after))


def become_durable(turn: Turn, run: TaskRun) -> None:
    """A durable commit: what was held back is saved with it, and clients get the acknowledgements of their updates."""
    run.durable_at = turn.now
    volatile, run.volatile = run.volatile, None
    if volatile is None:
        return
    turn.release(volatile.records, volatile.entries)
    for lease in turn.farm.leases.settle(run.leases):
        ack = Ack(assignment_id=lease.assignment_id, fence=lease.record.fence, counted=True)
        turn.send_to(lease.record.client_id, ack)


def roll_back(turn: Turn, run: TaskRun, why: str) -> None:
    """Back to the last durable commit: the rounds since then are trained again."""
    volatile, run.volatile = run.volatile, None
    if volatile is None:
        return
    undone = run.record.version - volatile.record.version
    run.checkpoint = volatile.checkpoint
    run.evaluate_next = False
    turn.save(run.update(**{name: getattr(volatile.record, name) for name in _BOOKS}))
    turn.release_uncounted(volatile.records, volatile.entries)
    turn.note("rounds_rolled_back", f"{counted(undone, 'round')} since the last durable one to train again: {why}", run)
    for lease in turn.farm.leases.settle(run.leases):
        drop = Ack(assignment_id=lease.assignment_id, fence=lease.record.fence, counted=False, message=why)
        turn.send_to(lease.record.client_id, drop)
