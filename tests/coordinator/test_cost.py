"""What an event costs does not grow with clients and tasks that it does not concern: operations are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from coordinator.engine import Coordinator
from coordinator.events import (
    Action,
    ClientBeat,
    ClientConnected,
    ClientLost,
    ClientReady,
    Event,
    ResultArrived,
    TaskAction,
    TaskSubmitted,
    Tick,
)
from coordinator.planning import by_affinity
from coordinator.records import SampleRange, Snapshot
from coordinator.settings import CoordinatorSettings
from protocol.assignments import AssignmentProgress, Phase
from protocol.recipe import Requirements
from protocol.resources import Load
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

NOW = 1_000.0
NOBODY = Requirements(tags=("quantum",))
TRAINS = Requirements(tags=("trains",))


def calls_of(work: Callable[[], object]) -> int:
    """Count the Python functions that are called, and the lines that are run, in doing something."""
    count = 0

    def trace(_frame: object, _event: str, _argument: object) -> Callable[..., object]:
        nonlocal count
        count += 1
        return trace

    measuring = sys.gettrace()  # coverage's, when the suite is measured
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(measuring)
    return count


class Farm:
    """One client that trains a task, beside many that are idle, tasks that wait, and tasks that have ended."""

    def __init__(self, idle: int = 0, waiting: int = 0, ended: int = 0, waiting_needs: Requirements = NOBODY) -> None:
        self.sim = Simulation()
        coordinator = self.sim.coordinator
        for number in range(ended):
            self.sim.submit(spec(), f"e{number}")
            self.sim.handle(TaskAction(f"e{number}", Action.CANCEL))
        for number in range(waiting):
            coordinator.handle(TaskSubmitted(f"w{number}", spec(requirements=waiting_needs)), NOW)
        for number in range(idle):
            self.join(coordinator, f"idle{number}")
        self.sim.now = NOW
        self.worker = self.sim.join(Volunteer("worker", tags=("trains",)))
        self.sim.submit(spec(rounds=1000, requirements=TRAINS), "task")
        self.coordinator = coordinator

    @staticmethod
    def join(coordinator: Coordinator, name: str, slots: int = 1) -> None:
        coordinator.handle(ClientConnected(Volunteer(name, incarnation=1).hello(), "hash", 1), NOW)
        coordinator.handle(ClientReady(f"id-{name}", 1, slots), NOW)

    def cost(self, event: Event) -> int:
        return calls_of(lambda: self.coordinator.handle(event, NOW))

    def costs(self) -> dict[str, int]:
        """Return what each kind of event costs, in lines of Python."""
        held = self.worker.held[0]
        here = ("id-worker", self.worker.incarnation)
        progress = AssignmentProgress(
            assignment_id=held.assignment_id, fence=held.fence, phase=Phase.COMPUTING, samples_done=1
        )
        hello = Volunteer("new", incarnation=1).hello()
        result = self.sim.result(self.worker, held)
        assert isinstance(result, ResultArrived)
        return {
            "beat": self.cost(ClientBeat(*here, Load(), (progress,))),
            "join": self.cost(ClientConnected(hello, "hash", 1)),
            "ready": self.cost(ClientReady("id-new", 1, 1)),
            "ready again": self.cost(ClientReady("id-new", 1, 1)),
            "result": self.cost(result),
            "loss": self.cost(ClientLost("id-new", 1, "gone")),
        }


def test_idle_clients_cost_an_event_nothing() -> None:
    few, many = Farm(idle=5, waiting=1).costs(), Farm(idle=500, waiting=1).costs()
    assert {name: many[name] - few[name] for name in few if many[name] > few[name] + 20} == {}


def test_tasks_that_have_ended_cost_an_event_nothing() -> None:
    few, many = Farm(ended=2).costs(), Farm(ended=300).costs()
    assert {name: many[name] - few[name] for name in few if many[name] > few[name] + 20} == {}


def test_tasks_that_wait_for_other_machines_cost_an_event_nothing() -> None:
    few, many = Farm(waiting=2).costs(), Farm(waiting=200).costs()
    assert {name: many[name] - few[name] for name in few if many[name] > few[name] + 20} == {}


def test_a_tick_does_not_look_at_clients() -> None:
    few, many = Farm(idle=5, waiting=3), Farm(idle=500, waiting=3)
    few.cost(Tick()), many.cost(Tick())
    assert many.cost(Tick()) < few.cost(Tick()) + 50


def test_a_round_that_waits_for_its_clients_to_come_back_costs_a_tick_nothing() -> None:
    farms = [Farm(idle=idle) for idle in (5, 500)]
    for farm in farms:
        farm.coordinator.handle(ClientLost("id-worker", farm.worker.incarnation, "gone"), NOW)
        farm.cost(Tick())
        assert farm.coordinator._farm.tasks["task"].step is not None
    few, many = (farm.cost(Tick()) for farm in farms)
    assert many < few + 50


def test_a_client_that_meets_no_needs_is_told_apart_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    farm, made = Farm(waiting=20), []
    monkeypatch.setattr("coordinator.eligibility.sized", lambda size: made.append(size) or "much")
    farm.join(farm.coordinator, "new")
    assert not made


def test_a_ready_that_changes_nothing_is_no_event() -> None:
    farm = Farm(idle=1)
    farm.join(farm.coordinator, "new")
    assert farm.cost(ClientReady("id-new", 1, 1)) < 200


def test_reasons_are_made_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("coordinator.verdict.nobody", lambda *_: made.append("nobody") or "nobody can")
    farm = Farm(idle=50, waiting=20)
    farm.cost(Tick())
    assert not made
    assert farm.coordinator.why("w0", NOW) == "nobody can"


def test_ended_tasks_are_in_no_loop() -> None:
    farm = Farm(ended=20)
    assert set(farm.coordinator._farm.tasks) == set(farm.coordinator._farm.live) == {"task"}
    assert all("e" not in pool.runs for pool in farm.coordinator._farm.pools._pools.values())
    farm.coordinator.handle(TaskAction("task", Action.CANCEL), NOW)
    assert not farm.coordinator._farm.live
    assert not farm.coordinator._farm.pools._pools


def opening_cost(clients: int) -> int:
    numbers = iter(range(10**6))
    coordinator = Coordinator(Snapshot(), CoordinatorSettings(), lambda: f"a{next(numbers)}")
    for number in range(clients):
        Farm.join(coordinator, f"c{number}")
    task = spec(shards=(10,) * clients, round_samples=10 * clients, rounds=2)
    return calls_of(lambda: coordinator.handle(TaskSubmitted("t", task), NOW))


def test_to_open_a_round_costs_as_much_for_each_client_however_many_there_are() -> None:
    few, many = opening_cost(50) / 50, opening_cost(400) / 400
    assert many < 1.2 * few
    assert many < 550, "it is on the event loop: a thousand clients are to have their parts within 20 ms"


def result_cost_after_a_restart(clients: int) -> int:
    """Count the calls of one result while all other clients may still come back with theirs."""
    farm = Simulation()
    for number in range(clients):
        farm.join(f"c{number}")
    farm.submit(spec(shards=(10,) * clients, round_samples=10 * clients, rounds=2))
    ada = farm.volunteers["c0"]
    assign = ada.held[0]
    farm.accept(ada, assign)
    farm.restart()
    farm.join(ada)
    return calls_of(lambda: farm.coordinator.handle(farm.result(ada, assign), farm.now))


def test_a_result_does_not_look_through_what_may_come_back() -> None:
    few, many = result_cost_after_a_restart(10), result_cost_after_a_restart(200)
    assert (many - few) / 190 <= 3, "but once through the parts that wait, for one that is kept for nobody"


def test_affinity_is_near_linear() -> None:
    def cost(clients: int) -> int:
        ranges = [SampleRange(n, 0, 10) for n in range(clients)]
        sizes = {f"c{n}": 10 for n in range(clients)}
        held = {f"c{n}": {clients - 1 - n, (n + 7) % clients} for n in range(clients)}
        return calls_of(lambda: by_affinity(ranges, sizes, held))

    assert cost(800) / 800 < 1.5 * cost(100) / 100


def test_many_clients_still_get_the_shards_that_they_hold() -> None:
    clients = 100
    ranges = [SampleRange(n, 0, 10) for n in range(clients)]
    held = {f"c{n}": {(n * 37) % clients} for n in range(clients)}
    order = by_affinity(ranges, dict.fromkeys(held, 10), held)
    hits = sum(place in held[client] for place, client in enumerate(order))
    assert hits == clients


def test_a_task_that_gathers_very_many_clients_costs_each_of_them_little() -> None:
    def last_joins(clients: int) -> tuple[int, Coordinator]:
        coordinator = Coordinator(Snapshot(), CoordinatorSettings(), iter(map(str, range(10**6))).__next__)
        coordinator.handle(TaskSubmitted("t", spec(min_clients=clients, round_samples=10 * clients)), NOW)
        for number in range(clients - 2):
            Farm.join(coordinator, f"c{number}")
        return calls_of(lambda: Farm.join(coordinator, "almost the last")), coordinator

    few, _ = last_joins(20)
    many, coordinator = last_joins(800)
    assert many < 3 * few
    Farm.join(coordinator, "the last")
    assert coordinator.task_view("t", NOW).clients > 1, "it opens as soon as it has enough"
