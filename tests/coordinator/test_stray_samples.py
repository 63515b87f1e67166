"""No part of an epoch is too small to train on: BatchNorm needs two samples, and an epoch's tail is often one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.lifecycle import TaskState
from coordinator.planning import without_stray
from coordinator.stopping import rounds_total
from protocol.assignments import Kind
from protocol.recipe import Mode
from tests.coordinator.farm_simulation import Simulation, spec


@pytest.mark.parametrize("mode", Mode)
def test_the_last_round_of_an_epoch_takes_a_stray_sample_along(mode: Mode) -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(shards=(257,), rounds=None, epochs=2, round_samples=32, batch_samples=16, mode=mode))
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert [r.samples for r in farm.ledger.rounds.values()] == [*[32] * 7, 33] * 2


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    round_samples=st.integers(1, 60),
    batch_samples=st.integers(1, 20),
    mode=st.sampled_from(Mode),
    clients=st.integers(1, 3),
    pipelined=st.booleans(),
)
def test_every_part_can_be_trained_on_and_each_sample_counts_once(
    shards: list[int], round_samples: int, batch_samples: int, mode: Mode, clients: int, pipelined: bool
) -> None:
    extra = {"pipeline": True, "max_staleness": 1} if pipelined and mode is Mode.WEIGHTS else {}
    farm = Simulation()
    for name in ("ada", "bob", "eve")[:clients]:
        farm.join(name)
    task = spec(
        shards=tuple(shards),
        rounds=None,
        epochs=2,
        round_samples=round_samples,
        batch_samples=batch_samples,
        mode=mode,
        **extra,
    )
    farm.submit(task)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    smallest = min(2, batch_samples, round_samples, sum(shards))
    trained = [a for a in farm.ledger.assignments.values() if a.counted and a.kind is Kind.TRAIN]
    assert min(a.samples for a in trained) >= smallest
    for epoch in (0, 1):
        counted = farm.ledger.counted("t1", epoch)
        assert set(counted.values()) == {1}
        assert len(counted) == sum(shards)
    if not extra:
        assert farm.task().version == rounds_total(task)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 2))
def test_what_is_taken_leaves_nothing_too_small_behind(wanted: int, left: int, smallest: int) -> None:
    taken = without_stray(wanted, left, smallest)
    assert 0 <= taken <= left
    assert left - taken == 0 or left - taken >= smallest
    assert taken == 0 or taken >= min(smallest, left)
    assert abs(taken - min(wanted, left)) < smallest
