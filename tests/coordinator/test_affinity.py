"""Shards go where they are: the order of clients along a round, and what they may fetch beforehand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.planning import by_affinity
from coordinator.records import SampleRange
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec

RANGES = tuple(SampleRange(shard, 0, 10) for shard in range(4))


def test_each_part_goes_to_a_client_that_holds_its_shards() -> None:
    sizes = {"ada": 20, "bob": 20}
    assert by_affinity(RANGES, sizes, {"ada": {2, 3}, "bob": {0, 1}}) == ["bob", "ada"]
    assert by_affinity(RANGES, sizes, {"ada": {0, 1}, "bob": {2, 3}}) == ["ada", "bob"]


def test_without_shards_the_order_is_as_it_was() -> None:
    assert by_affinity(RANGES, {"ada": 5, "bob": 30, "eve": 5}, {"ada": (), "bob": (), "eve": ()}) == [
        "ada",
        "bob",
        "eve",
    ]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.randoms())
def test_it_is_an_order_of_all_clients(counts: list[int], rng) -> None:
    total = sum(counts)
    sizes = {f"c{i}": n for i, n in enumerate(counts)}
    held = {c: {s for s in range(total) if rng.random() < 0.5} for c in sizes}
    order = by_affinity([SampleRange(s, 0, 1) for s in range(total)], sizes, held)
    assert sorted(order) == sorted(sizes)


def test_a_client_that_came_back_gets_the_shards_that_it_holds() -> None:
    farm = Simulation()
    farm.join(Volunteer("ada", cached=(blob("shard3").digest, blob("shard2").digest)))
    farm.join(Volunteer("bob"))
    farm.submit(spec(shards=(10, 10, 10, 10), rounds=1, round_samples=40))
    got = {v.name: {s.shard.index for s in v.held[0].slices} for v in farm.volunteers.values()}
    order = [r.shard for r in farm.ledger.assignments["a1"].ranges + farm.ledger.assignments["a2"].ranges]
    hits = len(got["ada"] & {2, 3})
    assert hits >= len(set(order[:2]) & {2, 3}) or hits >= len(set(order[2:]) & {2, 3})


def test_an_assignment_names_the_shards_of_the_next_round_that_the_client_lacks() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(10,) * 20, rounds=3, round_samples=80))  # a round is a stripe of eight shards
    first = ada.held[0]
    own = {s.shard.blob.digest for s in first.slices}
    next_ones = {ref.digest for ref in first.prefetch}
    assert len(next_ones) == 8
    assert not own & next_ones
    farm.deliver(ada)
    assert {s.shard.blob.digest for s in ada.held[0].slices} == next_ones


def test_what_a_client_holds_is_not_named() -> None:
    farm = Simulation()
    everything = tuple(blob(f"shard{i}").digest for i in range(20))
    ada = farm.join(Volunteer("ada", cached=everything))
    farm.submit(spec(shards=(10,) * 20, rounds=3, round_samples=80))
    assert ada.held[0].prefetch == ()
