"""Write-behind: rounds go on while a checkpoint is written, become durable in order, or are undone as one."""

from __future__ import annotations

import pytest

from coordinator import durability
from coordinator.commands import FlushCheckpoint, OpenRound, Save
from coordinator.events import Action, AggregationFailed, TaskAction
from coordinator.lifecycle import TaskState
from coordinator.records import RoundState
from protocol.assignments import Ack, Assign, Kind
from tests.coordinator.farm_simulation import Simulation, blob, spec


def farm_of(**recipe: object) -> Simulation:
    """Two clients, and a task whose first version is durable; from then on the disk writes when the test says so."""
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(shards=(500,), **{"rounds": 12, **recipe}))
    play(farm, 1)
    farm.hold_writes = True
    return farm


def play(farm: Simulation, rounds: int) -> None:
    for _ in range(rounds):
        for name in ("ada", "bob"):
            farm.deliver(farm.volunteers[name])


def in_memory(farm: Simulation) -> int:
    return farm.coordinator._farm.tasks["t1"].record.version


def why(farm: Simulation) -> str:
    return farm.coordinator.why("t1", farm.now)


def test_the_next_round_begins_before_the_version_it_needs_is_durable() -> None:
    farm = farm_of()
    play(farm, 1)
    ada = farm.volunteers["ada"]
    assert (in_memory(farm), farm.task().version, farm.view().round) == (2, 1, 1)
    assert [m.round for m in ada.messages if isinstance(m, Assign)] == [0, 1, 2]
    assert farm.open["t1"][0] == 2
    assert len(ada.outbox) == 1, "nobody is told that it counts"


def test_what_is_durable_is_saved_with_its_books_and_acknowledged() -> None:
    farm = farm_of()
    play(farm, 1)
    farm.log.clear()
    farm.finish_writes()
    assert isinstance(farm.log[0], Save)
    assert [type(c.message) for c in farm.log[1:]] == [Ack, Ack]
    assert (farm.task().version, farm.view().round, farm.task().samples_done) == (2, 2, 40)
    assert ("t1", 2) in farm.ledger.checkpoints
    assert not farm.volunteers["ada"].outbox
    assert farm.ledger.rounds["t1", 2].state is RoundState.OPEN, "what was decided since then is saved too"


def test_a_later_version_makes_those_before_it_durable_in_one_transaction() -> None:
    farm = farm_of()
    play(farm, 4)
    del farm.unwritten[:-1]  # newest wins: the others are never written
    farm.log.clear()
    farm.finish_writes()
    (save,) = [c for c in farm.log if isinstance(c, Save)]
    numbers = {r.number for r in save.records if hasattr(r, "number") and r.state is RoundState.COMMITTED}
    assert numbers == {1, 2, 3, 4}
    assert (farm.task().version, farm.task().samples_done) == (5, 100)
    assert ("t1", 4) not in farm.ledger.checkpoints
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert sum(farm.ledger.counted("t1", 0).values()) == 100


def test_an_earlier_version_becomes_durable_without_those_after_it() -> None:
    farm = farm_of()
    play(farm, 3)
    later = farm.unwritten[1:]
    del farm.unwritten[1:]
    farm.finish_writes()
    assert (in_memory(farm), farm.task().version, farm.task().samples_done) == (4, 2, 40)
    assert {n: r.state for (_, n), r in farm.ledger.rounds.items()}[2] is RoundState.OPEN
    assert len(farm.volunteers["ada"].outbox) == 2
    farm.unwritten += later
    farm.finish_writes()
    assert (farm.task().version, farm.task().samples_done) == (4, 80)


def test_a_restart_goes_back_to_the_last_durable_version_and_counts_everything_once() -> None:
    farm = farm_of(rounds=None, epochs=1)
    play(farm, 2)
    farm.restart()
    farm.hold_writes = False
    assert farm.view().round == 1
    for volunteer in list(farm.volunteers.values()):
        volunteer.held.clear()
        farm.join(volunteer)
    farm.tick(60.0)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert len(farm.ledger.counted("t1", 0)) == 500
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert all(not v.outbox for v in farm.volunteers.values())


def test_the_last_version_is_durable_before_its_task_is_complete() -> None:
    farm = farm_of(rounds=2)
    play(farm, 1)
    assert farm.task().state is TaskState.RUNNING
    assert why(farm) == "version 2 is being written"
    farm.finish_writes()
    assert farm.task().state is TaskState.COMPLETED
    assert ("t1", 2) in farm.ledger.checkpoints


@pytest.mark.parametrize(
    ("recipe", "rounds", "flushed"),
    [
        ({"rounds": 3}, 2, [False, True]),
        ({"keep_every": 3}, 2, [False, True]),
        ({"rounds": 40}, durability.MOST_ROUNDS, [False] * (durability.MOST_ROUNDS - 1) + [True]),
    ],
    ids=["the last", "one that stays", "the most that may be volatile"],
)
def test_the_disk_is_hurried_for_what_the_next_step_waits_for_and_for_nothing_else(recipe, rounds, flushed) -> None:
    farm = farm_of(**recipe)
    found = []
    for _ in range(rounds):
        farm.log.clear()
        play(farm, 1)
        found.append(FlushCheckpoint("t1") in farm.log)
    assert found == flushed


