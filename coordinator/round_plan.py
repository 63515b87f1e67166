"""What the next round consists of, and what the round after it inherits."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.late_updates import available_leftover
from coordinator.planning import count_samples, cut, without_stray
from coordinator.records import SampleRange
from coordinator.state import TaskRun
from protocol.assignments import Kind
from protocol.recipe import Recipe
from protocol.secure_aggregation import LEAST_CLIENTS, is_secure
from protocol.task_length import smallest_part


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """``carried`` are owed samples that this round has no room for; ``next_cursor`` is where the epoch goes on."""

    ranges: tuple[SampleRange, ...]
    carried: tuple[SampleRange, ...]
    next_cursor: int

    @property
    def samples(self) -> int:
        """Count the round's samples."""
        return count_samples(self.ranges)


def handed_out_samples(recipe: Recipe) -> int:
    """Return how many samples a round hands out: more than it needs where the recipe over-provisions."""
    return int(recipe.round_samples * (1 + recipe.over_provision))


def _smallest_round(recipe: Recipe) -> int:
    """Return the fewest samples that are worth a round of their own."""
    return LEAST_CLIENTS if is_secure(recipe) else smallest_part(recipe)


def plan_round(run: TaskRun, stripe_shards: int) -> RoundPlan:
    """Plan what is still to be handed out of the next round, besides what clients do ahead of it already.

    First what earlier rounds of the epoch left over, then from the cursor on. The epoch's last round takes a stray
    sample along rather than leave it to a round of its own.
    """
    task, order = run.record, run.order()
    owed = available_leftover(run)
    if run.policy(Kind.TRAIN).hands_out:  # to whoever is free, for as long as it is open: ``coordinator.handing_out``
        return RoundPlan((), owed, task.cursor)
    count = count_samples(owed)
    left = count + sum(shard.samples for shard in order) - task.cursor
    missing = max(handed_out_samples(task.spec.recipe) - run.ahead.given_out_samples, 0)
    want = without_stray(missing, left, _smallest_round(task.spec.recipe)) if missing else 0
    if not want:
        return RoundPlan((), owed, task.cursor)
    if count >= want:
        taken, carried = cut(owed, [want, count - want])
        return RoundPlan(taken, carried, task.cursor)
    fresh = run.take(task.cursor, want - count, stripe_shards)
    return RoundPlan(owed + fresh, (), task.cursor + count_samples(fresh))
