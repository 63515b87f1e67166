"""A task whose clients all leave, again and again: it waits for them, and longer each time that nothing came of it."""

from __future__ import annotations

import pytest

from coordinator.lifecycle import TaskState
from coordinator.settings import CoordinatorSettings
from protocol.messages import Scope
from protocol.retry import RetryPolicy
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

LONGEST = RetryPolicy(first_seconds=4.0, longest_seconds=10.0)


@pytest.fixture
def farm() -> Simulation:
    """A farm whose waits are the longest that the policy allows."""
    farm = Simulation(settings=CoordinatorSettings(desertion_retry=LONGEST))
    farm.rng.random = lambda: 1.0  # type: ignore[method-assign]
    farm.coordinator = farm._start(farm.ledger.snapshot())
    farm.join("ada")
    farm.submit(spec())
    return farm


def come_and_go(farm: Simulation, name: str = "ada") -> Volunteer:
    """Let the client take what it is offered, and die; it is back after a second."""
    volunteer = farm.volunteers[name]
    farm.accept(volunteer, volunteer.held[0])
    farm.leave(volunteer)
    farm.tick(1.0)
    return farm.join(name)


def test_the_first_time_work_goes_on_as_soon_as_one_is_back(farm: Simulation) -> None:
    assert come_and_go(farm).held
    assert farm.task().not_before == 0.0


def test_each_further_time_the_wait_grows_up_to_its_longest(farm: Simulation) -> None:
    ada = come_and_go(farm)
    waits = []
    for _ in range(4):
        farm.accept(ada, ada.held[0])
        farm.leave(ada)
        left_at = farm.now
        farm.join(ada)
        assert not ada.held
        assert farm.task().state is TaskState.PENDING
        waits.append(farm.task().not_before - left_at)
        farm.tick(waits[-1] - 0.1)
        assert not ada.held
        farm.tick(0.2)
        assert ada.held
    assert waits == pytest.approx([4.0, 8.0, 10.0, 10.0])


def test_it_says_why_it_waits(farm: Simulation) -> None:
    come_and_go(farm)
    come_and_go(farm)
    line = "begins again in 3 s (all of its clients left, 2 times in a row without a result)"
    assert farm.view().why == line
    assert farm.coordinator.why("t1", farm.now) == line


def test_nobody_s_return_is_needed_to_begin(farm: Simulation) -> None:
    come_and_go(farm)
    farm.leave(come_and_go(farm))
    assert "no client is connected" in farm.view().why
    farm.tick(20.0)
    assert farm.join("bob").held


def test_a_result_in_between_ends_the_row(farm: Simulation) -> None:
    for _ in range(3):
        ada = come_and_go(farm)
        assert ada.held
        farm.deliver(ada)


def test_what_a_client_still_holds_goes_on_at_once(farm: Simulation) -> None:
    """Its connection was cut, twice: the work is there, and waiting would help nobody."""
    come_and_go(farm)
    ada = farm.volunteers["ada"]
    for _ in range(2):
        farm.accept(ada, ada.held[0])
        farm.leave(ada, crashed=False)
        farm.join(ada)
        assert ada.held
        assert farm.task().state is TaskState.RUNNING
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_a_client_that_rests_has_not_left(farm: Simulation) -> None:
    """It failed and is left alone for a while; that wait is long enough."""
    ada = farm.volunteers["ada"]
    for _ in range(3):
        farm.fail(ada, Scope.ELSEWHERE)
        assert farm.task().state is TaskState.PENDING
        assert farm.task().not_before == 0.0
        while not ada.held:
            farm.tick(1.0)


def test_the_rest_of_an_open_round_waits_too(farm: Simulation) -> None:
    """Half of the round is here, and stays; the other half is not given at once to one that comes and goes."""
    ada, bob = farm.volunteers["ada"], farm.join("bob")
    farm.deliver(ada)
    farm.deliver(ada)
    assert bob.held
    farm.leave(ada)
    come_and_go(farm, "bob")
    assert bob.held
    farm.leave(bob)
    farm.join("bob")
    assert not bob.held
    assert "all of its clients left, 2 times in a row" in farm.view().why
    farm.tick(4.1)
    assert bob.held
    version = farm.task().version
    farm.deliver(bob)
    assert farm.task().version == version + 1
