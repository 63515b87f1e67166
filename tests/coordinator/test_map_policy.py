"""The sizes of a map's parts: by measured speed, within the bounds of an output's blob, ever smaller at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.follows import Follows
from coordinator.in_flight import StepParts
from coordinator.map_policy import TRIPS_OF_A_PART, ItemsOnce, Measure, items_for
from coordinator.policies import policy_of
from protocol.assignments import Kind
from protocol.maps import MAX_PART_BYTES, MAX_PART_ITEMS, MapPlan
from protocol.recipe import Recipe

PLENTY = 10**9
figures = st.floats(0, 1e12)


def test_a_map_is_collected_part_by_part() -> None:
    policy = policy_of(Recipe(epochs=1), Kind.MAP)
    assert policy == ItemsOnce(Recipe(epochs=1))
    assert policy.title(0) == "map"
    assert policy.scale(3) == 1.0
    assert policy.when_arrived(StepParts()) is Follows.KEEP
    assert policy.at_longest_time(StepParts()) is Follows.FAIL
    assert not policy.wants_ahead(0, StepParts(), StepParts())


def test_a_client_that_nobody_has_measured_begins_with_a_batch() -> None:
    assert items_for(MapPlan(), Measure(), PLENTY, 1) == 1
    assert items_for(MapPlan(batch_items=32), Measure(), PLENTY, 1) == 32
    assert items_for(MapPlan(batch_items=32), Measure(), 7, 1) == 7


def test_a_part_lasts_for_part_seconds() -> None:
    assert items_for(MapPlan(part_seconds=2.0), Measure(items_per_second=50.0), PLENTY, 4) == 100
    assert items_for(MapPlan(part_seconds=2.0), Measure(items_per_second=0.1), PLENTY, 4) == 1, "one takes 10 s"
    assert items_for(MapPlan(part_seconds=2.0, batch_items=8), Measure(items_per_second=50.0), PLENTY, 1) == 96


def test_over_a_slow_link_parts_are_longer() -> None:
    slow = Measure(items_per_second=10.0, round_trip=0.5)
    assert items_for(MapPlan(part_seconds=2.0), slow, PLENTY, 1) == 10 * 0.5 * TRIPS_OF_A_PART


def test_a_part_that_was_asked_for_is_not_measured() -> None:
    assert items_for(MapPlan(part_items=7), Measure(items_per_second=1e6), PLENTY, 1) == 7
    assert items_for(MapPlan(part_items=7), Measure(), 3, 1) == 3


def test_towards_the_end_nobody_gets_more_than_half_of_an_equal_share() -> None:
    assert items_for(MapPlan(), Measure(items_per_second=1e6), 800, 4) == 100


def test_large_outputs_make_small_parts() -> None:
    measure = Measure(items_per_second=1e6, item_bytes=MAX_PART_BYTES / 32)
    assert items_for(MapPlan(), measure, PLENTY, 1) == 2


@given(
    st.builds(
        lambda batch, batches, seconds: MapPlan(
            part_items=None if batches is None else batch * batches, part_seconds=seconds, batch_items=batch
        ),
        st.integers(1, 1000),
        st.none() | st.integers(1, 1000),
        st.floats(0.001, 3600),
    ),
    st.builds(Measure, items_per_second=figures, item_bytes=figures, round_trip=st.floats(0, 1e6)),
    st.integers(1, PLENTY),
    st.integers(0, 10**6),
)
def test_a_part_has_an_item_and_no_more_than_are_left(plan: MapPlan, measure: Measure, left: int, clients: int) -> None:
    items = items_for(plan, measure, left, clients)
    assert 1 <= items <= left
    assert items <= max(MAX_PART_ITEMS, plan.batch_items) * 1.5
