"""Time in which the server itself stood still (suspended, stopped, swapping) is nobody's delay."""

from __future__ import annotations

from dataclasses import replace

from coordinator.containment import contained
from coordinator.state import TaskRun
from coordinator.turn import Turn


def forgive(turn: Turn, seconds: float) -> None:
    """Move every deadline on by so long: what clients said meanwhile may still wait to be heard."""
    for run in list(turn.farm.live.values()):
        if run.step is not None or run.leases.any_held:
            contained(turn, run, _forgive_in, run, seconds)


def _forgive_in(turn: Turn, run: TaskRun, seconds: float) -> None:
    for lease in run.leases.held():
        lease.deadline += seconds
        lease.began_at += seconds
        lease.computing_at += seconds
        lease.uploading_at += seconds
        lease.grown_at += seconds
        lease.record = replace(lease.record, expires_at=lease.record.expires_at + seconds)
    if (step := run.step) is not None:
        step.collect_since = min(step.collect_since + seconds, turn.now)
        turn.farm.leases.postpone(step.parts, seconds)
