"""A client whose owner does not allow a task hands it back: nobody is blamed, and others get the work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.breaker import Breaker
from coordinator.commands import ConfirmEnd
from coordinator.events import Action, AssignmentRejected, ClientPaused, TaskAction
from coordinator.lifecycle import TaskState
from coordinator.offers import brief
from protocol.assignments import RejectCode
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

NAMES = ("ada", "bob", "eve")


def refuse(farm: Simulation, volunteer: Volunteer, message: str = "it works for bob") -> None:
    """Hand the oldest assignment back for the owner, and have a free slot again."""
    assign = volunteer.held.popleft()
    here = (f"id-{volunteer.name}", volunteer.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.OWNER, message=message))
    farm._ready(volunteer)


def test_a_client_is_told_whose_task_it_is() -> None:
    assert brief("t1", spec(submitter="ada")).submitter == "ada"


@pytest.mark.parametrize(("message", "told"), [("it works for bob", " (it works for bob)"), ("", "")])
def test_a_task_that_the_owner_refuses_is_not_offered_again_while_connected(message: str, told: str) -> None:
    farm = Simulation()
    box = farm.join("box")
    farm.submit(spec())
    refuse(farm, box, message)
    farm.tick(100_000)
    assert not box.held
    reason = f"refuses: its owner's settings do not allow this task{told}"
    assert f"no client can take it now: box {reason}" in farm.view().why
    assert [client.reason for client in farm.coordinator.explain("t1", farm.now).clients] == [reason]
    farm.submit(spec(name="another"), "t2")
    assert box.held[0].task.task_id == "t2", "another task is another question"


def test_a_refusal_of_the_owners_blames_nobody() -> None:
    farm = Simulation()
    box = farm.join("box")
    for number in range(20):
        farm.submit(spec(), f"t{number}")
        refuse(farm, box)
    client = farm.coordinator._farm.clients["id-box"]
    assert client.record.failed == 0
    assert client.breaker == Breaker()
    assert not client.failures
    assert all(task.state is TaskState.PENDING and not task.retries for task in farm.ledger.tasks.values())


def test_another_connection_may_have_other_settings() -> None:
    farm = Simulation()
    box = farm.join("box")
    farm.submit(spec())
    refuse(farm, box)
    farm.leave(box)
    farm.join(box)
    assert box.held


@pytest.mark.parametrize("leaves_memory", [True, False])
def test_a_retry_asks_again(monkeypatch: pytest.MonkeyPatch, leaves_memory: bool) -> None:
    """Also one that comes before the task's end is durable, when the coordinator still knows what it learned."""
    farm = Simulation()
    if not leaves_memory:
        carry_out = farm._carry_out
        monkeypatch.setattr(farm, "_carry_out", lambda c: None if isinstance(c, ConfirmEnd) else carry_out(c))
    box = farm.join("box")
    farm.submit(spec())
    refuse(farm, box)
    ada = farm.join("ada")
    farm.fail(ada, Scope.NOBODY)
    assert farm.task().state is TaskState.FAILED, "whoever may not try it is no witness"
    assert farm.coordinator.holds("t1") is not leaves_memory
    farm.leave(ada)
    farm.handle(TaskAction("t1", Action.RETRY))
    farm.tick()
    assert box.held


@given(
    st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=4),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
)
def test_every_task_is_done_by_those_who_may_and_each_asks_once(allowed: list[set[str]], submitters: list[str]) -> None:
    farm = Simulation()
    boxes = {f"c{number}": farm.join(f"c{number}") for number in range(len(allowed))}
    for number, submitter in enumerate(submitters):
        farm.submit(spec(submitter=submitter, rounds=2), f"t{number}")
    refused: set[tuple[str, str]] = set()
    for _ in range(40):
        for (name, box), names in zip(boxes.items(), allowed, strict=True):
            while box.held:
                if box.held[0].task.submitter in names:
                    farm.deliver(box)
                    continue
                task = (name, box.held[0].task.task_id)
                assert task not in refused, "it was asked before"
                refused.add(task)
                refuse(farm, box)
        farm.tick(1)
    for number, submitter in enumerate(submitters):
        is_done = farm.ledger.tasks[f"t{number}"].state is TaskState.COMPLETED
        assert is_done is any(submitter in names for names in allowed)


def test_the_end_of_a_pause_asks_again_what_an_owner_refused() -> None:
    """Its owner may have set meanwhile whom it works for."""
    farm = Simulation()
    box = farm.join("box")
    farm.submit(spec())
    refuse(farm, box)
    farm.handle(ClientPaused("id-box", box.incarnation, paused=False))
    farm.tick()
    assert box.held


def test_a_lease_that_runs_out_in_a_pause_blames_nobody() -> None:
    farm = Simulation()
    box = farm.join("box")
    farm.submit(spec())
    farm.accept(box, box.held[0])
    farm.handle(ClientPaused("id-box", box.incarnation, paused=True, reason="hours: until 22:00"))
    farm.tick(61)
    client = farm.coordinator._farm.clients["id-box"]
    assert not box.held
    assert (client.breaker, client.failures) == (Breaker(), {})
    farm.handle(ClientPaused("id-box", box.incarnation, paused=False))
    farm.tick()
    assert box.held, "nothing keeps it from the task"
