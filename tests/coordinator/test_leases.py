"""What renews a lease, and what ends it."""

from __future__ import annotations

import pytest

from coordinator.events import (
    AssignmentRejected,
    ClientBeat,
    ClientDraining,
    ClientLost,
    ClientPaused,
    ClientReady,
    Tick,
)
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import AssignmentProgress, Cancel, Phase, RejectCode
from protocol.messages import Scope
from protocol.resources import Load
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


@pytest.fixture
def farm() -> Simulation:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec())
    return farm


def beat(farm: Simulation, samples_done: int, phase: Phase = Phase.COMPUTING, name: str = "ada") -> None:
    v = farm.volunteers[name]
    assign = v.held[0]
    progress = AssignmentProgress(
        assignment_id=assign.assignment_id, fence=assign.fence, phase=phase, samples_done=samples_done
    )
    farm.handle(ClientBeat(f"id-{name}", v.incarnation, Load(), (progress,)))


def state(farm: Simulation, assignment_id: str) -> AssignmentState:
    return farm.ledger.assignments[assignment_id].state


def test_an_unanswered_offer_expires(farm: Simulation) -> None:
    first = farm.volunteers["ada"].held[0]
    farm.tick(11)
    assert state(farm, first.assignment_id) is AssignmentState.EXPIRED
    assert any(isinstance(m, Cancel) for m in farm.volunteers["ada"].messages)


