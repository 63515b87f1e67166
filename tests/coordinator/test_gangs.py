"""A task that outranks others and needs several clients gets them, as they come free; and nobody waits for nothing."""

from __future__ import annotations

import pytest

from coordinator.events import Action, TaskAction
from coordinator.lifecycle import TaskState
from protocol.recipe import Requirements
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


def busy_farm(singles: int = 3, clients: int = 3) -> Simulation:
    """A farm whose clients each work on a task of priority 5 that takes one."""
    farm = Simulation()
    for number in range(singles):
        farm.submit(spec(name=f"single{number}", rounds=200, max_clients=1), f"s{number}")
    for number in range(clients):
        farm.join(f"c{number}")
    return farm


def works_on(farm: Simulation) -> list[str]:
    return sorted(a.task.task_id for v in farm.volunteers.values() for a in v.held)


def turn_by_turn(farm: Simulation, steps: int) -> None:
    """Each client in turn finishes what it holds; a second passes, and the farm ticks."""
    names = sorted(farm.volunteers)
    for step in range(steps):
        volunteer = farm.volunteers[names[step % len(names)]]
        if volunteer.held:
            farm.deliver(volunteer)
        farm.tick(1.0)


def test_a_task_of_higher_priority_gets_three_clients_although_each_is_busy_at_any_time() -> None:
    farm = busy_farm()
    farm.submit(spec(name="gang", rounds=1, min_clients=3, priority=9), "gang")
    farm.deliver(farm.volunteers["c0"])
    farm.tick()
    assert not farm.volunteers["c0"].held
    assert "waits for 3 free clients: 1 are free, 2 are busy" in farm.view("gang").why
    single = next(r for r in ("s0", "s1", "s2") if farm.coordinator._farm.tasks[r].step is None)
    assert "1 are kept for gang (priority 9), which has 1 of 3" in farm.view(single).why
    farm.deliver(farm.volunteers["c1"])
    farm.tick()
    farm.deliver(farm.volunteers["c2"])
    assert works_on(farm) == ["gang", "gang", "gang"]
    for name in ("c0", "c1", "c2"):
        farm.deliver(farm.volunteers[name])
    assert farm.task("gang").state is TaskState.COMPLETED
    farm.tick()
    assert works_on(farm) == ["s0", "s1", "s2"]


def test_what_outranks_does_not_wait_for_a_quantum_to_end() -> None:
    farm = busy_farm(1, 1)
    farm.submit(spec(name="urgent", rounds=1, priority=6), "urgent")
    farm.deliver(farm.volunteers["c0"])
    assert works_on(farm) == ["urgent"]


def test_clients_are_not_kept_for_a_task_that_can_never_have_enough() -> None:
    farm = busy_farm()
    farm.submit(spec(name="gang", rounds=1, min_clients=4, priority=9), "gang")
    turn_by_turn(farm, 9)
    assert works_on(farm) == ["s0", "s1", "s2"]
    assert "waits for 4 free clients" in farm.view("gang").why


@pytest.mark.parametrize("ending", [Action.CANCEL, Action.PAUSE])
def test_clients_that_were_kept_go_back_when_the_task_is_stopped(ending: Action) -> None:
    farm = busy_farm()
    farm.submit(spec(name="gang", rounds=1, min_clients=3, priority=9), "gang")
    farm.deliver(farm.volunteers["c0"])
    farm.tick(5.0)
    assert not farm.volunteers["c0"].held
    farm.handle(TaskAction("gang", ending))
    assert farm.volunteers["c0"].held


def test_a_client_that_leaves_gives_those_back_that_are_now_too_few() -> None:
    farm = busy_farm()
    farm.submit(spec(name="gang", rounds=1, min_clients=3, priority=9), "gang")
    farm.deliver(farm.volunteers["c0"])
    farm.tick(5.0)
    farm.leave(farm.volunteers["c2"])
    farm.tick(0.5)
    assert farm.volunteers["c0"].held


def test_two_of_them_do_not_block_each_other() -> None:
    """Both need the client in the middle, and each could keep the others for ever."""
    farm = busy_farm(5, 5)
    for name, clients in (("left", ("c0", "c1", "c2")), ("right", ("c2", "c3", "c4"))):
        needs = Requirements(clients=clients)
        farm.submit(spec(name=name, rounds=1, min_clients=3, priority=9, requirements=needs), name)
    turn_by_turn(farm, 60)
    assert farm.task("left").state is TaskState.COMPLETED
    assert farm.task("right").state is TaskState.COMPLETED
    assert len(set(works_on(farm))) == 5, "all five singles have their clients back"


def test_one_that_needs_what_a_higher_one_holds_keeps_nobody_from_work() -> None:
    farm = Simulation()
    farm.submit(spec(name="first", rounds=500, priority=9, requirements=Requirements(clients=("c0",))), "first")
    farm.submit(spec(name="gang", rounds=1, min_clients=2, priority=8), "gang")
    farm.submit(spec(name="single", rounds=500), "single")
    farm.join("c0"), farm.join("c1")
    farm.tick(5.0)
    assert [a.task.task_id for a in farm.volunteers["c1"].held] == ["single"]


def test_one_of_equal_priority_gets_its_clients_once_it_has_waited_long() -> None:
    farm = busy_farm()
    farm.submit(spec(name="gang", rounds=1, min_clients=3), "gang")
    turn_by_turn(farm, 200)
    assert farm.task("gang").state is TaskState.COMPLETED
    assert len(set(works_on(farm))) == 3


def test_warming_up_is_not_called_busy() -> None:
    farm = Simulation()
    farm.submit(spec(min_clients=2, gather_seconds=0.0))
    farm.join(Volunteer("ada", slots=0))
    farm.join(Volunteer("bob", slots=0))
    assert "waits for 2 free clients: 0 are free, 0 are busy, 2 warm up" in farm.view().why
