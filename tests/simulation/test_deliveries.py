"""Results that come twice, late, in any order and over several connections count once, and fold to the same."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.lifecycle import TaskState
from coordinator.records import AssignmentRecord
from protocol.assignments import Assign
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

NAMES = ("ada", "bob", "eve", "max")
SHARDS = (13, 7, 20)


@dataclass(frozen=True)
class Delivery:
    """One arrival of a client's result, so many seconds after the one before; perhaps on a new connection."""

    name: str
    after_seconds: float
    reconnects: bool
    restarts_server: bool


deliveries = st.lists(
    st.builds(
        Delivery,
        name=st.sampled_from(NAMES),
        after_seconds=st.sampled_from((0.0, 0.5, 5.0, 70.0)),
        reconnects=st.booleans(),
        restarts_server=st.sampled_from((False, False, False, True)),
    ),
    max_size=14,
)


def begin() -> tuple[Simulation, dict[str, Assign]]:
    """Open one round of four parts; everybody has accepted and finished theirs, and nothing has arrived."""
    farm = Simulation()
    for name in NAMES:
        farm.join(name)
    farm.submit(spec(shards=SHARDS, rounds=1, round_samples=sum(SHARDS), max_retries=100))
    finished = {}
    for name in NAMES:
        volunteer = farm.volunteers[name]
        assign = finished[name] = volunteer.held.popleft()
        farm.accept(volunteer, assign)
    return farm, finished


def arrive(farm: Simulation, volunteer: Volunteer, assign: Assign, delivery: Delivery) -> None:
    """Let one copy of a finished result arrive."""
    farm.tick(delivery.after_seconds)
    volunteer.outbox.setdefault(assign.assignment_id, (assign, 1.0, 1.0))
    if delivery.restarts_server:
        farm.restart()
    if delivery.reconnects or not volunteer.online:
        if volunteer.online:
            farm.leave(volunteer, crashed=False)
        farm.join(volunteer)
    else:
        farm.handle(farm.result(volunteer, assign))


def end(farm: Simulation) -> None:
    """Let everybody come back, and whatever had to be given to others be done by them."""
    for _ in range(20):
        for volunteer in farm.volunteers.values():
            if not volunteer.online:
                farm.join(volunteer)
        farm.run()
        farm.tick(70.0)


def folded_rows(farm: Simulation) -> list[tuple[int, int]]:
    """Return the rows of the round in the order in which they were folded."""
    folds: list[AssignmentRecord] = [farm.ledger.assignments[name] for name, _ in farm.folded["t1"]]
    return [(r.shard, row) for record in folds for r in record.ranges for row in range(r.start, r.stop)]


def undisturbed() -> list[tuple[int, int]]:
    farm, finished = begin()
    for name in NAMES:
        arrive(farm, farm.volunteers[name], finished[name], Delivery(name, 0.0, False, False))
    return folded_rows(farm)


@settings(max_examples=150, deadline=None)
@given(schedule=deliveries)
def test_any_schedule_of_deliveries_counts_each_sample_once_and_folds_the_same(schedule: list[Delivery]) -> None:
    farm, finished = begin()
    for delivery in schedule:
        arrive(farm, farm.volunteers[delivery.name], finished[delivery.name], delivery)
    end(farm)
    assert farm.task().state is TaskState.COMPLETED
    assert folded_rows(farm) == undisturbed()
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    assert farm.task().samples_done == sum(SHARDS)
    assert not any(volunteer.outbox for volunteer in farm.volunteers.values()), "each result was settled"
