"""Time in which the server itself stood still (suspended, stopped, swapping) is nobody's delay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from coordinator.containment import contained
from coordinator.state import Lease, Step, TaskRun
from coordinator.turn import Turn


def forgive(turn: Turn, seconds: float) -> None:
    """Move every deadline on by so long: what clients said meanwhile may still wait to be heard."""
    for run in list(turn.farm.live.values()):
        if run.step is not None or run.late or run.ahead:
            contained(turn, run, _forgive_in, run, seconds)


def _forgive_in(turn: Turn, run: TaskRun, seconds: float) -> None:
    _forgive_leases(run, seconds)
    if run.step is not None:
        _forgive_step(run.step, seconds, turn.now)


def _forgive_leases(run: TaskRun, seconds: float) -> None:
    books: Iterable[dict[str, Lease]] = (run.late, run.ahead, run.step.leases if run.step else {})
    for book in books:
        for lease in book.values():
            lease.deadline += seconds
            lease.began_at += seconds
            lease.computing_at += seconds
            lease.uploading_at += seconds
            lease.grown_at += seconds
            lease.record = replace(lease.record, expires_at=lease.record.expires_at + seconds)


def _forgive_step(step: Step, seconds: float, now: float) -> None:
    step.collect_since = min(step.collect_since + seconds, now)
    step.waiting = [
        replace(part, reserved_until=part.reserved_until + seconds) if part.reserved_until else part
        for part in step.waiting
    ]
