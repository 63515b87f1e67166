"""Who names somebody else's assignment, with its right fence, changes nothing for its owner."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.events import (
    AssignmentAccepted,
    AssignmentFailed,
    AssignmentRejected,
    ClientBeat,
    Event,
    ResultArrived,
)
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Ack, Assign, AssignmentProgress, Cancel, Phase, RejectCode
from protocol.messages import Scope
from protocol.tasks import BlobRef
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

Deed = Callable[[Volunteer, Assign], Event]


def named(intruder: Volunteer, assign: Assign) -> tuple[str, int, str, int]:
    return f"id-{intruder.name}", intruder.incarnation, assign.assignment_id, assign.fence


def says_accept(intruder: Volunteer, assign: Assign) -> Event:
    return AssignmentAccepted(*named(intruder, assign))


def says_reject(intruder: Volunteer, assign: Assign) -> Event:
    return AssignmentRejected(*named(intruder, assign), code=RejectCode.DOES_NOT_FIT, message="no")


def says_the_code_failed(intruder: Volunteer, assign: Assign) -> Event:
    return AssignmentFailed(*named(intruder, assign), code="task_code", message="boom", scope=Scope.NOBODY)


def says_it_failed(intruder: Volunteer, assign: Assign) -> Event:
    return AssignmentFailed(*named(intruder, assign), code="x", message="boom", scope=Scope.ELSEWHERE)


def delivers(intruder: Volunteer, assign: Assign) -> Event:
    update = BlobRef(digest="f" * 64, size_bytes=3, inline=b"abc")
    return ResultArrived(
        *named(intruder, assign), samples=assign.samples, metrics={}, update=update, compute_seconds=1.0
    )


def beats(intruder: Volunteer, assign: Assign) -> Event:
    progress = AssignmentProgress(
        assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING, samples_done=9
    )
    return ClientBeat(f"id-{intruder.name}", intruder.incarnation, None, (progress,))


DEEDS = [says_accept, says_reject, says_the_code_failed, says_it_failed, delivers, beats]


def farm_with(intruder_slots: int = 0, **recipe: object) -> tuple[Simulation, Volunteer, Volunteer]:
    farm = Simulation()
    ada, eve = farm.join("ada"), farm.join(Volunteer("eve", slots=intruder_slots))
    farm.submit(spec(rounds=3, **recipe))
    return farm, ada, eve


@pytest.mark.parametrize("deed", DEEDS)
def test_the_owner_of_a_part_of_the_round_keeps_it(deed: Deed) -> None:
    farm, ada, eve = farm_with()
    assign = ada.held[0]
    before = farm.ledger.assignments[assign.assignment_id]
    farm.handle(deed(eve, assign))
    assert farm.ledger.assignments[assign.assignment_id] == before
    assert not any(isinstance(m, Cancel) for m in ada.messages)
    farm.deliver(ada)
    assert farm.ledger.assignments[assign.assignment_id].counted
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.clients["id-eve"].failed == farm.ledger.clients["id-eve"].delivered == 0


@pytest.mark.parametrize("deed", DEEDS)
def test_the_owner_of_a_late_part_keeps_it(deed: Deed) -> None:
    farm = Simulation()
    ada, bob, slow = (farm.join(name) for name in ("ada", "bob", "slow"))
    eve = farm.join(Volunteer("eve", slots=0))
    farm.submit(spec(shards=(90,), round_samples=20, over_provision=0.5, rounds=None, epochs=1, max_staleness=1))
    late = slow.held[0]
    farm.deliver(ada)
    farm.deliver(bob)
    assert farm.task().version == 1, "the round is committed without the slow one"
    farm.handle(deed(eve, late))
    farm.deliver(slow)
    farm.run()
    assert farm.ledger.assignments[late.assignment_id].counted
    assert farm.task().state is TaskState.COMPLETED


@pytest.mark.parametrize("deed", DEEDS)
def test_the_owner_of_a_part_of_a_round_to_come_keeps_it(deed: Deed) -> None:
    farm, ada, eve = farm_with(max_staleness=2, pipeline=True)
    farm.compute(ada)
    assert ada.held, "a part of the next round"
    ahead = ada.held[0]
    farm.handle(deed(eve, ahead))
    assert not any(isinstance(m, Cancel) for m in ada.messages)
    assert ada.held[0] is ahead
    assert farm.ledger.assignments[ahead.assignment_id].state is AssignmentState.OFFERED


def test_the_beats_of_another_renew_no_lease() -> None:
    farm, ada, eve = farm_with()
    assign = ada.held[0]
    farm.accept(ada, assign)
    for seconds in range(1, 8):
        farm.tick(10)
        progress = AssignmentProgress(
            assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING, samples_done=seconds
        )
        farm.handle(ClientBeat("id-eve", eve.incarnation, None, (progress,)))
    assert "made no progress" in (farm.ledger.assignments[assign.assignment_id].error or "")


def test_an_accept_of_another_does_not_answer_an_offer() -> None:
    farm, ada, eve = farm_with()
    assign = ada.held[0]
    farm.handle(says_accept(eve, assign))
    farm.tick(11)
    assert "did not answer the offer" in (farm.ledger.assignments[assign.assignment_id].error or "")


def test_a_foreign_result_is_told_to_whom_it_came_that_it_does_not_count() -> None:
    farm, ada, eve = farm_with()
    farm.handle(delivers(eve, ada.held[0]))
    assert [m.counted for m in eve.messages if isinstance(m, Ack)] == [False]
