"""What always holds of the books of credit: they are the sum of the assignments that committed rounds contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from coordinator.credit import entry_of
from coordinator.records import AssignmentRecord, CreditEntry
from protocol.assignments import Kind

Key = tuple[str, str, str, int, str]


def worth(entries: Iterable[CreditEntry]) -> Counter[Key]:
    """Add up samples and FLOPs by client, team, task, day and what they are; nothing that is 0."""
    sums: Counter[Key] = Counter()
    for entry in entries:
        key = (entry.client_id, entry.team, entry.task_id, entry.day)
        sums[*key, "assignments"] += entry.assignments
        sums[*key, "samples"] += entry.samples
        sums[*key, "measured samples"] += entry.measured_samples
        sums[*key, "FLOPs"] += entry.all_flops
    return Counter({key: amount for key, amount in sums.items() if amount})


def worth_of_counted(assignments: Iterable[AssignmentRecord]) -> Counter[Key]:
    """Return the same of what is counted."""
    return worth(entry_of(a) for a in assignments if a.counted and a.kind in {Kind.TRAIN, Kind.MAP})
