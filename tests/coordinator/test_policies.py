"""What each collection policy answers, from a recipe and from where the parts of a step are."""

from __future__ import annotations

import pytest

from coordinator.follows import Follows
from coordinator.in_flight import Home, Lease, Part, Stage, StepParts
from coordinator.lifecycle import AssignmentState
from coordinator.policies import Evaluation, LateUpdates, Pipelining, Policy, Synchronous, policy_of
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
    for policy in (Synchronous, LateUpdates, Pipelining, Evaluation):
        assert policy.lets_finish == policy.counts_late
