"""An item that ends executors: it is found, it is kept as failed, and the map goes on without it."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from coordinator.events import Action, TaskAction
from coordinator.lifecycle import TaskState
from protocol.assignments import Assign, Cancel
from tests.coordinator.farm_simulation import Simulation, Volunteer
from tests.coordinator.test_maps import at_work, outputs

SEGFAULT = "the executor was killed by SIGSEGV"


def work_on(
    farm: Simulation,
    clients: Collection[Volunteer],
    poison: Collection[int] = (),
    code: str = "killed",
    steps: int = 300,
) -> list[Assign]:
    """Let clients work until the task ends; executors end on these items. Returns the parts that ended one."""
    deadly: list[Assign] = []
    for _ in range(steps):
        if farm.task().state in {TaskState.COMPLETED, TaskState.FAILED}:
            break
        for client in clients:
            if not client.held:
                continue
            part = client.held[0]
            if any(part.position <= item < part.position + part.samples for item in poison):
                deadly.append(farm.fail(client, message=SEGFAULT, code=code))
            else:
                farm.deliver(client)
        farm.tick(1.0)
    return deadly


def places(farm: Simulation) -> list[int]:
    """The items that have an output or failed, in order."""
    done = [item for start, samples in outputs(farm) for item in range(start, start + samples)]
    return sorted(done + [item.position for item in farm.ledger.failed_items_of("t1")])


@pytest.mark.parametrize("code", ["killed", "exited", "bad_report", "out_of_memory", "over_bound", "hung"])
def test_an_item_that_ends_executors_fails_alone(code: str) -> None:
    farm, clients = at_work("ada", "bob", items=(40,), part_items=20)
    deadly = work_on(farm, clients, {13}, code)
    (failed,) = farm.ledger.failed_items_of("t1")
    assert (failed.position, failed.error) == (13, SEGFAULT)
    assert set(failed.clients) <= {"ada", "bob"}, "bob alone, where ada rests before she has delivered anything"
    assert places(farm) == list(range(40))
    task = farm.task()
    assert (task.state, task.samples_done, task.items_failed) == (TaskState.COMPLETED, 40, 1)
    assert task.reason == "mapped 40 items, of which 1 failed"
    assert len(deadly) <= 7, "halving takes log2(20) deaths, and one more"
    assert len({part.assignment_id for part in deadly}) == len(deadly)


def test_the_only_client_has_to_say_it_twice() -> None:
    farm, clients = at_work("ada", items=(8,), part_items=8)
    deadly = work_on(farm, clients, {7})
    assert [part.samples for part in deadly] == [8, 4, 2, 1, 1]
    assert [item.clients for item in farm.ledger.failed_items_of("t1")] == [("ada",)]


def test_one_of_two_clients_can_not_blame_an_item() -> None:
    """A machine whose executors always end is at fault itself: others do its parts."""
    farm, (ada, bob) = at_work("ada", "bob", items=(40,), part_items=4)
    work_on(farm, [ada], range(40), steps=20)
    work_on(farm, [bob])
    assert farm.task().items_failed == 0
    assert places(farm) == list(range(40))


def test_who_died_of_an_item_is_not_given_it_again_while_others_can_try() -> None:
    farm, (ada, bob) = at_work("ada", "bob", items=(12,), part_items=1)
    assert ada.held[0].position == 0
    farm.deliver(bob)
    farm.fail(ada, message=SEGFAULT, code="killed")
    for _ in range(8):
        while ada.held and ada.held[0].position:
            farm.deliver(ada)
        assert not ada.held
        farm.tick(1.0)
    assert farm.task().samples_done == 10, "all but this one, and the one that bob has"
    dead = [one for one in farm.ledger.assignments.values() if one.position == 0 and one.client_id == "id-ada"]
    assert len(dead) == 1


def test_a_batch_is_cut_only_once_it_is_at_fault_and_then_item_by_item() -> None:
    farm, clients = at_work("ada", "bob", items=(16,), part_items=8, batch_items=4)
    deadly = work_on(farm, clients, {5})
    sizes = [part.samples for part in deadly]
    assert (sizes[0], sizes[1:-2].count(4), sizes[-2:]) == (8, len(sizes) - 3, [1, 1])
    assert len([part for part in deadly if part.samples == 4]) >= 2, "one death says nothing of a batch"
    assert [(one, some) for one, some in outputs(farm) if 4 <= one < 8] == [(4, 1), (6, 1), (7, 1)]
    assert places(farm) == list(range(16))


def test_a_map_that_stops_at_errors_fails_by_that_item() -> None:
    farm, clients = at_work("ada", "bob", items=(20,), part_items=10, on_error="stop")
    work_on(farm, clients, {3})
    assert farm.task().state is TaskState.FAILED
    assert str(farm.task().error).startswith(f"item 3 ends its executor: {SEGFAULT} (on ")
    farm.handle(TaskAction("t1", Action.RETRY))
    work_on(farm, clients)
    assert places(farm) == list(range(20))
    assert farm.task().items_failed == 0


def test_code_that_always_ends_its_executor_fails_the_task() -> None:
    farm, clients = at_work("ada", "bob", items=(1000,), part_items=10)
    deadly = work_on(farm, clients, range(1000))
    assert farm.task().state is TaskState.FAILED
    assert "ends its executor on one item after another" in str(farm.task().error)
    assert len(deadly) < 40


def test_narrowing_survives_a_pause_and_failed_items_a_restart() -> None:
    farm, clients = at_work("ada", items=(16,), part_items=16)
    work_on(farm, clients, {2}, steps=8)
    farm.handle(TaskAction("t1", Action.PAUSE))
    farm.handle(TaskAction("t1", Action.RESUME))
    deadly = work_on(farm, clients, {2, 11}, steps=14)
    assert deadly[0].samples < 8
    farm.restart()
    farm.join(clients[0])
    work_on(farm, clients, {2, 11})
    assert [item.position for item in farm.ledger.failed_items_of("t1")] == [2, 11]
    assert places(farm) == list(range(16))
    assert farm.task().items_failed == 2


def test_who_comes_back_with_a_part_that_was_cut_comes_too_late() -> None:
    farm, (ada, bob) = at_work("ada", "bob", items=(8,), part_items=8)
    part = ada.held[0]
    farm.leave(ada, crashed=False)
    for _ in range(40):
        if bob.held:
            break
        farm.tick(5.0)
    assert bob.held[0].position == part.position
    farm.fail(bob, code="killed", message=SEGFAULT)
    farm.join(ada)
    farm.handle(farm.result(ada, part))
    assert outputs(farm) == []
    assert any(isinstance(message, Cancel) or getattr(message, "counted", None) is False for message in ada.messages)
    work_on(farm, [bob, ada])
    assert places(farm) == list(range(8))


@pytest.mark.parametrize(("told", "counted"), [(2.0, 2), (99.0, 6), (-1.0, 0), (float("nan"), 0), (float("inf"), 0)])
def test_items_for_which_the_function_raised_are_counted_as_failed(told: float, counted: int) -> None:
    farm, (ada,) = at_work("ada")
    assign = ada.held[0]
    result = farm.result(ada, assign)
    fields = {name: getattr(result, name) for name in result.__slots__} | {"metrics": {"failed_items": told}}
    farm.handle(type(result)(**fields))
    assert farm.task().items_failed == counted
