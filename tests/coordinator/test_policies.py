"""What each collection policy answers, from a recipe and from where the parts of a step are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.follows import Follows
from coordinator.in_flight import Home, Lease, Part, Stage, StepParts
from coordinator.lifecycle import AssignmentState
from coordinator.policies import (
    Buffered,
    Decoupled,
    Evaluation,
    LateUpdates,
    Pipelining,
    Policy,
    SecureCollection,
    Synchronous,
    policy_of,
)
from coordinator.records import AssignmentRecord, SampleRange
from protocol.assignments import Kind
from protocol.recipe import Recipe

HOME = Home(Kind.TRAIN, 3)


def recipe(**fields: object) -> Recipe:
    return Recipe(**{"rounds": 9, "round_samples": 30, "batch_samples": 1, **fields})  # type: ignore[arg-type]


def lease(place: int, samples: int, stage: Stage) -> Lease:
    record = AssignmentRecord(
        assignment_id=f"a{place}",
        task_id="t1",
        round=3,
        attempt=1,
        kind=Kind.TRAIN,
        epoch=0,
        client_id="c1",
        incarnation=1,
        fence=place,
        state=AssignmentState.RUNNING,
        ranges=(SampleRange(0, place, place + samples),),
        position=place,
        samples=samples,
        offered_at=0.0,
        expires_at=1.0,
    )
    return Lease(record, HOME, stage)


def parts(here: int = 0, held: int = 0, waiting: int = 0, late: int = 0) -> StepParts:
    """Return the parts of a round of so many samples each: delivered, held, waiting, and delivered late."""
    found = StepParts(HOME, samples=here + held + waiting)
    if here:
        found.take_in(lease(0, here, Stage.DELIVERED))
    if held:
        found.held["held"] = lease(here, held, Stage.HELD)
    if waiting:
        found.waiting.append(Part(here + held, (), waiting))
    if late:
        found.take_in(lease(found.samples, late, Stage.DELIVERED))
    return found


def test_the_recipe_chooses() -> None:
    assert policy_of(recipe(), Kind.TRAIN) == Synchronous(recipe())
    late = recipe(max_staleness=1)
    assert policy_of(late, Kind.TRAIN) == LateUpdates(late)
    pipelined = recipe(max_staleness=1, pipeline=True)
    assert policy_of(pipelined, Kind.TRAIN) == Pipelining(pipelined)
    assert policy_of(pipelined, Kind.EVALUATE) == Evaluation(pipelined)
    buffered, decoupled = recipe(buffer=2), recipe(quorum_clients=2)
    assert policy_of(buffered, Kind.TRAIN) == Buffered(buffered)
    assert policy_of(decoupled, Kind.TRAIN) == Decoupled(decoupled)
    assert policy_of(decoupled, Kind.EVALUATE) == Evaluation(decoupled)
    secure = recipe(secure_aggregation=True, min_clients=3)
    assert policy_of(secure, Kind.TRAIN) == SecureCollection(secure)
    assert policy_of(secure, Kind.EVALUATE) == Evaluation(secure)


def delivered(*found: tuple[str, float, float]) -> StepParts:
    """Return parts that are here, each with its client, and the seconds when it was given out and when it arrived."""
    result = StepParts(HOME, samples=len(found))
    for place, (client_id, offered_at, delivered_at) in enumerate(found):
        one = lease(place, 1, Stage.DELIVERED)
        times = {"client_id": client_id, "offered_at": offered_at, "delivered_at": delivered_at}
        one.record = replace(one.record, assignment_id=f"{client_id}{place}", **times)  # type: ignore[arg-type]
        result.take_in(one)
    return result


def test_a_buffer_is_full_with_so_many_results_of_whomever() -> None:
    policy = Buffered(recipe(buffer=2))
    one, two = delivered(("a", 0.0, 1.0)), delivered(("a", 0.0, 1.0), ("a", 1.0, 2.0))
    assert (policy.when_arrived(one), policy.when_arrived(two)) == (None, Follows.COMMIT)
    assert (policy.enough_at(one), policy.enough_at(two)) == (None, None)
    assert [policy.at_longest_time(parts) for parts in (StepParts(HOME), one)] == [Follows.FAIL, Follows.COMMIT]


def test_a_secure_sum_waits_for_whoever_may_deliver_and_then_wants_a_majority() -> None:
    policy = SecureCollection(recipe(secure_aggregation=True, min_clients=3))
    two = delivered(("a", 0.0, 1.0), ("b", 0.0, 1.0))
    assert policy.when_arrived(two) is Follows.COMMIT
    two.held["held"] = lease(2, 1, Stage.HELD)
    assert policy.when_arrived(two) is None, "one works on"
    assert policy.at_longest_time(two) is Follows.COMMIT, "two of three"
    del two.held["held"]
    two.dormant["gone"] = lease(2, 1, Stage.DORMANT)
    assert policy.when_arrived(two) is None, "one may come back"
    one = delivered(("a", 0.0, 1.0))
    one.waiting = [Part(1, (), 1), Part(2, (), 1)]
    assert (policy.when_arrived(one), policy.at_longest_time(one)) == (None, Follows.FAIL), "one of three"
    one.waiting = [Part(1, (), 1)]
    assert policy.at_longest_time(one) is Follows.FAIL, "half is no majority"


def test_a_grace_window_begins_when_the_quorum_is_here_and_is_as_long_as_parts_take() -> None:
    policy = Decoupled(recipe(quorum_clients=2, grace=0.5))
    alone = delivered(("a", 0.0, 4.0), ("a", 4.0, 6.0))
    assert (policy.enough_at(alone), policy.when_arrived(alone)) == (None, None)
    both = delivered(("a", 0.0, 4.0), ("a", 4.0, 6.0), ("b", 0.0, 10.0))
    assert policy.enough_at(both) == 10.0 + 0.5 * 4.0, "4, 2 and 10 seconds: the median is 4"
    assert policy.when_arrived(both) is None, "the clock decides"
    three = delivered(("a", 0.0, 4.0), ("b", 0.0, 6.0), ("c", 0.0, 9.0))
    assert policy.enough_at(three) == 6.0 + 0.5 * 6.0, "who comes within the window does not prolong it"


@pytest.mark.parametrize("policy", [Synchronous(recipe()), LateUpdates(recipe()), Pipelining(recipe())])
def test_a_round_is_complete_with_all_of_its_parts(policy: Policy) -> None:
    assert policy.when_arrived(parts(here=30)) is Follows.COMMIT
    assert policy.when_arrived(parts(here=29, held=1)) is None
    assert policy.when_arrived(parts(here=29, waiting=1)) is None


def test_an_over_provisioned_round_has_enough_with_its_samples_and_late_ones_do_not_count_for_that() -> None:
    policy = LateUpdates(recipe(over_provision=0.5, max_staleness=1))
    assert policy.when_arrived(parts(here=30, held=15)) is Follows.COMMIT
    assert policy.when_arrived(parts(here=29, held=16, late=9)) is None


def test_after_its_longest_time_a_round_commits_at_quorum_or_fails() -> None:
    policy = Synchronous(recipe(quorum=0.5))
    assert policy.at_longest_time(parts(here=15, held=15)) is Follows.COMMIT
    assert policy.at_longest_time(parts(here=14, held=16)) is Follows.FAIL
    assert policy.at_longest_time(parts(here=5, held=4)) is Follows.COMMIT, "half of what the epoch has left"
    assert Synchronous(recipe(quorum=0.001)).at_longest_time(parts(held=3)) is Follows.FAIL, "nothing makes no version"


def test_only_late_updates_weigh_less_by_their_staleness() -> None:
    assert [LateUpdates(recipe()).scale(t) for t in (0, 1, 3)] == [1.0, pytest.approx(2**-0.5), 0.5]
    assert Pipelining(recipe()).scale(3) == 0.5
    assert (Synchronous(recipe()).scale(3), Evaluation(recipe()).scale(3)) == (1.0, 1.0)


def test_clients_begin_ahead_once_all_parts_are_out_and_until_a_round_is_given_out() -> None:
    policy = Pipelining(recipe(max_staleness=1, pipeline=True))
    assert policy.wants_ahead(3, parts(held=30), StepParts())
    assert policy.wants_ahead(3, parts(held=30), parts(held=9, here=20))
    assert not policy.wants_ahead(3, parts(held=30), parts(held=10, here=20))
    assert not policy.wants_ahead(3, parts(held=29, waiting=1), StepParts())
    assert not policy.wants_ahead(8, parts(held=30), StepParts()), "after the last round comes nothing"
    for other in (Synchronous(recipe()), LateUpdates(recipe()), Evaluation(recipe())):
        assert not other.wants_ahead(3, parts(held=30), StepParts())


def test_an_evaluation_is_complete_with_all_of_its_parts_only() -> None:
    policy = Evaluation(recipe(over_provision=0.5, quorum=0.1))
    assert policy.when_arrived(parts(here=40, held=1)) is None
    assert policy.when_arrived(parts(here=41)) is Follows.REPORT
    assert policy.at_longest_time(parts(here=40, held=1)) is Follows.SKIP
    assert (policy.title(3), Synchronous(recipe()).title(3)) == ("evaluation of version 3", "round 3")


def test_who_may_finish_is_counted_by_somebody() -> None:
    for policy in (Synchronous, LateUpdates, Pipelining, Buffered, Decoupled, Evaluation):
        assert policy.lets_finish == policy.counts_late
