"""Late updates: what is done about an assignment that misses its round, where the policy lets it finish.

Its samples are not given to anybody else meanwhile, so that each still counts once; in the ledger they are owed all the
same, so that a restart loses none of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coordinator.in_flight import StepParts
from coordinator.offers import cancel, discard
from coordinator.records import SampleRange
from coordinator.state import Step, TaskRun
from coordinator.turn import Turn

_TOO_STALE: Final = "it is staler than the recipe allows"


def outstanding(run: TaskRun) -> tuple[SampleRange, ...]:
    """Return the samples that assignments of other rounds may still deliver, or have, and no round contains yet."""
    records = run.late.records + sorted(run.ahead.records, key=lambda record: record.position)
    return tuple(r for record in records for r in record.ranges)


def available_leftover(run: TaskRun) -> tuple[SampleRange, ...]:
    """Return the owed samples that nobody is working on."""
    busy = set(outstanding(run))
    return tuple(r for r in run.record.leftover if r not in busy)


def join_round(turn: Turn, run: TaskRun, step: Step) -> None:
    """Put the late results at the end of a round, after all of its own parts; or, while it grows, at the next place."""
    for late in list(run.late.delivered.values()):
        if step.policy.hands_out:
            place = turn.farm.leases.extend(step.parts, late.record.samples)
        else:
            place = step.samples + sum(r.samples for r in step.parts.delivered_records if r.position >= step.samples)
        record = replace(late.record, position=place)
        turn.farm.leases.join(late, step.parts, record, step.policy.scale(step.number - record.round))


def drop_stale(turn: Turn, run: TaskRun) -> None:
    """Before a round opens: give up what would be staler in it than the recipe allows."""
    oldest = run.record.version - run.record.spec.recipe.max_staleness
    for lease in list(run.late.held.values()):
        if lease.record.round < oldest:
            cancel(turn, run, lease, _TOO_STALE)
    for lease in list(run.late.delivered.values()):  # it came while the last round that could count it was committed
        if lease.record.round < oldest:
            discard(turn, run, lease, _TOO_STALE)


def drop_all_late(turn: Turn, run: TaskRun, why: str) -> None:
    """Give up all that is late, results that no round contains yet included."""
    drop_all(turn, run, run.late, why)


def drop_all(turn: Turn, run: TaskRun, parts: StepParts, why: str) -> None:
    """Give up all of a round's assignments, results included."""
    for lease in list(parts.held.values()):
        cancel(turn, run, lease, why)
    for lease in list(parts.delivered.values()):
        discard(turn, run, lease, why)
