"""A task leaves the memory once the ledger has its end, and comes back as it was when somebody asks something of it."""

from __future__ import annotations

import gc

import pytest

from coordinator import engine
from coordinator.commands import ConfirmEnd, ForgetTask, Save
from coordinator.events import (
    Action,
    EndConfirmed,
    TaskAction,
    TaskPrioritized,
    TaskRecalled,
    TaskRemoved,
    TaskSubmitted,
)
from coordinator.lifecycle import IllegalTransition, TaskState
from coordinator.state import TaskRun
from protocol.errors import Conflict, NotFound
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


def failed_in_round_two() -> Simulation:
    """A task that failed after two of its rounds, and has left the memory."""
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(max_retries=0, rounds=4))
    farm.deliver(ada)
    farm.deliver(ada)
    farm.fail(ada, Scope.NOBODY, "a mistake in the code")
    assert (farm.task().state, farm.task().version) == (TaskState.FAILED, 2)
    assert not farm.coordinator.holds("t1")
    return farm


def memory_of(farm: Simulation) -> list[object]:
    """All that is kept by task: in the farm, its books, its pools, and its clients."""
    inside = farm.coordinator._farm
    books: list[object] = [*inside.tasks, *inside.live, *inside.leases._of_tasks, *inside.pools._of, *inside.reserved]
    for client in inside.clients.values():
        for learned in (client.serves, client.speeds, client.versions, client.cooldowns, client.failures, client.lacks):
            books += learned
    return books


def test_a_task_that_has_ended_leaves_nothing_in_memory() -> None:
    farm = Simulation()
    farm.submit(spec(rounds=2))
    farm.join("ada"), farm.join("bob")
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert not memory_of(farm)
    assert farm.view().state == "completed"
    assert farm.view().samples_done == 40


def test_memory_does_not_grow_with_tasks_that_have_ended() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    for number in range(50):
        farm.submit(spec(rounds=1, max_retries=0), f"gone{number}")
        farm.deliver(ada) if number % 2 else farm.fail(ada, Scope.NOBODY)
    assert not memory_of(farm)
    assert len(farm.coordinator._farm.leases) == 0
    assert not [one for one in gc.get_objects() if type(one) is TaskRun and one.task_id.startswith("gone")]


def test_a_task_stays_until_its_end_is_durable() -> None:
    farm = Simulation()
    farm.submit(spec())
    commands = farm.coordinator.handle(TaskAction("t1", Action.CANCEL), farm.now)
    assert isinstance(commands[0], Save)
    confirm = commands[-1]
    assert isinstance(confirm, ConfirmEnd)
    assert farm.coordinator.task_view("t1", farm.now).state == "cancelled"
    assert farm.coordinator.handle(EndConfirmed(confirm.record), farm.now) == [ForgetTask("t1")]
    with pytest.raises(NotFound):
        farm.coordinator.task_view("t1", farm.now)
    assert farm.coordinator.handle(EndConfirmed(confirm.record), farm.now) == []


def test_a_task_that_was_retried_meanwhile_stays() -> None:
    farm = failed_in_round_two()
    coordinator, checkpoint = farm.coordinator, farm.ledger.checkpoints["t1", 2]
    recalled = TaskRecalled(farm.task(), checkpoint, TaskPrioritized("t1", 7))
    first = coordinator.handle(recalled, farm.now)[-1]
    assert isinstance(first, ConfirmEnd)
    coordinator.handle(TaskAction("t1", Action.RETRY), farm.now)
    assert coordinator.handle(EndConfirmed(first.record), farm.now) == []
    assert coordinator.holds("t1")


def test_an_older_end_does_not_stand_for_a_newer_one() -> None:
    farm = failed_in_round_two()
    recalled = TaskRecalled(farm.task(), farm.ledger.checkpoints["t1", 2], TaskPrioritized("t1", 7))
    first = farm.coordinator.handle(recalled, farm.now)[-1]
    farm.coordinator.handle(TaskPrioritized("t1", 8), farm.now)
    assert isinstance(first, ConfirmEnd)
    farm.coordinator.handle(EndConfirmed(first.record), farm.now)
    assert farm.coordinator.holds("t1"), "the ledger has another priority yet"


