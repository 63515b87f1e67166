"""``durable_every``: rounds in memory, made durable as one, or rolled back as one."""

from __future__ import annotations

import pytest

from coordinator.commands import CommitRound, Save
from coordinator.events import Action, AggregationFailed, TaskAction
from coordinator.lifecycle import TaskState
from coordinator.records import RoundState
from protocol.messages import Ack
from protocol.tasks import BlobRef
from tests.coordinator.farm_simulation import Simulation, spec


def farm_of(**recipe: object) -> Simulation:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    recipe = {"rounds": 12, "durable_every": 4, "durable_seconds": 1000.0, **recipe}
    farm.submit(spec(shards=(500,), **recipe))
    play(farm, 1)  # the first one is durable: there was no durable commit before
    return farm


def play(farm: Simulation, rounds: int) -> None:
    for _ in range(rounds):
        for name in ("ada", "bob"):
            farm.deliver(farm.volunteers[name])


def version(farm: Simulation) -> int:
    return farm.view().round


def test_the_books_of_several_rounds_become_durable_in_one_transaction() -> None:
    farm = farm_of()
    play(farm, 3)
    assert (version(farm), farm.task().version) == (4, 1)
    assert ("t1", 4) not in farm.ledger.checkpoints
    farm.log.clear()
    play(farm, 1)
    assert farm.task().version == 5
    (save,) = [c for c in farm.log if isinstance(c, Save) and any(getattr(r, "version", 0) == 5 for r in c.records)]
    numbers = {r.number for r in save.records if hasattr(r, "number") and r.state is RoundState.COMMITTED}
    assert numbers == {1, 2, 3, 4}
    assert farm.task().samples_done == 100
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert sum(farm.ledger.counted("t1", 0).values()) == 100


def test_clients_keep_their_updates_until_they_are_durable() -> None:
    farm = farm_of()
    ada = farm.volunteers["ada"]
    play(farm, 3)
    assert len(ada.outbox) == 3
    play(farm, 1)
    assert not ada.outbox


def test_a_restart_goes_back_to_the_last_durable_round_and_counts_everything_once() -> None:
    farm = farm_of(rounds=None, epochs=1)
    play(farm, 2)
    farm.restart()
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


def test_the_last_round_is_durable() -> None:
    farm = farm_of(rounds=3)
    play(farm, 2)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().version == 3
    assert ("t1", 3) in farm.ledger.checkpoints


def test_time_makes_a_round_durable_too() -> None:
    farm = farm_of(durable_seconds=5.0)
    play(farm, 1)
    assert farm.task().version == 1
    farm.now += 6.0
    play(farm, 1)
    assert farm.task().version == 3


def test_an_evaluated_version_is_durable() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(shards=(200,), holdout=(5,), rounds=6, durable_every=6, durable_seconds=1e6, evaluate_every=3))
    farm.run()
    commits = {c.round + 1: c.durable for c in farm.log if isinstance(c, CommitRound)}
    assert [number for number, durable in commits.items() if durable] == [1, 3, 6]


@pytest.mark.parametrize("action", [Action.PAUSE, Action.CANCEL])
def test_stopping_goes_back_to_the_last_durable_round(action: Action) -> None:
    farm = farm_of()
    ada = farm.volunteers["ada"]
    play(farm, 2)
    farm.handle(TaskAction("t1", action))
    assert (farm.task().version, farm.view().round, farm.task().samples_done) == (1, 1, 20)
    assert [m.counted for m in ada.messages if isinstance(m, Ack)][-2:] == [False, False]
    assert any(e.kind == "rounds_rolled_back" for e in farm.ledger.events)
    assert not any(r.state is RoundState.OPEN for r in farm.ledger.rounds.values())


def test_a_failure_of_the_server_rolls_back_and_tries_again() -> None:
    farm = farm_of()
    play(farm, 2)
    number, attempt = farm.open["t1"]
    farm.handle(AggregationFailed("t1", number, attempt, "the disk is full"))
    assert farm.task().state is TaskState.PENDING
    assert farm.task().version == 1
    farm.tick(600.0)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


@pytest.mark.parametrize(
    "weights", [BlobRef(digest="0" * 64, size_bytes=2_000_000)], ids=["weights that do not ride in messages"]
)
def test_where_weights_are_files_every_round_is_durable(weights: BlobRef) -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(shards=(500,), rounds=4, durable_every=4).model_copy(update={"initial_weights": weights}))
    farm.run()
    assert all(c.durable for c in farm.log if isinstance(c, CommitRound))
