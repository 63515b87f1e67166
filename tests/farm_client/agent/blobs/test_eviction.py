"""The rule by which a full cache chooses what goes, by its laws, and beside the rule of the least recently used."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.blobs.eviction import HALF_LIFE_SECONDS, Esteem, cheapest_first, usual_speed

seconds = st.floats(0, 1e6)
standings = st.builds(
    Esteem,
    size_bytes=st.integers(0, 10**12),
    used_at=seconds,
    fetch_seconds=st.none() | st.floats(0, 1e5),
    popularity=st.floats(0, 1e3),
    base=st.floats(0, 1e3),
)
by_name = st.dictionaries(st.text(max_size=3), standings, max_size=8)


@given(by_name, seconds)
def test_everything_has_its_place_and_the_least_worth_is_first(known: dict[str, Esteem], now: float) -> None:
    order = cheapest_first(known, now)
    assert sorted(name for name, _ in order) == sorted(known)
    assert [worth for _, worth in order] == sorted(worth for _, worth in order)


@given(standings, seconds, st.floats(0, 1e3))
def test_a_use_makes_nothing_worth_less(one: Esteem, passed: float, inflation: float) -> None:
    now = one.used_at + passed
    before = one.worth(now, 1e6)
    one.use(now, inflation)
    assert one.worth(now, 1e6) >= before
    assert one.base >= inflation
    assert one.popularity >= 1


@given(standings, seconds, seconds)
def test_what_is_not_used_is_worth_less_with_time_and_never_less_than_its_base(
    one: Esteem, early: float, late: float
) -> None:
    early, late = sorted((early, late))
    assert one.base <= one.worth(one.used_at + late, 1e6) <= one.worth(one.used_at + early, 1e6)


@given(st.integers(1, 10**9), st.floats(0, 1e4), st.floats(0, 1e4))
def test_of_two_alike_the_one_that_took_longer_stays(size: int, one: float, other: float) -> None:
    quick, slow = sorted((one, other))
    order = cheapest_first({"slow": Esteem(size, 5.0, slow), "quick": Esteem(size, 4.0, quick)}, 10.0)
    assert order[0][0] == "quick"


def test_among_equals_the_longest_unused_goes_first() -> None:
    order = cheapest_first({"new": Esteem(0, 9.0, 0.0), "old": Esteem(0, 8.0, 0.0)}, 10.0)
    assert [name for name, _ in order] == ["old", "new"]


def test_what_was_used_often_is_overtaken_in_time() -> None:
    ended = Esteem(100, 0.0, 1.0, popularity=50.0)
    order = cheapest_first({"ended": ended, "runs": Esteem(100, 7 * HALF_LIFE_SECONDS, 1.0)}, 7 * HALF_LIFE_SECONDS)
    assert order[0][0] == "ended"


def test_what_nobody_measured_counts_as_it_would_come_by_the_usual_speed() -> None:
    known = [Esteem(1000, 0.0, 1.0), Esteem(3000, 0.0, 1.0), Esteem(10**9, 0.0)]
    assert usual_speed(known) == 2000
    assert usual_speed([]) == usual_speed([Esteem(0, 0.0, 1.0)]) == 10e6
    one = Esteem(4000, 0.0)
    assert one.worth(0.0, 2000.0) == pytest.approx(2.05 / 4000)


def test_a_clock_that_went_back_makes_nothing_more_popular() -> None:
    assert Esteem(1, used_at=100.0, popularity=3.0).faded(50.0) == 3.0


def trace(seed: int) -> Iterator[tuple[str, int, float, float]]:
    """Yield name, size, seconds to fetch and the time of each blob that a client's assignments use.

    Shards of two tasks come again each epoch, one of them from a slow farm; each round has weights of its own, which
    are used twice and never again; small files of code and base are needed at each start of an executor.
    """
    draw, now = random.Random(seed), 0.0
    for turn in range(1500):
        now += 20.0
        shard = draw.randrange(12)
        slow = draw.random() < 0.3
        name, speed = (f"slow{shard % 6}", 2e6) if slow else (f"shard{shard}", 50e6)
        yield name, 60_000_000, 60_000_000 / speed, now
        for _ in range(2):
            yield f"weights{turn // 3}", 40_000_000, 0.8, now
        if draw.random() < 0.2:
            yield f"code{draw.randrange(4)}", 50_000, 0.15, now


def seconds_waited(seed: int, *, oldest_only: bool) -> float:
    held: dict[str, Esteem] = {}
    waited = inflation = 0.0
    for name, size, cost, now in trace(seed):
        if name in held:
            held[name].use(now, inflation)
            continue
        waited += cost
        while held and sum(one.size_bytes for one in held.values()) + size > 600_000_000:
            if oldest_only:
                gone = min(held, key=lambda each: held[each].used_at)
            else:
                gone, worth = cheapest_first(held, now)[0]
                inflation = max(inflation, worth)
            del held[gone]
        held[name] = Esteem(size, now, cost, base=inflation)
    return waited


@pytest.mark.parametrize("seed", range(4))
def test_on_a_clients_trace_it_waits_less_than_the_least_recently_used_rule(seed: int) -> None:
    assert seconds_waited(seed, oldest_only=False) < 0.3 * seconds_waited(seed, oldest_only=True)
