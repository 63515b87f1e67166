"""A task that asks for a sandbox goes to the clients whose sandbox was shown to hold, and the others are told why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.eligibility import is_enough, qualifies
from coordinator.lifecycle import TaskState
from coordinator.records import ClientRecord
from protocol.assignments import Cancel
from protocol.recipe import Requirements
from protocol.resources import Resources
from protocol.sandbox import Rung, Sandbox
from protocol.tasks import TaskSpec
from tests.coordinator.farm_simulation import GIGABYTE, Simulation, Volunteer, spec

SANDBOXES = st.none() | st.builds(Sandbox, rung=st.sampled_from(Rung), probes=st.integers(0, 3))


def machine(sandbox: Sandbox | None) -> ClientRecord:
    resources = Resources(cpu_cores=4, ram_bytes=16 * GIGABYTE)
    return ClientRecord("c", "c", "h", 0, 0, resources=resources, sandbox=sandbox)


def proven(sandbox: Sandbox | None) -> Rung:
    return Rung.NONE if sandbox is None or not sandbox.probes else sandbox.rung


def asking(least: Rung | None, **changes: object) -> TaskSpec:
    return spec(requirements=Requirements(sandbox=least), **changes)  # type: ignore[arg-type]  # fields of a recipe


@given(SANDBOXES, st.none() | st.sampled_from(Rung))
def test_a_client_qualifies_whose_proven_rung_holds_the_demanded_one(
    sandbox: Sandbox | None, least: Rung | None
) -> None:
    holds = least is None or list(Rung).index(proven(sandbox)) <= list(Rung).index(least)
    decision = qualifies(machine(sandbox), asking(least))
    assert is_enough(machine(sandbox), asking(least)) is decision.value is holds
    assert holds or decision.reason.endswith(f"and the task asks for {least}")


@pytest.mark.parametrize(
    ("sandbox", "standing"),
    [
        (None, "is older than sandboxes"),
        (Sandbox(rung=Rung.NONE, probes=1), "runs tasks without a sandbox"),
        (Sandbox(rung=Rung.LANDLOCK, probes=1), "has a landlock sandbox"),
        (Sandbox(rung=Rung.STRICT), "has not tried to break out of its strict sandbox"),
    ],
)
def test_a_client_whose_sandbox_does_not_do_is_told_why(sandbox: Sandbox | None, standing: str) -> None:
    farm = Simulation()
    ada = farm.join(Volunteer("ada", sandbox=sandbox))
    farm.submit(asking(Rung.STRICT))
    assert not ada.held
    assert f"no client meets its requirements: ada {standing}, and the task asks for strict" in farm.view().why
    (told,) = farm.coordinator.explain("t1", farm.now).clients
    assert (told.eligible, told.reason) == (False, f"{standing}, and the task asks for strict")


@given(st.lists(SANDBOXES, min_size=1, max_size=5), st.lists(st.sampled_from(Rung), min_size=1, max_size=3))
def test_no_task_is_ever_offered_to_a_client_that_does_not_hold_its_rung(
    sandboxes: list[Sandbox | None], asked: list[Rung]
) -> None:
    """Whatever else the farm has: tasks with the same needs share what was found out about clients."""
    farm = Simulation()
    clients = [farm.join(Volunteer(f"c{number}", sandbox=told)) for number, told in enumerate(sandboxes)]
    for number, least in enumerate(asked):
        farm.submit(asking(least, rounds=1), f"t{number}")
    demanded = {f"t{number}": least for number, least in enumerate(asked)}
    for _ in range(20):
        for client in clients:
            assert all(proven(client.sandbox).holds(demanded[assign.task.task_id]) for assign in client.held)
            while client.held:
                farm.deliver(client)
    for task_id, least in demanded.items():
        is_done = farm.ledger.tasks[task_id].state is TaskState.COMPLETED
        assert is_done is any(proven(told).holds(least) for told in sandboxes), "and who holds it does it"


def test_a_client_that_comes_back_with_less_gets_no_more_and_goes_on_with_nothing() -> None:
    farm = Simulation()
    ada = farm.join(Volunteer("ada", sandbox=Sandbox(rung=Rung.STRICT, probes=1)))
    farm.submit(asking(Rung.LANDLOCK))
    assert ada.held
    farm.accept(ada, ada.held[0])
    farm.leave(ada, "connection reset", crashed=False)
    ada.sandbox = Sandbox(rung=Rung.CONTAINER, probes=1)
    farm.join(ada)
    assert not ada.held
    assert any(isinstance(message, Cancel) for message in ada.messages), "what it held is not computed there any more"
    farm.tick(60)
    assert not ada.held
    assert "has a container sandbox, and the task asks for landlock" in farm.view().why
    farm.leave(ada, "connection reset")
    ada.sandbox = Sandbox(rung=Rung.LANDLOCK, probes=1)
    farm.join(ada)
    assert ada.held
