"""Which shards a client has, and which it is likely to need in the next round."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.epoch import take
from coordinator.planning import Line
from coordinator.records import AssignmentRecord
from coordinator.state import ClientState, Step, TaskRun
from protocol.tasks import BlobRef


def held_shards(run: TaskRun, client: ClientState) -> Collection[int]:
    """Return the indices of the task's shards that the client is known to hold; none where there are no files."""
    if not client.cached:
        return ()
    shards = run.shards_by_digest()
    held = client.cached & shards.keys()
    return {index for digest in held for index in shards[digest]}


def likely_next(run: TaskRun, client: ClientState, record: AssignmentRecord, stripe_shards: int) -> tuple[BlobRef, ...]:
    """Return the shards of the next round's part that is in the same place as this one, which the client lacks.

    Who trains what is decided when that round opens; with the same clients it is the same part again.
    """
    step = run.step
    if step is None or not step.policy.brings_updates or run.record.spec.dataset.kind != "files":
        return ()
    start = record.position % max(step.samples, 1)
    upcoming = _upcoming(run, step, stripe_shards).between(start, start + record.samples)
    if not upcoming:
        return ()
    shards, others = run.record.spec.dataset.shards, {}
    for index in upcoming:
        blob = shards[index].blob
        if blob is not None and blob.digest not in client.cached:
            others[blob.digest] = blob
    for own in record.ranges:
        if (blob := shards[own.shard].blob) is not None:
            others.pop(blob.digest, None)
    return tuple(others.values())[:256]


def _upcoming(run: TaskRun, step: Step, stripe_shards: int) -> Line:
    """Return what the next round is likely to be, worked out once for all parts of this one."""
    if step.upcoming is None or step.upcoming[0] != step.next_cursor:
        step.upcoming = (step.next_cursor, Line(take(run.order(), step.next_cursor, step.samples, stripe_shards)))
    return step.upcoming[1]
