"""Which shards a client has, and which it is likely to need in the next round."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.epoch import take
from coordinator.planning import cut
from coordinator.records import AssignmentRecord
from coordinator.state import ClientState, TaskRun
from protocol.messages import Kind
from protocol.tasks import BlobRef


def held_shards(run: TaskRun, client: ClientState) -> Collection[int]:
    """Return the indices of the task's shards that the client is known to hold; none where there are no files."""
    if not client.cached:
        return ()
    shards = run.record.spec.dataset.shards
    return {shard.index for shard in shards if shard.blob is not None and shard.blob.digest in client.cached}


def likely_next(run: TaskRun, client: ClientState, record: AssignmentRecord, stripe_shards: int) -> tuple[BlobRef, ...]:
    """Return the shards of the next round's part that is in the same place as this one, which the client lacks.

    Who trains what is decided when that round opens; with the same clients it is the same part again.
    """
    step = run.step
    if record.kind is not Kind.TRAIN or step is None or run.record.spec.dataset.kind != "files":
        return ()
    start = record.position % max(step.samples, 1)
    ranges = take(run.order(), step.next_cursor, start + record.samples, stripe_shards)
    if sum(r.samples for r in ranges) <= start:  # the epoch ends before
        return ()
    part = cut(ranges, [start, sum(r.samples for r in ranges) - start])[1]
    own = {r.shard for r in record.ranges}
    shards = run.record.spec.dataset.shards
    blobs = {b.digest: b for r in part if r.shard not in own and (b := shards[r.shard].blob) is not None}
    return tuple(blob for digest, blob in blobs.items() if digest not in client.cached)[:256]