def test_a_version_is_durable_before_it_is_evaluated() -> None:
    farm = Simulation()
    farm.hold_writes = True
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), holdout=(5,), rounds=6, evaluate_every=2))
    farm.deliver(ada)
    farm.deliver(ada)
    assert not ada.held
    del farm.unwritten[0]
    farm.finish_writes()
    assert [assign.kind for assign in ada.held] == ["evaluate"]


def test_a_version_that_stays_is_durable_before_a_later_one_takes_its_place() -> None:
    farm = farm_of(keep_every=3)
    play(farm, 2)
    assert not farm.volunteers["ada"].held
    farm.finish_writes()
    assert ("t1", 3) in farm.ledger.checkpoints
    assert farm.volunteers["ada"].held


def test_memory_is_not_more_than_so_many_rounds_ahead() -> None:
    farm = farm_of(rounds=40, round_samples=2)
    play(farm, durability.MOST_ROUNDS)
    assert not farm.volunteers["ada"].held
    assert why(farm) == "waits for the disk, which has version 1 of 17"
    del farm.unwritten[1:]
    farm.finish_writes()
    assert farm.volunteers["ada"].held


def test_a_disk_that_stalls_stops_the_next_round() -> None:
    farm = farm_of()
    play(farm, 1)
    farm.now += durability.MOST_SECONDS
    play(farm, 1)
    assert not farm.volunteers["ada"].held
    farm.tick()
    assert why(farm) == "waits for the disk, which has version 1 of 3"
    farm.finish_writes()
    assert farm.volunteers["ada"].held
    assert sum(farm.ledger.counted("t1", 0).values()) == 60, "nothing is lost"


@pytest.mark.parametrize("action", [Action.PAUSE, Action.CANCEL])
def test_stopping_goes_back_to_the_last_durable_version(action: Action) -> None:
    farm = farm_of()
    ada = farm.volunteers["ada"]
    play(farm, 2)
    farm.handle(TaskAction("t1", action))
    assert (farm.task().version, farm.view().round, farm.task().samples_done) == (1, 1, 20)
    assert [m.counted for m in ada.messages if isinstance(m, Ack)][-2:] == [False, False]
    assert any(e.kind == "rounds_rolled_back" for e in farm.ledger.events)
    assert not any(r.state is RoundState.OPEN for r in farm.ledger.rounds.values())
    books = farm.task()
    farm.finish_writes()
    assert farm.task() == books, "what was undone is not durable, though the disk has it"


def test_an_assignment_names_the_inner_state_of_its_version_after_a_step_back_too() -> None:
    farm = farm_of(evaluate_every=2)
    play(farm, 1)
    farm.handle(TaskAction("t1", Action.PAUSE))
    farm.handle(TaskAction("t1", Action.RESUME))
    assigned = [m for m in farm.volunteers["ada"].messages if isinstance(m, Assign)]
    states = {m.round: None if m.round == 0 else blob(f"state t1/{m.round}") for m in assigned}
    assert [(m.round, m.inner_state) for m in assigned] == [(n, states[n]) for n in (0, 1, 2, 1)]


def test_an_evaluation_needs_no_inner_state() -> None:
    farm = farm_of(evaluate_every=1, holdout=(8,))
    assigned = [m for v in farm.volunteers.values() for m in v.messages if isinstance(m, Assign)]
    assert {m.kind for m in assigned} == {Kind.TRAIN, Kind.EVALUATE}
    assert not any(m.inner_state for m in assigned if m.kind is Kind.EVALUATE)


def test_a_version_of_the_same_number_that_was_undone_is_not_the_one_that_is_there_now() -> None:
    farm = farm_of()
    play(farm, 1)
    undone = farm.unwritten.pop()
    farm.handle(TaskAction("t1", Action.PAUSE))
    farm.handle(TaskAction("t1", Action.RESUME))
    play(farm, 1)
    farm.handle(undone)
    assert (in_memory(farm), farm.task().version) == (2, 1)
    farm.finish_writes()
    assert farm.task().version == 2


def test_a_failure_of_the_server_rolls_back_and_tries_again() -> None:
    farm = farm_of()
    play(farm, 2)
    number, attempt = farm.open["t1"]
    farm.handle(AggregationFailed("t1", number, attempt, "the disk is full"))
    assert farm.task().state is TaskState.PENDING
    assert farm.task().version == 1
    farm.hold_writes = False
    farm.tick(600.0)
    opened = [c for c in farm.log if isinstance(c, OpenRound)]
    assert opened[-1].checkpoint == farm.ledger.checkpoints["t1", 1], "what is read again is durable"
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
