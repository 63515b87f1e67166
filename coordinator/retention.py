"""Which checkpoints of a task stay, and how much of its history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.records import CheckpointRecord
from protocol.recipe import Recipe, parse_rule


def kept_rounds(checkpoints: Sequence[CheckpointRecord], recipe: Recipe) -> set[int]:
    """Return the rounds whose checkpoints stay: the newest K, every Nth, the best by a metric, and the initial one."""
    rounds = sorted(c.round for c in checkpoints)
    kept = set(rounds[-recipe.keep_checkpoints :]) | (set(rounds[:1]) & {0})
    if recipe.keep_every:
        kept |= {r for r in rounds if r % recipe.keep_every == 0}
    best = best_checkpoint(checkpoints, recipe.keep_best)
    if best is not None:
        kept.add(best.round)
    return kept


def best_checkpoint(checkpoints: Sequence[CheckpointRecord], rule: str | None) -> CheckpointRecord | None:
    """Return the checkpoint that is best by ``max:METRIC`` or ``min:METRIC``, the newer of equals; None without one.

    A value that is not finite rates nothing: of a round that diverged, NaN compares to no other.
    """
    if rule is None:
        return None
    sign, metric = parse_rule(rule)
    rated = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    return max(rated, key=lambda c: (sign * c.metrics[metric], c.round), default=None)


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """How much stays of each task: its newest rows, and after its end all of it for so long. Seconds."""

    log_lines: int
    metric_points: int
    events: int
    ended_seconds: float

    def is_stale(self, finished_at: float | None, now: float) -> bool:
        """Whether the history of a task that ended then may go altogether."""
        return finished_at is not None and finished_at + self.ended_seconds < now

    def __str__(self) -> str:
        days = self.ended_seconds / 86400
        return (
            f"each task keeps its newest {self.log_lines:,} log lines, {self.metric_points:,} metric values and "
            f"{self.events:,} events; {days:g} days after its end its history goes, its checkpoints stay"
        )
