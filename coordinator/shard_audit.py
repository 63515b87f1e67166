"""The audit of shards: how often each sample was counted, worked out from the counted assignments alone.

They are an audit: nothing here knows how the rounds were planned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from coordinator.records import AssignmentRecord
from protocol.assignments import Kind
from protocol.rest import ShardBook
from protocol.tasks import Shard, Split


def shard_books(shards: Iterable[Shard], assignments: Iterable[AssignmentRecord]) -> list[ShardBook]:
    """Return one book for each training shard in each epoch that any counted assignment touched, of a map too.

    ``counted_samples`` are distinct samples, ``repeated_samples`` those counted more than once (each repeat counts).
    Sorted by epoch, then shard. An assignment that is not counted, or only evaluates, leaves no trace.
    """
    spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    epochs: set[int] = set()
    for assignment in assignments:
        if not assignment.counted or assignment.kind not in {Kind.TRAIN, Kind.MAP}:
            continue
        epochs.add(assignment.epoch)
        for part in assignment.ranges:
            spans[assignment.epoch, part.shard].append((part.start, part.stop))
    training = [s for s in shards if s.split is Split.TRAIN]
    return [_book(epoch, shard, spans[epoch, shard.index]) for epoch in sorted(epochs) for shard in training]


def _book(epoch: int, shard: Shard, spans: list[tuple[int, int]]) -> ShardBook:
    distinct, reached = 0, 0
    for start, stop in sorted(spans):
        distinct += max(stop - max(start, reached), 0)
        reached = max(reached, stop)
    total = sum(stop - start for start, stop in spans)
    return ShardBook(
        epoch=epoch,
        shard=shard.index,
        samples=shard.samples,
        counted_samples=distinct,
        repeated_samples=total - distinct,
    )
