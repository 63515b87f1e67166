"""No report holds a round up: a lease has an end, its part is begun by another as well, and whoever is first counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import AssignmentFailed, ClientBeat
from coordinator.in_flight import Lease
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.settings import CoordinatorSettings
from coordinator.stragglers import take_in
from protocol.assignments import Ack, Assign, AssignmentProgress, Cancel, Phase
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec
from tests.coordinator.test_odd_numbers import DELIVERED


def report(farm: Simulation, v: Volunteer, assign: Assign, phase: Phase, **so_far: int) -> None:
    progress = AssignmentProgress(assignment_id=assign.assignment_id, fence=assign.fence, phase=phase, **so_far)
    farm.handle(ClientBeat(f"id-{v.name}", v.incarnation, None, (progress,)))


def waits_for_ever(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, Phase.UPLOADING, waits=second)


def uploads_for_ever(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, Phase.UPLOADING, fetched_bytes=second)


def fetches_for_ever(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, Phase.FETCHING, fetched_bytes=second)


def goes_up_and_down(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, Phase.COMPUTING, samples_done=second % 2)


def goes_round_the_phases(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, list(Phase)[second % 4], samples_done=second)


def creeps(farm: Simulation, liar: Volunteer, assign: Assign, second: int) -> None:
    report(farm, liar, assign, Phase.COMPUTING, samples_done=second)


HOLDS = [waits_for_ever, uploads_for_ever, fetches_for_ever, goes_up_and_down, goes_round_the_phases, creeps]


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("longest", [8.0, 600.0])
@pytest.mark.parametrize("delivered_once", [True, False])
def test_a_client_that_only_beats_delays_a_task_a_little_and_does_not_end_it(
    hold, longest: float, delivered_once: bool
) -> None:
    farm = Simulation()
    ada, bob, liar = (farm.join(name) for name in ("ada", "bob", "liar"))
    farm.submit(spec(shards=(3000,), rounds=8, round_samples=300, longest_round_seconds=longest, max_retries=0))
    held: dict[str, int] = {}
    seconds = 0
    while farm.task().state is not TaskState.COMPLETED and seconds < 1000:
        for honest in (ada, bob):
            while honest.held:
                farm.deliver(honest)
        for assign in list(liar.held):
            if delivered_once and farm.task().version == 0:
                farm.deliver(liar)
                continue
            farm.accept(liar, assign)
            held[assign.assignment_id] = held.get(assign.assignment_id, 0) + 1
            hold(farm, liar, assign, held[assign.assignment_id])
        farm.tick(1)
        seconds += 1
    assert farm.task().state is TaskState.COMPLETED
    assert seconds < 300
    assert max(held.values()) <= min(121, longest)
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def doubled() -> tuple[Simulation, Volunteer, Volunteer, Assign]:
    farm = Simulation()
    ada, slow = farm.join("ada"), farm.join("slow")
    farm.submit(spec(shards=(3000,), rounds=3, round_samples=200))
    assign = slow.held[0]
    farm.deliver(ada)
    farm.accept(slow, assign)
    for done in range(1, 40):
        farm.tick(1)
        report(farm, slow, assign, Phase.COMPUTING, samples_done=done)
        if ada.held:
            break
    assert ada.held[0].slices == assign.slices
    assert not any(isinstance(m, Cancel) for m in slow.messages)
    return farm, ada, slow, assign


def test_the_slow_one_may_still_be_first() -> None:
    farm, ada, slow, assign = doubled()
    second = ada.held[0]
    farm.deliver(slow)
    assert farm.ledger.assignments[assign.assignment_id].counted
    assert any(isinstance(m, Cancel) and m.assignment_id == second.assignment_id for m in ada.messages)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_who_was_outrun_is_told_to_stop_and_gets_nothing_for_a_while() -> None:
    farm, ada, slow, assign = doubled()
    farm.deliver(ada)
    assert any(isinstance(m, Cancel) and m.assignment_id == assign.assignment_id for m in slow.messages)
    assert not slow.held
    farm.tick(5)
    assert not slow.held
    farm.handle(farm.result(slow, assign))
    assert [m.counted for m in slow.messages if isinstance(m, Ack)] == [False]
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_a_failure_of_the_slow_one_leaves_the_part_to_the_other() -> None:
    farm, _, slow, assign = doubled()
    here = ("id-slow", slow.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentFailed(*here, code="machine", message="boom", scope=Scope.ELSEWHERE))
    assert farm.ledger.assignments[assign.assignment_id].state is AssignmentState.EXPIRED
    slow.held.clear()
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_nobody_gets_the_part_that_it_holds_already_once_more() -> None:
    farm = Simulation()
    two, ada = farm.join(Volunteer("two", slots=2)), farm.join("ada")
    farm.submit(spec(shards=(3000,), rounds=2, round_samples=300, max_clients=2))
    farm.deliver(ada)
    mine = two.held[0]
    farm.accept(two, mine)
    farm.leave(ada)
    for done in range(1, 200):
        farm.tick(1)
        report(farm, two, mine, Phase.COMPUTING, samples_done=min(done, mine.samples))
    assert sum(a.slices == mine.slices for a in two.held) == 1


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_only_machine_takes_longer_than_the_longest_round_and_is_let_finish(kind: str) -> None:
    """It was stopped and begun anew for ever, while it got on steadily."""
    farm = Simulation()
    slow = farm.join("slow")
    holdout = (400,) if kind == "evaluate" else ()
    farm.submit(spec(shards=(400,), holdout=holdout, rounds=1, round_samples=400, longest_round_seconds=60.0))
    if kind == "evaluate":
        farm.deliver(slow)
    assign = slow.held[0]
    farm.accept(slow, assign)
    for done in range(1, 390, 2):
        farm.tick(2)
        report(farm, slow, assign, Phase.COMPUTING, samples_done=done)
        assert slow.held, f"stopped after {done} samples"
        assert slow.held[0] is assign
    farm.deliver(slow)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().retries == 0


def test_a_round_on_which_nobody_gets_on_fails_at_its_longest_time() -> None:
    farm = Simulation()
    stuck = farm.join("stuck")
    farm.submit(spec(longest_round_seconds=30.0, max_retries=0))
    farm.accept(stuck, stuck.held[0])
    seconds = 0
    while farm.task().state is not TaskState.FAILED and seconds < 200:
        for assign in stuck.held:
            report(farm, stuck, assign, Phase.COMPUTING, samples_done=0)
        farm.tick(1)
        seconds += 1
    assert farm.task().state is TaskState.FAILED
    assert "of its samples after 30 s" in (farm.task().error or "")


reports = st.builds(
    AssignmentProgress,
    assignment_id=st.just("a"),
    fence=st.just(1),
    phase=st.sampled_from(Phase),
    samples_done=st.integers(0, 2**53),
    fetched_bytes=st.integers(0, 4),
    waits=st.integers(0, 4),
)


@given(st.lists(reports, max_size=60))
def test_what_was_said_before_renews_nothing(said: list[AssignmentProgress]) -> None:
    lease, settings = Lease(DELIVERED, None), CoordinatorSettings()
    renewals = sum(take_in(lease, progress, 0.0, settings) for progress in said)
    phases, samples, fetched, waits = 4, 1, 4 * 4, 4
    assert renewals <= phases + samples + fetched + waits
    for progress in said:
        assert not take_in(lease, progress, 1.0, settings)


def test_an_upload_that_waits_as_told_keeps_its_lease_but_not_for_ever() -> None:
    lease, settings = Lease(DELIVERED, None), CoordinatorSettings()

    def waits(number: int) -> AssignmentProgress:
        return AssignmentProgress(assignment_id="a", fence=1, phase=Phase.UPLOADING, waits=number)

    assert take_in(lease, waits(0), 0.0, settings)
    assert all(take_in(lease, waits(n), n * 10.0, settings) for n in range(1, 61))
    assert not take_in(lease, waits(61), 610.0, settings)
