"""Which checkpoints stay, and what happens when the newest is damaged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.commands import OpenRound
from coordinator.events import CheckpointDamaged
from coordinator.lifecycle import TaskState
from coordinator.records import CheckpointRecord
from coordinator.retention import kept_rounds
from protocol.recipe import Recipe
from tests.coordinator.farm_simulation import Simulation, blob, spec


def checkpoint(number: int, **metrics: float) -> CheckpointRecord:
    return CheckpointRecord("t1", number, 0, 0, blob(f"w{number}"), None, None, 0.0, metrics)


@given(st.sets(st.integers(0, 200), max_size=60), st.integers(1, 5), st.integers(0, 7))
def test_the_newest_the_first_and_every_nth_stay(rounds: set[int], keep: int, every: int) -> None:
    recipe = Recipe(rounds=1, keep_checkpoints=keep, keep_every=every)
    kept = kept_rounds([checkpoint(r) for r in rounds], recipe)
    assert kept <= rounds
    assert set(sorted(rounds)[-keep:]) <= kept
    assert (0 in kept) == (0 in rounds)
    assert {r for r in rounds if every and r % every == 0} <= kept


def test_the_best_by_a_metric_stays() -> None:
    checkpoints = [checkpoint(1, accuracy=0.9, loss=0.5), checkpoint(2, accuracy=0.8, loss=0.1), checkpoint(3)]
    assert kept_rounds(checkpoints, Recipe(rounds=1, keep_checkpoints=1, keep_best="max:accuracy")) == {1, 3}
    assert kept_rounds(checkpoints, Recipe(rounds=1, keep_checkpoints=1, keep_best="min:loss")) == {2, 3}


def test_a_damaged_checkpoint_falls_back_and_says_so_loudly() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(rounds=4))
    farm.deliver(ada)
    farm.deliver(ada)
    assert farm.task().version == 2
    undone = tuple(a for a in farm.ledger.assignments.values() if a.counted and a.round == 1)
    kept = farm.ledger.checkpoints["t1", 1]
    farm.handle(CheckpointDamaged("t1", 2, farm.open["t1"][1], "weights of round 2: wrong digest", kept, undone))
    assert farm.task().version == 1
    assert farm.task().samples_done == 20
    opened = [c for c in farm.log if isinstance(c, OpenRound)][-1]
    assert opened.checkpoint.round == 1
    loud = next(e for e in farm.ledger.events if e.kind == "checkpoint_damaged")
    assert "back to round 1, rounds to train again: 1" in loud.message
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().samples_done == 80
    for epoch in (0, 1):
        assert set(farm.ledger.counted("t1", epoch).values()) == {1}


def test_without_any_readable_checkpoint_the_task_fails() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec())
    farm.handle(CheckpointDamaged("t1", 0, farm.open["t1"][1], "the file is gone", None))
    assert farm.task().state is TaskState.FAILED
    assert "no checkpoint of it can be read: the file is gone" in farm.task().error
