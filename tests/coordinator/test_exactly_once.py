"""Whatever fails: each sample counts exactly once an epoch, and the task ends. Seeded schedules of faults."""

from __future__ import annotations

import pytest

from coordinator.events import CheckpointDamaged
from coordinator.lifecycle import TaskState
from coordinator.records import AssignmentRecord
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

NAMES = ("ada", "bob", "eve", "max")


def one_fault(farm: Simulation) -> None:
    """Something happens: a delivery, a repeat, a death, a return, a failure, silence, damage, or a server restart."""
    rng = farm.rng
    volunteer = farm.volunteers[rng.choice(NAMES)]
    action = rng.random()
    if not volunteer.online:
        if action < 0.5:
            farm.join(volunteer)
    elif action < 0.65 or not volunteer.held:
        come_and_go(farm, volunteer)
    elif action < 0.75:
        farm.fail(volunteer, Scope.ELSEWHERE)
    elif action < 0.8:
        volunteer.held.popleft()  # beats on, but never delivers
    if rng.random() < 0.02:
        farm.restart()
    if rng.random() < 0.02:
        damage_the_newest_checkpoint(farm)
    farm.tick(rng.choice((0.5, 5.0, 30.0)))


def come_and_go(farm: Simulation, volunteer: Volunteer) -> None:
    rng = farm.rng
    if volunteer.held and rng.random() < 0.85:
        assign = farm.deliver(volunteer, seconds=rng.uniform(0.1, 5))
        if rng.random() < 0.3:
            farm.handle(farm.result(volunteer, assign))
        return
    if volunteer.held and rng.random() < 0.3:  # it finished, but its connection was down
        assign = volunteer.held.popleft()
        volunteer.outbox[assign.assignment_id] = (assign, 1.0, 1.0)
    farm.leave(volunteer, crashed=rng.random() < 0.5)


def damage_the_newest_checkpoint(farm: Simulation) -> None:
    """What the server finds when it opens a round: the newest checkpoint is unreadable, the one before it is not."""
    task, opened = farm.task(), farm.open.get("t1")
    if opened is None or task.version < 1 or farm.view().state == "completed":
        return
    fallback = farm.ledger.checkpoints["t1", task.version - 1]
    undone = tuple(a for a in farm.ledger.assignments.values() if a.counted and counted_in(farm, a) >= fallback.round)
    farm.handle(CheckpointDamaged("t1", *opened, "its digest is wrong", fallback, undone))


def counted_in(farm: Simulation, record: AssignmentRecord) -> int:
    """The round whose commit counted the assignment: a stale one was counted later than its own."""
    return farm.counted_in[record.assignment_id]


@pytest.mark.parametrize("seed", range(200))
def test_books_balance_under_faults(seed: int) -> None:
    farm = Simulation(seed)
    rng = farm.rng
    shards = tuple(rng.randint(1, 30) for _ in range(rng.randint(1, 12)))
    epochs = rng.randint(1, 3)
    quorum = rng.choice((1.0, 0.5))
    farm.submit(
        spec(
            shards=shards,
            holdout=(5, 5),
            rounds=None,
            epochs=epochs,
            round_samples=rng.randint(1, 80),
            quorum=quorum,
            over_provision=rng.choice((0.0, 0.0, 0.5)),
            max_staleness=rng.choice((0, 0, 1, 3)),
            longest_round_seconds=200.0,
            max_retries=10_000,
        )
    )
    for name in NAMES:
        farm.join(name)
    for _ in range(rng.randint(10, 120)):
        one_fault(farm)
    for _ in range(5_000):  # the faults end: the farm finishes by itself
        if farm.task().state is TaskState.COMPLETED:
            break
        for volunteer in farm.volunteers.values():
            if not volunteer.online:
                farm.join(volunteer)
        farm.run()
        farm.tick(5.0)
    assert farm.task().state is TaskState.COMPLETED, farm.view().why
    rows = {(i, row) for i, n in enumerate(shards) for row in range(n)}
    for epoch in range(epochs):
        counted = farm.ledger.counted("t1", epoch)
        assert {key for key in counted if key[0] < len(shards)} == rows
        assert set(counted.values()) == {1}
    assert farm.task().samples_done == epochs * sum(shards)
    for number in range(farm.task().version):
        assert ("t1", number + 1) in farm.ledger.checkpoints, "no committed round is without its checkpoint"
