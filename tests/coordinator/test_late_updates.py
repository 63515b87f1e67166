"""Over-provisioning and stale updates: rounds that don't wait for the slowest, and waste nothing of its work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.commands import Fold
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Ack, Assign, Cancel
from tests.coordinator.farm_simulation import Simulation, spec


def stale_farm(**recipe: object) -> Simulation:
    farm = Simulation()
    for name in ("ada", "bob", "slow"):
        farm.join(name)
    farm.submit(spec(shards=(30,), round_samples=20, over_provision=0.5, rounds=None, epochs=1, **recipe))
    return farm


def test_an_over_provisioned_round_commits_as_soon_as_it_has_enough() -> None:
    farm = stale_farm()
    slow = farm.volunteers["slow"]
    assert [len(v.held) for v in farm.volunteers.values()] == [1, 1, 1]
    late = slow.held[0]
    farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    assert farm.task().version == 1
    assert any(isinstance(m, Cancel) and m.assignment_id == late.assignment_id for m in slow.messages)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert farm.task().samples_done == 30


def test_a_late_update_is_owed_until_a_round_contains_it() -> None:
    farm = Simulation()
    for name in ("ada", "bob", "slow"):
        farm.join(name)
    farm.submit(spec(shards=(90,), round_samples=20, over_provision=0.5, rounds=None, epochs=1, max_staleness=1))
    slow = farm.volunteers["slow"]
    late = farm.ledger.assignments[slow.held[0].assignment_id]
    farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    assert not any(isinstance(m, Cancel) for m in slow.messages)
    assert set(late.ranges) <= set(farm.task().leftover), "a restart would do it again"
    farm.deliver(slow)
    farm.run()
    assert farm.ledger.assignments[late.assignment_id].counted
    assert farm.task().samples_done == 90
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_at_the_epochs_end_the_late_part_is_done_by_somebody_else() -> None:
    farm = stale_farm(max_staleness=1)
    farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    assert any(isinstance(m, Cancel) for m in farm.volunteers["slow"].messages)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_the_fold_of_a_stale_update_is_discounted() -> None:
    farm = Simulation()
    for name in ("ada", "bob", "slow"):
        farm.join(name)
    farm.submit(spec(shards=(90,), round_samples=20, over_provision=0.5, rounds=3, max_staleness=1))
    late = farm.volunteers["slow"].held[0]
    farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    farm.deliver(farm.volunteers["slow"])
    farm.run()
    folds = {c.assignment_id: c.scale for c in farm.log if isinstance(c, Fold)}
    assert folds.pop(late.assignment_id) == pytest.approx(2**-0.5)
    assert set(folds.values()) == {1.0}
    assert next(m.counted for m in farm.volunteers["slow"].messages if isinstance(m, Ack))
    times = farm.ledger.counted("t1", 0)
    assert set(times.values()) == {1}


def test_what_is_staler_than_allowed_is_given_up_and_done_again() -> None:
    farm = Simulation()
    for name in ("ada", "bob", "slow"):
        farm.join(name)
    farm.submit(spec(shards=(90,), round_samples=20, over_provision=0.5, rounds=None, epochs=1, max_staleness=1))
    slow = farm.volunteers["slow"]
    late = slow.held[0]
    for _ in range(3):
        for name in ("ada", "bob"):
            while farm.volunteers[name].held:
                farm.deliver(farm.volunteers[name])
    assert farm.ledger.assignments[late.assignment_id].state is AssignmentState.EXPIRED
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert len(farm.ledger.counted("t1", 0)) == 90
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def late_after_one_round() -> tuple[Simulation, Assign]:
    """A farm whose first round is committed, and ``slow`` has not even answered its offer of it."""
    farm = Simulation()
    for name in ("ada", "bob", "slow"):
        farm.join(name)
    farm.submit(spec(shards=(90,), round_samples=20, over_provision=0.5, rounds=None, epochs=1, max_staleness=9))
    late = farm.volunteers["slow"].held[0]
    farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    assert farm.task().version == 1
    return farm, late


def test_who_accepts_after_the_round_is_closed_keeps_the_part() -> None:
    farm, late = late_after_one_round()
    farm.accept(farm.volunteers["slow"], late)
    farm.tick(farm.settings.offer_seconds + 1)
    assert farm.volunteers["slow"].held[0] is late, "it is no offer any more, and has its own time"


def test_a_late_result_of_other_samples_is_settled_and_its_samples_are_trained() -> None:
    farm, late = late_after_one_round()
    slow = farm.volunteers["slow"]
    farm.handle(replace(farm.result(slow, late), samples=late.samples + 1))
    assert [m.counted for m in slow.messages if isinstance(m, Ack) and m.assignment_id == late.assignment_id] == [False]
    slow.held.clear()
    farm.run()
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