def test_what_is_in_flight_keeps_a_task_in_memory() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec())
    run = farm.coordinator._farm.tasks["t1"]
    assert not run.is_at_rest
    with pytest.raises(RuntimeError, match="in flight"):
        farm.coordinator._farm.evict(run)
    assert farm.coordinator.holds("t1")


def test_a_failed_task_goes_on_from_its_checkpoint() -> None:
    farm = failed_in_round_two()
    attempts = [r.attempt for r in farm.ledger.rounds.values()]
    farm.handle(TaskAction("t1", Action.RETRY))
    run = farm.coordinator._farm.tasks["t1"]
    assert (run.checkpoint, run.record.version) == (farm.ledger.checkpoints["t1", 2], 2)
    assert run.attempt > max(attempts), "an answer about a round of before is none about one of now"
    farm.run()
    assert (farm.task().state, farm.task().version) == (TaskState.COMPLETED, 4)
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert not memory_of(farm)


def test_a_retried_task_is_owed_nothing_for_the_time_before() -> None:
    farm = failed_in_round_two()
    farm.submit(spec(rounds=50), "other")
    for _ in range(3):
        farm.deliver(farm.volunteers["ada"], seconds=100.0)
    spent = farm.coordinator._farm.tasks["other"].spent.read(farm.now)
    assert spent > 0
    farm.handle(TaskAction("t1", Action.RETRY))
    assert farm.coordinator._farm.tasks["t1"].spent.read(farm.now) == spent


@pytest.mark.parametrize("action", [Action.PAUSE, Action.RESUME, Action.CANCEL])
def test_what_is_refused_leaves_the_task_in_the_ledger(action: Action) -> None:
    farm = failed_in_round_two()
    before = farm.task()
    with pytest.raises(IllegalTransition):
        farm.handle(TaskAction("t1", action))
    assert farm.task() == before
    assert not memory_of(farm)


def test_what_breaks_while_a_task_is_recalled_leaves_it_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = failed_in_round_two()
    before = farm.task()

    def broken(*_arguments: object) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "REQUESTS", {**engine.REQUESTS, TaskAction: broken})
        with pytest.raises(RuntimeError, match="planted"):
            farm.handle(TaskAction("t1", Action.RETRY))
    assert farm.task() == before
    assert not memory_of(farm)


def test_the_priority_of_a_completed_task_is_refused_and_of_a_failed_one_kept() -> None:
    farm = failed_in_round_two()
    farm.handle(TaskPrioritized("t1", 8))
    assert farm.task().priority == 8
    farm.handle(TaskAction("t1", Action.RETRY))
    farm.run()
    with pytest.raises(Conflict):
        farm.handle(TaskPrioritized("t1", 3))
    assert not memory_of(farm)


def test_a_task_that_has_left_the_memory_can_be_removed() -> None:
    farm = failed_in_round_two()
    commands = farm.handle(TaskRemoved("t1"))
    assert ForgetTask("t1") in commands
    assert farm.ledger.events[-1].kind == "task_removed"
    assert not memory_of(farm)


def test_a_start_loads_what_has_not_ended() -> None:
    farm = failed_in_round_two()
    farm.submit(spec(rounds=50), "trains")
    farm.restart()
    assert [view.task_id for view in farm.coordinator.task_views(farm.now)] == ["trains"]
    farm.join("ada")
    farm.handle(TaskAction("t1", Action.RETRY))
    assert farm.coordinator._farm.tasks["t1"].checkpoint.round == 2


def test_a_client_forgets_what_it_learned_of_tasks_that_ended_while_it_was_away() -> None:
    farm = Simulation()
    ada, bob = farm.join(Volunteer("ada")), farm.join(Volunteer("bob"))
    farm.submit(spec(rounds=2))
    farm.deliver(ada), farm.deliver(bob)
    farm.leave(bob)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert "t1" in farm.coordinator._farm.clients["id-bob"].speeds
    farm.join(bob)
    assert not memory_of(farm)


def test_who_asks_later_finds_the_task_that_is_there() -> None:
    farm = failed_in_round_two()
    request = TaskRecalled(farm.task(), farm.ledger.checkpoints["t1", 2], TaskAction("t1", Action.RETRY))
    farm.handle(request)
    with pytest.raises(IllegalTransition):
        farm.handle(request)
    assert farm.coordinator.holds("t1")
    with pytest.raises(Conflict):
        farm.coordinator.handle(TaskSubmitted("t1", spec()), farm.now)
