"""Stragglers: whether a lease makes progress, and when another client may begin the same part.

A report renews a lease only if something grew. And no report moves the lease's end: then its part is offered to a free
client as well, and whoever delivers first counts. So neither a machine that is far slower than was thought nor a client
that only says how busy it is holds a round up for long, and no work is thrown away before somebody was faster.
Source: Dean and Ghemawat, "MapReduce", OSDI 2004, section 3.6 (backup tasks).
"""

from __future__ import annotations

from math import inf
from statistics import median
from types import MappingProxyType
from typing import Final

from coordinator.in_flight import Lease
from coordinator.settings import CoordinatorSettings
from coordinator.state import Step
from protocol.assignments import AssignmentProgress, Phase

_ORDER: Final = MappingProxyType({phase: place for place, phase in enumerate(Phase)})


def take_in(lease: Lease, progress: AssignmentProgress, now: float, settings: CoordinatorSettings) -> bool:
    """Take in a report; returns whether it renews the lease.

    It does if the phase is a later one, more samples are done, or more bytes moved, than in any report before it; and
    for ``upload_wait_seconds`` if the farm told the client once more to wait with its upload.
    """
    best = lease.progress
    done = min(progress.samples_done, lease.record.samples)
    if best is None or _ORDER[progress.phase] > _ORDER[best.phase]:
        so_far = {} if best is None else {"waits": max(progress.waits, best.waits)}
        done = max(done, best.samples_done if best else 0)
        lease.progress = progress.model_copy(update={"samples_done": done, **so_far})
        lease.grown_at = now
        if progress.phase in (Phase.COMPUTING, Phase.UPLOADING):
            lease.computing_at = min(lease.computing_at, now)
        if progress.phase is Phase.UPLOADING:
            lease.uploading_at = now
        return True
    moved = max(best.fetched_bytes, progress.fetched_bytes) if progress.phase is best.phase else best.fetched_bytes
    grew = done > best.samples_done or moved > best.fetched_bytes
    waits = progress.waits > best.waits and now - lease.uploading_at <= settings.upload_wait_seconds
    lease.progress = best.model_copy(
        update={
            "samples_done": max(done, best.samples_done),
            "fetched_bytes": moved,
            "waits": max(progress.waits, best.waits),
        }
    )
    if grew:
        lease.grown_at = now
    return grew or waits


def gets_on(lease: Lease, now: float, settings: CoordinatorSettings) -> bool:
    """Whether something grew lately."""
    return now - lease.grown_at <= settings.stall_seconds


def usual_seconds(step: Step) -> float | None:
    """Return the median time of the step's parts that are here, if any is."""
    times = [r.delivered_at - r.offered_at for r in step.parts.delivered_records if r.delivered_at is not None]
    return median(times) if times else None


def end_of(
    lease: Lease, usual: float | None, now: float, longest_seconds: float, settings: CoordinatorSettings
) -> float:
    """Return when a free client may begin the same part as well; no report moves it further than this.

    From the client's own measured speed where there is one (``deadline``); else from ``usual``, the median time of
    the step's parts that are here, counted from when it began to compute, with the same factor and grace; else a while.
    """
    stall = settings.stall_seconds
    if lease.is_measured:
        end = lease.deadline
    else:
        grace = min(settings.deadline_grace_seconds, stall / 3)
        allowed = grace + settings.deadline_factor * usual if usual is not None else stall
        end = min(lease.computing_at, lease.began_at + 2 / 3 * stall) + allowed
    if lease.uploading_at < inf:
        moves = lease.grown_at > lease.uploading_at and gets_on(lease, now, settings)
        end = max(end, lease.uploading_at + (stall if moves else stall / 2))
    return min(end, lease.began_at + longest_seconds / 2)
