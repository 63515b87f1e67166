"""The circuit breaker: closed, open, half-open, and what people see of it."""

from __future__ import annotations

from coordinator.breaker import Breaker, BreakerState
from protocol.messages import Scope
from protocol.retry import RetryPolicy
from tests.coordinator.farm_simulation import Simulation, spec

POLICY = RetryPolicy(first_seconds=30.0, longest_seconds=100.0)


def test_it_opens_at_the_threshold_and_lets_one_probe_through_later() -> None:
    breaker = Breaker()
    assert [breaker.failed(task, 0.0, 3, POLICY) for task in ("a", "b", "a")] == [False, False, True]
    assert breaker.state(29.0) is BreakerState.OPEN
    assert not breaker.allows(29.0, held=0).value
    assert breaker.state(31.0) is BreakerState.HALF_OPEN
    assert breaker.allows(31.0, held=0).value
    assert not breaker.allows(31.0, held=1).value


def test_a_failed_probe_opens_it_for_longer_and_a_good_one_closes_it() -> None:
    breaker = Breaker()
    for task in ("a", "b", "c"):
        breaker.failed(task, 0.0, 3, POLICY)
    assert breaker.failed("a", 31.0, 3, POLICY)
    assert breaker.open_until == 91.0
    assert breaker.succeeded()
    assert breaker.state(92.0) is BreakerState.CLOSED
    assert not breaker.failed("a", 93.0, 3, POLICY)
    assert not breaker.succeeded()


def test_no_single_task_opens_it_and_what_was_a_tasks_fault_is_taken_back() -> None:
    breaker = Breaker()
    assert not any(breaker.failed("a", 0.0, 3, POLICY) for _ in range(20))
    breaker.forgive("a")
    assert not breaker.failed("b", 0.0, 3, POLICY)
    assert not breaker.failed("c", 0.0, 3, POLICY)
    assert breaker.failed("b", 0.0, 3, POLICY)


def test_a_client_that_keeps_failing_gets_no_work_until_its_probe_succeeds() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec())
    farm.submit(spec(), "t2")
    while farm.coordinator.client_views(farm.now)[0].breaker == "closed":
        if ada.held:
            farm.fail(ada, Scope.ELSEWHERE)
        farm.tick(1)
    assert any(e.kind == "breaker_opened" for e in farm.ledger.events)
    view = farm.coordinator.client_views(farm.now)[0]
    assert view.breaker == "open"
    assert "its breaker is open after 5 failures in a row" in view.reason
    assert "its breaker is open" in farm.view().why
    while not ada.held:
        farm.tick(1)
    assert farm.coordinator.client_views(farm.now)[0].breaker == "half-open"
    farm.deliver(ada)
    assert farm.coordinator.client_views(farm.now)[0].breaker == "closed"
    assert any(e.kind == "breaker_closed" for e in farm.ledger.events)


def test_the_researchers_errors_do_not_trip_it() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    for i in range(8):
        farm.submit(spec(), f"t{i}")
        farm.fail(ada, Scope.NOBODY)
    assert farm.coordinator.client_views(farm.now)[0].breaker == "closed"