def test_progress_renews_and_its_absence_expires(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    first = ada.held[0]
    farm.accept(ada, first)
    for done in range(1, 6):
        farm.tick(50)
        beat(farm, done)
    assert ada.held[0] is first
    farm.tick(50)
    beat(farm, 5)  # it beats, but makes no progress
    farm.tick(20)
    assert state(farm, first.assignment_id) is AssignmentState.EXPIRED
    assert "made no progress" in farm.ledger.assignments[first.assignment_id].error


def test_downloading_counts_as_progress(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    first = ada.held[0]
    farm.accept(ada, first)
    for fetched in range(1, 5):
        farm.tick(50)
        progress = AssignmentProgress(
            assignment_id=first.assignment_id, fence=first.fence, phase=Phase.FETCHING, fetched_bytes=fetched
        )
        farm.handle(ClientBeat("id-ada", ada.incarnation, None, (progress,)))
    assert ada.held[0] is first


def test_a_stragglers_part_is_begun_by_somebody_else_who_is_free(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    farm.deliver(ada, seconds=1.0)  # 20 samples/s: the next 20 are expected in 1 s
    slow = ada.held[0]
    farm.accept(ada, slow)
    for done in range(1, 4):
        farm.tick(10)
        beat(farm, done)
    assert ada.held[0] is slow, "nobody else could do it"
    bob = farm.join("bob")
    farm.tick(1)
    assert bob.held[0].slices == slow.slices
    assert ada.held[0] is slow, "it may go on: whoever is first counts"
    farm.deliver(bob)
    assert state(farm, slow.assignment_id) is AssignmentState.EXPIRED
    assert any(isinstance(m, Cancel) and m.assignment_id == slow.assignment_id for m in ada.messages)


def test_a_client_whose_update_waits_for_its_turn_is_no_straggler(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    farm.deliver(ada, seconds=1.0)
    done = ada.held[0]
    farm.accept(ada, done)
    farm.join("bob")
    for waited in range(1, 6):
        farm.tick(20)
        progress = AssignmentProgress(
            assignment_id=done.assignment_id, fence=done.fence, phase=Phase.UPLOADING, waits=waited
        )
        farm.handle(ClientBeat("id-ada", ada.incarnation, None, (progress,)))
    assert ada.held[0] is done


def test_a_rejection_sends_the_part_elsewhere(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.join("bob")
    assign = ada.held.popleft()
    here = ("id-ada", ada.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.BUSY, message="one at a time"))
    assert bob.held[0].slices == assign.slices
    assert state(farm, assign.assignment_id) is AssignmentState.REJECTED


def test_a_failed_client_is_left_alone_for_longer_each_time(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    pauses = []
    for _ in range(4):
        farm.fail(ada, Scope.ELSEWHERE)
        waited = 0.0
        while not ada.held:
            farm.tick(0.5)
            waited += 0.5
        pauses.append(waited)
    assert pauses == sorted(pauses)
    assert pauses[-1] > 3 * pauses[0]


def test_a_fault_of_the_code_on_the_only_client_fails_the_task_at_once(farm: Simulation) -> None:
    farm.fail(farm.volunteers["ada"], Scope.NOBODY, "train.py line 3: NameError")
    assert farm.task().state is TaskState.FAILED
    assert "train.py line 3: NameError" in farm.task().error
    assert "farm logs t1" in farm.view().why


def test_the_traceback_reaches_the_researchers_log_by_client(farm: Simulation) -> None:
    farm.fail(farm.volunteers["ada"], Scope.NOBODY, "boom", traceback="train.py, line 3\nNameError: x")
    lines = [(line.client_name, line.stream, line.text) for line in farm.ledger.logs]
    assert lines == [("ada", "error", "train.py, line 3"), ("ada", "error", "NameError: x")]


def test_a_fault_of_the_code_on_three_clients_fails_the_task(farm: Simulation) -> None:
    others = [farm.join(n) for n in ("bob", "eve", "max")]
    farm.fail(farm.volunteers["ada"], Scope.NOBODY)
    assert farm.task().state is not TaskState.FAILED
    holder = next(v for v in others if v.held)
    farm.fail(holder, Scope.NOBODY)
    assert farm.task().state is not TaskState.FAILED
    holder = next(v for v in others if v.held)
    farm.fail(holder, Scope.NOBODY)
    assert farm.task().state is TaskState.FAILED


def test_endless_failures_become_a_retry_with_backoff_then_a_failure() -> None:
    farm = Simulation()
    for i in range(12):
        farm.join(Volunteer(f"v{i}"))
    farm.submit(spec(max_retries=1))
    states = []
    for _ in range(2000):
        holder = next((v for v in farm.volunteers.values() if v.held), None)
        if holder:
            farm.fail(holder, Scope.ELSEWHERE)
        farm.tick(1)
        if not states or states[-1] != farm.task().state:
            states.append(farm.task().state)
        if farm.task().state is TaskState.FAILED:
            break
    assert farm.task().state is TaskState.FAILED
    assert farm.task().retries == 1
    assert "assignments failed" in farm.task().error


def test_failures_add_up_over_the_openings_of_a_round(farm: Simulation) -> None:
    for _ in range(400):
        if farm.volunteers["ada"].held:
            farm.fail(farm.volunteers["ada"], Scope.ELSEWHERE, "the executor exited")
        farm.tick(10)
        if farm.task().retries:
            break
    assert farm.task().retries == 1
    said = "12 assignments failed, the last one: the executor exited"
    assert any(said in event.message for event in farm.ledger.events)


def test_a_draining_client_gets_nothing_more(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    farm.handle(ClientDraining("id-ada", ada.incarnation, "ctrl-c"))
    farm.deliver(ada)
    assert not ada.held
    assert farm.task().version == 1


def test_a_paused_client_gets_nothing_until_it_resumes(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    farm.handle(ClientPaused("id-ada", ada.incarnation, paused=True, reason="gaming"))
    farm.deliver(ada)
    assert not ada.held
    assert "paused: gaming" in farm.view().why
    farm.handle(ClientPaused("id-ada", ada.incarnation, paused=False))
    assert ada.held


def test_events_of_a_former_connection_change_nothing(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    old = ada.incarnation
    farm.join(ada)
    farm.handle(ClientLost("id-ada", old, "the old connection closed"))
    assert ada.held
    assert farm.coordinator.client_views(farm.now)[0].state == "online"


def test_a_client_that_tells_of_free_slots_before_it_saw_an_offer_is_not_offered_more() -> None:
    farm = Simulation()
    ada = farm.join(Volunteer("ada", slots=1))
    farm.submit(spec(submitter="ada"), "t1")
    farm.submit(spec(submitter="bob"), "t2")
    farm.handle(ClientReady("id-ada", ada.incarnation, 1))  # it crossed the offer on the wire
    assert len(ada.held) == 1
    farm.accept(ada, ada.held[0])
    farm.handle(ClientReady("id-ada", ada.incarnation, 1))
    assert len(ada.held) == 2, "what it says after its answer is the truth"


def test_a_server_that_stood_still_ends_nobodys_lease_or_round() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(longest_round_seconds=30.0))
    ada = farm.volunteers["ada"]
    offered = ada.held[0]
    farm.now += 1000
    farm.handle(Tick(late_seconds=999.5))
    farm.accept(ada, offered)  # said while nobody listened, heard now
    farm.tick(0.5)
    farm.now += 1000
    farm.handle(Tick(late_seconds=999.5))
    beat(farm, 1)
    assert ada.held[0] is offered
    assert (farm.task().state, farm.view().retries) == (TaskState.RUNNING, 0)
    farm.tick(70)  # silence while the server listened is silence
    assert state(farm, offered.assignment_id) is AssignmentState.EXPIRED


def test_a_server_that_goes_down_offers_nothing_and_takes_what_comes() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec())
    ada = farm.volunteers["ada"]
    farm.coordinator.offer_nothing_more()
    farm.deliver(ada)
    assert farm.ledger.assignments
    assert not ada.held
    farm.join("bob")
    farm.tick(1)
    assert not farm.volunteers["bob"].held
