from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle import AssignmentState
from coordinator.records import AssignmentRecord, SampleRange
from coordinator.shard_audit import shard_books
from protocol.assignments import Kind
from protocol.tasks import BlobRef, Shard, Split

BLOB = BlobRef(digest="0" * 64, size_bytes=1)
SHARDS = (
    Shard(index=0, samples=10, blob=BLOB),
    Shard(index=1, samples=20, blob=BLOB),
    Shard(index=2, samples=5, blob=BLOB, split=Split.HOLDOUT),
)


def assignment(*ranges: SampleRange, epoch: int = 0, counted: bool = True, kind: Kind = Kind.TRAIN) -> AssignmentRecord:
    return AssignmentRecord(
        assignment_id="a",
        task_id="t",
        round=0,
        attempt=1,
        kind=kind,
        epoch=epoch,
        client_id="c",
        incarnation=1,
        fence=1,
        state=AssignmentState.DELIVERED,
        ranges=ranges,
        position=0,
        samples=sum(r.samples for r in ranges),
        offered_at=0.0,
        expires_at=1.0,
        counted=counted,
    )


def test_a_balanced_epoch_counts_each_sample_once() -> None:
    books = shard_books(
        SHARDS,
        [assignment(SampleRange(0, 0, 10), SampleRange(1, 0, 5)), assignment(SampleRange(1, 5, 20))],
    )
    assert [(b.shard, b.samples, b.counted_samples, b.repeated_samples) for b in books] == [
        (0, 10, 10, 0),
        (1, 20, 20, 0),
    ]


def test_what_is_not_counted_leaves_no_trace() -> None:
    assert (
        shard_books(
            SHARDS,
            [
                assignment(SampleRange(0, 0, 10), counted=False),
                assignment(SampleRange(2, 0, 5), kind=Kind.EVALUATE),
            ],
        )
        == []
    )


def test_a_shard_that_nobody_touched_still_has_its_book() -> None:
    books = shard_books(SHARDS, [assignment(SampleRange(0, 3, 6), epoch=2)])
    assert [(b.epoch, b.shard, b.counted_samples) for b in books] == [(2, 0, 3), (2, 1, 0)]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 9), st.integers(1, 10)).map(
            lambda t: (t[0], SampleRange(t[1], t[2], max(t[3], t[2] + 1)))
        ),
        max_size=12,
    )
)
def test_books_equal_counting_sample_by_sample(parts: list[tuple[int, SampleRange]]) -> None:
    counts = Counter((e, r.shard, i) for e, r in parts for i in range(r.start, r.stop))
    for book in shard_books(SHARDS, [assignment(r, epoch=e) for e, r in parts]):
        mine = [n for (e, s, _), n in counts.items() if (e, s) == (book.epoch, book.shard)]
        assert (book.counted_samples, book.repeated_samples) == (len(mine), sum(mine) - len(mine))
