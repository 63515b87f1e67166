"""A task's packages: who has them comes first, who may install them next, and nobody else is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.breaker import Breaker
from coordinator.eligibility import understands
from coordinator.events import AssignmentRejected, ClientReady
from coordinator.lifecycle import TaskState
from coordinator.offers import brief
from coordinator.records import ClientRecord
from coordinator.scoring import WEIGHTS
from coordinator.state import ClientState
from protocol.assignments import RejectCode
from protocol.environments import MAX_ENVIRONMENTS, NO_ENVIRONMENTS, Environments
from protocol.tasks import TaskSpec
from protocol.versions import TASK_ENVIRONMENT
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec

LOCK = blob("lock")
HAS = Environments(built=(LOCK.digest,))
INSTALLS = Environments(installs=True)
NO = "has not the task's environment, and its owner allows no installs"


def with_lock(**changes: object) -> TaskSpec:
    return spec(**changes).model_copy(update={"environment": LOCK})  # type: ignore[arg-type]  # fields of a recipe


def volunteer(name: str, environments: Environments | None = None, **changes: object) -> Volunteer:
    return Volunteer(name, features=(TASK_ENVIRONMENT,), environments=environments, **changes)  # type: ignore[arg-type]


def hand_back(farm: Simulation, who: Volunteer, message: str = "it installs 3 packages") -> None:
    assign = who.held.popleft()
    here = (f"id-{who.name}", who.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentRejected(*here, code=RejectCode.ENVIRONMENT, message=message))


def ready(farm: Simulation, who: Volunteer, environments: Environments | None) -> None:
    farm.handle(ClientReady(f"id-{who.name}", who.incarnation, who.slots - len(who.held), environments))


def test_a_client_is_told_the_lock() -> None:
    assert brief("t1", with_lock()).environment == LOCK


@given(st.booleans(), st.booleans(), st.booleans())
def test_a_client_can_have_the_packages_that_it_has_or_installs(needs: bool, has: bool, installs: bool) -> None:
    told = Environments(built=(blob("other").digest, *((LOCK.digest,) if has else ())), installs=installs)
    client = ClientState(ClientRecord("c", "c", "h", 0, 0), features=frozenset({TASK_ENVIRONMENT}), environments=told)
    decision = understands(client, with_lock() if needs else spec())
    assert decision.value is (has or installs or not needs)
    assert decision.reason == ("" if decision.value else NO)


@pytest.mark.parametrize("told", [None, NO_ENVIRONMENTS, Environments(built=(blob("other").digest,))])
def test_a_client_whose_owner_allows_no_installs_is_left_out_and_why_says_so(told: Environments | None) -> None:
    farm = Simulation()
    ada = farm.join(volunteer("ada", told))
    farm.submit(with_lock())
    assert not ada.held
    assert f"ada {NO}" in farm.view().why
    assert [client.reason for client in farm.coordinator.explain("t1", farm.now).clients] == [NO]
    farm.submit(spec(), "t2")
    assert ada.held[0].task.task_id == "t2", "other tasks it does"


def test_an_older_client_is_told_to_be_renewed() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(with_lock())
    assert "cannot run with the packages of a task's lock: it needs a newer aifarm" in farm.view().why


@pytest.mark.parametrize("first", ["has", "installs"])
def test_who_has_it_is_preferred_whoever_came_first(first: str) -> None:
    farm = Simulation()
    told = {"has": HAS, "installs": INSTALLS}
    for name in (first, *(told.keys() - {first})):
        farm.join(volunteer(name, told[name]))
    farm.submit(with_lock(max_clients=1))
    assert farm.volunteers["has"].held
    assert not farm.volunteers["installs"].held


def test_the_preference_is_a_term_that_explain_shows() -> None:
    farm = Simulation()
    for name, told in (("has", HAS), ("installs", INSTALLS)):
        farm.join(volunteer(name, told))
    farm.submit(with_lock(min_clients=3))
    terms = {
        client.name: {term.name: term for term in client.terms}
        for client in farm.coordinator.explain("t1", farm.now).clients
    }
    assert terms["has"]["environment"].contribution == WEIGHTS["environment"]
    assert terms["has"]["environment"].detail == "has it"
    assert terms["installs"]["environment"].contribution == 0.0
    assert terms["installs"]["environment"].detail == "would have to install it"
    farm.submit(spec(min_clients=3), "t2")
    assert all("environment" not in {t.name for t in c.terms} for c in farm.coordinator.explain("t2", farm.now).clients)


def test_work_that_was_handed_back_for_an_installation_comes_again_when_it_is_done() -> None:
    farm = Simulation()
    ada = farm.join(volunteer("ada", INSTALLS))
    farm.submit(with_lock())
    hand_back(farm, ada)
    ready(farm, ada, None)
    assert not ada.held
    assert "has not the task's environment: it installs 3 packages (again in 2 s)" in farm.view().why
    ready(farm, ada, Environments(built=(LOCK.digest,), installs=True))
    assert ada.held, "at once, without the wait"
    client = farm.coordinator._farm.clients["id-ada"]
    assert not client.failures
    assert client.breaker == Breaker()
    assert client.record.failed == 0
    assert farm.ledger.tasks["t1"].retries == 0


def test_an_installation_that_fails_is_tried_less_and_less_often() -> None:
    farm = Simulation()
    ada = farm.join(volunteer("ada", INSTALLS))
    farm.submit(with_lock())
    waits = []
    for _ in range(5):
        hand_back(farm, ada, "no wheel of foo fits this machine")
        ready(farm, ada, INSTALLS)
        began = farm.now
        while not ada.held:
            farm.tick(1.0)
        waits.append(farm.now - began)
    assert waits == sorted(waits)
    assert waits[-1] >= 8 * waits[0]
    assert farm.ledger.tasks["t1"].state in {TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING}


@pytest.mark.parametrize("told", [HAS, INSTALLS])
def test_consent_that_comes_later_counts_and_so_does_its_end(told: Environments) -> None:
    farm = Simulation()
    ada = farm.join(volunteer("ada", None))
    farm.submit(with_lock())
    ready(farm, ada, told)
    assert ada.held, "without another connection"
    farm.deliver(ada)
    ada.held.clear()
    ready(farm, ada, NO_ENVIRONMENTS)
    assert f"ada {NO}" in [f"{c.name} {c.reason}" for c in farm.coordinator.explain("t1", farm.now).clients]


def test_an_environment_that_was_lost_is_known_after_another_connection() -> None:
    farm = Simulation()
    ada = farm.join(volunteer("ada", HAS))
    farm.leave(ada)
    ada.environments = None
    farm.join(ada)
    farm.submit(with_lock())
    assert not ada.held


def test_a_client_names_no_more_than_fit() -> None:
    digests = tuple(f"{number:064x}" for number in range(MAX_ENVIRONMENTS + 1))
    Environments(built=digests[:-1])
    with pytest.raises(ValueError, match="at most 64"):
        Environments(built=digests)
