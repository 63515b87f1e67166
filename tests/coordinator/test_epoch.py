"""Laws of the epoch's order: every sample once, in any batch size, whatever the shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.epoch import drawn, epoch_order, take
from coordinator.planning import count_samples, cut, shares
from protocol.tasks import Shard

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def shards(counts: list[int]) -> list[Shard]:
    return [Shard(index=i, samples=n) for i, n in enumerate(counts)]


@given(sizes, st.integers(0, 5))
def test_an_epoch_visits_each_shard_once(counts: list[int], epoch: int) -> None:
    order = epoch_order(shards(counts), seed=3, epoch=epoch)
    assert sorted(s.index for s in order) == list(range(len(counts)))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    many = shards([1] * 30)
    orders = {tuple(s.index for s in epoch_order(many, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@given(sizes, st.data())
def test_drawn_grows_by_one_sample_at_a_time(counts: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(counts) - 1))
    before, after = drawn(counts, count), drawn(counts, count + 1)
    assert sum(before) == count
    assert sum(b - a for a, b in zip(before, after, strict=True)) == 1
    assert all(a <= b <= n for a, b, n in zip(before, after, counts, strict=True))


@given(sizes, st.integers(1, 70), st.integers(1, 9))
def test_rounds_of_any_size_cover_the_epoch_exactly_once(counts: list[int], batch: int, stripe: int) -> None:
    order = epoch_order(shards(counts), seed=1, epoch=0)
    seen: list[tuple[int, int]] = []
    for cursor in range(0, sum(counts), batch):
        ranges = take(order, cursor, batch, stripe)
        assert count_samples(ranges) == min(batch, sum(counts) - cursor)
        seen += [(r.shard, row) for r in ranges for row in range(r.start, r.stop)]
    assert sorted(seen) == [(i, row) for i, n in enumerate(counts) for row in range(n)]


@given(sizes, st.integers(2, 60))
def test_a_round_mixes_the_shards_of_its_stripe(counts: list[int], batch: int) -> None:
    order = epoch_order(shards(counts), seed=1, epoch=0)
    ranges = take(order, 0, batch, stripe_shards=4)
    assert len({r.shard for r in ranges}) >= min(batch, 4, len(counts))


@given(st.integers(1, 500), st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12))
def test_shares_add_up_and_follow_speed(samples: int, speeds: list[float]) -> None:
    by_client = {f"c{i}": s for i, s in enumerate(speeds)}
    parts = shares(samples, by_client)
    assert sum(parts.values()) == samples
    assert all(n > 0 for n in parts.values())
    for client, n in parts.items():
        assert abs(n - samples * by_client[client] / sum(speeds)) < 1 + 1e-6


@given(st.integers(1, 500), st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12), st.integers(1, 64))
def test_shares_are_whole_batches_but_for_the_last(samples: int, speeds: list[float], quantum: int) -> None:
    parts = list(shares(samples, {f"c{i}": s for i, s in enumerate(speeds)}, quantum).values())
    assert sum(parts) == samples
    assert all(n % quantum == 0 for n in parts[:-1])
    assert parts[-1] >= min(quantum, samples)


@given(sizes, st.data())
def test_cutting_loses_and_doubles_nothing(counts: list[int], data: st.DataObject) -> None:
    ranges = take(shards(counts), 0, sum(counts), 4)
    left, parts = sum(counts), []
    while left:
        parts.append(data.draw(st.integers(1, left)))
        left -= parts[-1]
    pieces = cut(ranges, parts)
    assert [count_samples(p) for p in pieces] == parts
    rows = [(r.shard, row) for piece in pieces for r in piece for row in range(r.start, r.stop)]
    assert rows == [(r.shard, row) for r in ranges for row in range(r.start, r.stop)]
