"""Credit: how many samples and floating point operations of a client's work are counted, and for which team.

What a client says of its FLOPs is bounded before it is credited: by what others count for a sample of the same task,
and by what no machine computes in that time. The books are entries that the ledger adds up, one for each counted
assignment: they become durable with the version that contains it, and are dropped with a version that is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Final

from coordinator.records import AssignmentRecord, CreditEntry
from protocol.terminal_text import one_line

ESTABLISHED_AFTER: Final = 3
"""Counted assignments of a task, until a client's figure for it may raise what others are credited with."""
MOST_FIGURES: Final = 256
"""Clients whose figures are kept for a task: the median of more would be the same."""
FASTEST: Final = 10**16
"""FLOPs in a second: more than eight of the fastest cards do in training (2025)."""
SHORTEST_SECONDS: Final = 10.0
"""An assignment may have been computed before it was given out (a guess): nobody is held to a shorter time."""
DAY_SECONDS: Final = 86_400
MOST_TEAM_CHARS: Final = 40


@dataclass(slots=True)
class FlopFigures:
    """What clients count for a sample of one task: of each its last figure, and how many of its assignments counted."""

    _figures: dict[str, int] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)

    def limit(self, claims: Mapping[str, int]) -> int | None:
        """Return what a sample is credited with at most; None if nobody has said anything.

        The lower median over the clients that are established in the task; newcomers move it neither up nor down. While
        nobody is established it is the least figure of all. ``claims``: of this round, by client, none of them 0.
        """
        established = [figure for one, figure in self._figures.items() if self._counted[one] >= ESTABLISHED_AFTER]
        if established:
            return median_low(established)
        return min([*self._figures.values(), *claims.values()], default=None)

    def take_in(self, claims: Mapping[str, int]) -> None:
        """Keep the figures of a round that is counted."""
        for client_id, figure in claims.items():
            self._figures.pop(client_id, None)
            self._figures[client_id] = figure
            self._counted[client_id] = self._counted.get(client_id, 0) + 1
        while len(self._figures) > MOST_FIGURES:
            oldest = next(iter(self._figures))
            del self._figures[oldest], self._counted[oldest]


def credited(figures: FlopFigures, delivered: Iterable[AssignmentRecord]) -> list[AssignmentRecord]:
    """Return a round's assignments with the FLOPs that each is credited with for a sample; 0 stays not known."""
    records = list(delivered)
    claims = {record.client_id: record.flops_per_sample for record in records if record.flops_per_sample}
    limit = figures.limit(claims)
    figures.take_in(claims)
    if limit is None:
        return records
    return [
        replace(record, flops_per_sample=min(record.flops_per_sample, limit, _possible(record))) for record in records
    ]


def _possible(record: AssignmentRecord) -> int:
    """Return for how many FLOPs a sample the time was long enough that the client had the assignment."""
    held = (record.delivered_at or record.offered_at) - record.offered_at
    return int(max(held, SHORTEST_SECONDS)) * FASTEST // record.samples


def entry_of(record: AssignmentRecord, sign: int = 1) -> CreditEntry:
    """Return what a counted assignment adds to the books; with -1 what takes that back."""
    flops = record.samples * record.flops_per_sample
    return CreditEntry(
        task_id=record.task_id,
        client_id=record.client_id,
        team=record.team,
        day=int((record.delivered_at or record.offered_at) // DAY_SECONDS),
        assignments=sign,
        samples=sign * record.samples,
        measured_samples=sign * record.samples * bool(record.flops_per_sample),
        gigaflops=sign * (flops // 10**9),
        flops=sign * (flops % 10**9),
    )


def team_name(text: str) -> str:
    """Return a team's name as it is kept: one line, nothing in it that acts on a terminal, words one space apart."""
    return " ".join(one_line(text).split())[:MOST_TEAM_CHARS].rstrip()
