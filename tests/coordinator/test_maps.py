"""Maps: parts are cut from a cursor, each output counts once and in its place, and nothing is lost or repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import Action, ResultArrived, TaskAction
from coordinator.lifecycle import TaskState
from coordinator.maps import part_between, ranges_between
from coordinator.records import SampleRange
from protocol.assignments import Ack, Kind
from protocol.maps import MapPlan
from protocol.messages import Scope
from protocol.recipe import Recipe
from protocol.tasks import Dataset, Shard, TaskSpec
from protocol.versions import MAP_ITEMS
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec


def map_of(items: tuple[int, ...] = (10, 10), **plan: object) -> TaskSpec:
    recipe = Recipe(epochs=1, gather_seconds=0.0)
    return spec(shards=items).model_copy(update={"map": MapPlan.model_validate(plan), "recipe": recipe})


def volunteer(name: str, **changes: object) -> Volunteer:
    return Volunteer(name, features=(MAP_ITEMS,), **changes)  # type: ignore[arg-type]  # its fields


def outputs(farm: Simulation) -> list[tuple[int, int]]:
    return [(part.position, part.samples) for part in farm.ledger.outputs_of("t1")]


def at_work(*names: str, items: tuple[int, ...] = (10, 10), **plan: object) -> tuple[Simulation, list[Volunteer]]:
    farm = Simulation()
    clients = [farm.join(volunteer(name)) for name in names]
    farm.submit(map_of(items, **({"part_items": 6} | plan)))
    return farm, clients


def is_whole(farm: Simulation, items: int) -> bool:
    ends = [0]
    for position, samples in outputs(farm):
        if position != ends[-1]:
            return False
        ends.append(position + samples)
    return ends[-1] == items


def test_all_items_have_an_output_once_and_the_task_is_complete() -> None:
    farm, (ada, bob) = at_work("ada", "bob")
    first, second = ada.held[0], bob.held[0]
    assert (first.kind, first.position, first.samples) == (Kind.MAP, 0, 6)
    assert (second.position, second.samples) == (6, 6)
    assert [(s.shard.index, s.start, s.stop) for s in second.slices] == [(0, 6, 10), (1, 0, 2)]
    assert first.task.map == MapPlan(part_items=6)
    assert first.task.pipeline
    farm.run()
    assert outputs(farm) == [(0, 6), (6, 6), (12, 6), (18, 2)]
    task = farm.task()
    assert (task.state, task.reason, task.samples_done) == (TaskState.COMPLETED, "mapped 20 items", 20)
    assert farm.view().state == "completed"
    assert all(a.counted for a in farm.ledger.assignments.values())
    assert {assign.update for assign in farm.ledger.assignments.values()} != {None}


def test_an_output_is_acknowledged_once_it_is_kept() -> None:
    farm, (ada,) = at_work("ada")
    first = farm.deliver(ada)
    acks = [m for m in ada.messages if isinstance(m, Ack)]
    assert [(ack.assignment_id, ack.counted) for ack in acks] == [(first.assignment_id, True)]
    assert farm.task().cursor == 6


def test_what_comes_before_is_still_owed() -> None:
    farm, (_ada, bob) = at_work("ada", "bob")
    farm.deliver(bob)
    assert outputs(farm) == [(6, 6)]
    assert (farm.task().cursor, farm.task().leftover) == (12, (SampleRange(0, 0, 6),))


def test_a_map_names_what_is_done_and_who_works() -> None:
    farm, (ada,) = at_work("ada")
    farm.deliver(ada)
    assert farm.view().why == "map: 6 of 20 items done, 1 client at work"
    farm.handle(TaskAction("t1", Action.PAUSE))
    assert "continues it from item 6" in farm.view().why


def test_a_repeat_counts_for_nothing() -> None:
    farm, (ada,) = at_work("ada")
    assign = ada.held[0]
    farm.deliver(ada)
    farm.handle(farm.result(ada, assign))
    assert outputs(farm) == [(0, 6)]
    assert farm.task().samples_done == 6


def test_a_restart_goes_on_with_what_is_missing() -> None:
    farm, (ada, bob) = at_work("ada", "bob")
    farm.deliver(bob)
    farm.restart()
    farm.join(bob)
    farm.run()
    assert (0, 6) not in outputs(farm), "ada's part is kept for her for a while"
    farm.join(ada)
    farm.run()
    assert is_whole(farm, 20)
    assert farm.task().state is TaskState.COMPLETED


def test_what_was_finished_while_the_server_was_gone_counts() -> None:
    farm, (ada, _bob) = at_work("ada", "bob")
    assign = ada.held.popleft()
    ada.outbox[assign.assignment_id] = (assign, 1.0, 1.0)
    farm.restart()
    farm.join(ada)
    assert farm.ledger.assignments[assign.assignment_id].counted
    assert outputs(farm) == [(0, 6)]


def test_parts_over_shards_survive_a_restart() -> None:
    farm, (ada, bob) = at_work("ada", "bob", items=(3, 3, 3, 3, 3), part_items=4)
    farm.deliver(bob)
    farm.restart()
    for client in (bob, ada):
        farm.join(client)
        farm.run()
    assert is_whole(farm, 15)


def test_a_paused_map_goes_on_where_it_was() -> None:
    farm, (ada,) = at_work("ada")
    farm.deliver(ada)
    farm.handle(TaskAction("t1", Action.PAUSE))
    assert not ada.held
    farm.handle(TaskAction("t1", Action.RESUME))
    assert ada.held[0].position == 6
    farm.run()
    assert is_whole(farm, 20)


def test_a_cancelled_map_keeps_what_it_has() -> None:
    farm, (ada,) = at_work("ada")
    farm.deliver(ada)
    farm.handle(TaskAction("t1", Action.CANCEL))
    assert farm.task().state is TaskState.CANCELLED
    assert outputs(farm) == [(0, 6)]


def test_a_part_of_a_client_that_is_gone_goes_to_another_one() -> None:
    farm, (ada, bob) = at_work("ada", "bob")
    farm.leave(ada)
    farm.run()
    farm.tick()
    farm.run()
    assert is_whole(farm, 20), bob


def test_an_item_that_fails_everywhere_ends_the_task_though_others_go_on() -> None:
    """Other parts that arrive in between say nothing of the one that fails."""
    farm, clients = at_work("ada", "bob", "cid", items=(40,), part_items=1)
    for _ in range(200):
        if farm.task().state is TaskState.FAILED:
            break
        for client in clients:
            if client.held and client.held[0].position == 0:
                farm.fail(client, Scope.NOBODY, "item 0: ValueError: no", code="task_code")
            elif client.held:
                farm.deliver(client)
        farm.tick(5.0)
    assert farm.task().state is TaskState.FAILED
    assert "item 0: ValueError: no" in str(farm.task().error)


def test_a_failed_map_that_is_retried_goes_on() -> None:
    farm, (ada,) = at_work("ada")
    farm.deliver(ada)
    while farm.task().state is not TaskState.FAILED:
        if ada.held:
            farm.fail(ada, Scope.NOBODY, "item 6: ValueError: no", code="task_code")
        farm.tick(10.0)
    farm.handle(TaskAction("t1", Action.RETRY))
    for _ in range(20):
        farm.tick(10.0)
        farm.run()
    assert is_whole(farm, 20)


def test_a_result_without_outputs_is_refused() -> None:
    farm, (ada,) = at_work("ada")
    assign = ada.held[0]
    bare = farm.result(ada, assign)
    fields = {name: getattr(bare, name) for name in bare.__slots__} | {"output": None}
    farm.handle(ResultArrived(**fields))
    assert outputs(farm) == []
    assert "no outputs" in str(farm.ledger.assignments[assign.assignment_id].error)


def test_a_client_that_can_not_map_gets_none_of_it() -> None:
    farm = Simulation()
    old = farm.join("old")
    farm.submit(map_of())
    assert not old.held
    assert "cannot run a function over items" in farm.view().why


def test_parts_follow_measured_speed() -> None:
    farm, (ada,) = at_work("ada", items=(100_000,), part_items=None, part_seconds=2.0)
    assert ada.held[0].samples == 1
    farm.deliver(ada, seconds=0.01)
    assert ada.held[0].samples == 200


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_items_are_where_their_shards_have_them(sizes: list[int], data: st.DataObject) -> None:
    shards = tuple(Shard(index=i, samples=n, blob=blob(str(i))) for i, n in enumerate(sizes))
    dataset = Dataset(kind="files", shards=shards)
    rows = [(shard.index, row) for shard in shards for row in range(shard.samples)]
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    found = [(one.shard, row) for one in ranges_between(dataset, start, stop) for row in range(one.start, one.stop)]
    assert found == rows[start:stop]
    assert part_between(dataset, start, stop).samples == stop - start


@pytest.mark.parametrize("fault", [{"part_items": 0}, {"part_seconds": 0}, {"on_error": "perhaps"}])
def test_a_plan_that_can_not_be_is_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        MapPlan.model_validate(fault)
