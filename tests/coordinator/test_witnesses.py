"""Whose fault a failure is: the code's, the machine's, or that of who says so; and whose word is enough."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from coordinator.events import AssignmentRejected
from coordinator.lifecycle import TaskState
from protocol.assignments import RejectCode
from protocol.messages import Scope
from protocol.recipe import Requirements
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


def proven_farm(*names: str) -> Simulation:
    """Clients that have delivered a round of another task."""
    farm = Simulation()
    for name in names:
        farm.join(name)
    farm.submit(spec(rounds=1, round_samples=10 * len(names), min_clients=len(names)), "before")
    farm.run()
    assert farm.task("before").state is TaskState.COMPLETED
    assert all(client.delivered for client in farm.ledger.clients.values())
    return farm


def says_the_code_failed(farm: Simulation, liar: Volunteer) -> None:
    farm.fail(liar, Scope.NOBODY, "train.py:3: NameError", code="task_code")


def says_it_died(farm: Simulation, liar: Volunteer) -> None:
    farm.fail(liar, Scope.ELSEWHERE, "the executor was killed by SIGSEGV", code="killed")


def says_it_is_not_possible(farm: Simulation, liar: Volunteer) -> None:
    farm.fail(liar, Scope.ELSEWHERE, "no", code="machine")


def says_out_of_memory(farm: Simulation, liar: Volunteer) -> None:
    farm.fail(liar, Scope.ELSEWHERE, "out of memory", code="out_of_memory")


def says_a_module_is_missing(farm: Simulation, liar: Volunteer) -> None:
    farm.fail(liar, Scope.ELSEWHERE, "No module named 'torch'", code="missing_module")


LIES = [says_the_code_failed, says_it_died, says_it_is_not_possible, says_out_of_memory, says_a_module_is_missing]
Lie = Callable[[Simulation, Volunteer], None]


@pytest.mark.parametrize("lie", LIES)
def test_new_identities_cannot_end_a_task_that_proven_clients_could_do(lie: Lie) -> None:
    farm = proven_farm("ada", "bob")
    liars = [farm.join(f"liar{i}") for i in range(3)]
    farm.submit(spec(rounds=4, init_min_clients=4, max_retries=0))
    for _ in range(8):
        for liar in liars:
            while liar.held:
                lie(farm, liar)
        farm.tick(1)
    assert farm.task().state in {TaskState.ASSIGNED, TaskState.RUNNING}
    for _ in range(100):
        for name in ("ada", "bob"):
            while farm.volunteers[name].held:
                farm.deliver(farm.volunteers[name])
        for liar in liars:
            while liar.held:
                lie(farm, liar)
        farm.tick(1)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().retries == 0
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_nobody_else_being_there_three_new_identities_cannot_end_a_rehearsed_task_at_once() -> None:
    farm = Simulation()
    liars = [farm.join(f"liar{i}") for i in range(3)]
    farm.submit(spec().model_copy(update={"rehearsed": True}))
    for liar in liars:
        while liar.held:
            says_the_code_failed(farm, liar)
    assert farm.task().state is TaskState.PENDING
    farm.tick(1)
    assert "train.py:3: NameError" in farm.view().why, "the reason is told while it waits"
    ada = farm.join("ada")
    assert ada.held
    farm.run()
    farm.tick(1)
    assert farm.task().version > 0


def test_a_rehearsed_task_that_fails_on_every_new_client_for_a_while_fails() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec().model_copy(update={"rehearsed": True}))
    seconds = 0
    while farm.task().state is not TaskState.FAILED and seconds < 100:
        for volunteer in farm.volunteers.values():
            while volunteer.held:
                says_the_code_failed(farm, volunteer)
        farm.tick(1)
        seconds += 1
    assert 20 <= seconds <= 40
    assert "the task's code failed on 2 clients: train.py:3: NameError" in (farm.task().error or "")


def test_the_word_of_two_proven_clients_is_enough_whoever_else_is_there() -> None:
    farm = proven_farm("ada", "bob", "eve")
    farm.submit(spec(min_clients=3, round_samples=30).model_copy(update={"rehearsed": True}))
    says_the_code_failed(farm, farm.volunteers["ada"])
    says_the_code_failed(farm, farm.volunteers["bob"])
    assert farm.task().state is not TaskState.FAILED
    holder = next(v for v in farm.volunteers.values() if v.held)
    says_the_code_failed(farm, holder)
    assert farm.task().state is TaskState.FAILED


def test_a_client_whose_word_was_disproved_has_a_fault_of_its_own() -> None:
    farm = proven_farm("ada", "bob")
    liar = farm.join("liar")
    for i in range(8):
        farm.submit(spec(rounds=1, init_min_clients=1), f"t{i}")
        for _ in range(40):
            for v in (liar, farm.volunteers["ada"], farm.volunteers["bob"]):
                while v.held:
                    says_the_code_failed(farm, v) if v is liar else farm.deliver(v)
            farm.tick(1)
        assert farm.task(f"t{i}").state is TaskState.COMPLETED
    views = {view.name: view for view in farm.coordinator.client_views(farm.now)}
    assert views["liar"].breaker != "closed"
    assert views["ada"].breaker == views["bob"].breaker == "closed"


def dies(farm: Simulation, volunteer: Volunteer, how: str = "the executor was killed by SIGSEGV") -> None:
    farm.fail(volunteer, Scope.ELSEWHERE, how, code="exited" if "code" in how else "killed")


@pytest.mark.parametrize("how", ["the executor was killed by SIGSEGV", "the executor exited by itself with code 3"])
def test_the_same_death_on_two_clients_is_the_tasks_fault(how: str) -> None:
    farm = proven_farm("ada", "bob")
    other = spec(rounds=2)
    for i in range(3):
        farm.submit(spec(), f"deadly{i}")
        for _ in range(20):
            for volunteer in farm.volunteers.values():
                while volunteer.held:
                    dies(farm, volunteer, how)
            farm.tick(1)
        assert farm.task(f"deadly{i}").state is TaskState.FAILED
        assert how in (farm.task(f"deadly{i}").error or "")
    assert {view.breaker for view in farm.coordinator.client_views(farm.now)} == {"closed"}
    farm.submit(other, "other")
    farm.run()
    assert farm.task("other").state is TaskState.COMPLETED


def test_different_deaths_are_not_the_same() -> None:
    farm = proven_farm("ada", "bob")
    farm.submit(spec(min_clients=2))
    dies(farm, farm.volunteers["ada"])
    dies(farm, farm.volunteers["bob"], "the executor was killed by SIGABRT")
    assert farm.task().state is not TaskState.FAILED


def test_a_kill_may_come_from_outside_and_must_repeat_itself() -> None:
    farm = proven_farm("ada", "bob")
    farm.submit(spec(min_clients=2))
    for name in ("ada", "bob"):
        dies(farm, farm.volunteers[name], "the executor was killed by SIGKILL")
    assert farm.task().state is not TaskState.FAILED
    for _ in range(60):
        for volunteer in farm.volunteers.values():
            while volunteer.held:
                dies(farm, volunteer, "the executor was killed by SIGKILL")
        farm.tick(1)
    assert farm.task().state is TaskState.FAILED


def test_the_only_clients_executor_must_die_three_times() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec())
    deaths = 0
    for _ in range(60):
        while ada.held:
            assert farm.task().state is not TaskState.FAILED
            dies(farm, ada)
            deaths += 1
        farm.tick(1)
    assert (deaths, farm.task().state) == (3, TaskState.FAILED)


def test_a_round_that_commits_between_deaths_speaks_for_the_task() -> None:
    farm = proven_farm("ada", "bob")
    farm.submit(spec(rounds=6, min_clients=1))
    for name in ("ada", "bob", "ada", "bob"):
        for _ in range(20):
            if farm.volunteers[name].held:
                break
            farm.tick(1)
        if farm.volunteers[name].held:
            dies(farm, farm.volunteers[name])
        farm.tick(40)
        version = farm.task().version
        while farm.task().version == version:
            farm.deliver(next(v for v in farm.volunteers.values() if v.held))
    assert farm.task().state is not TaskState.FAILED


def test_a_missing_module_is_the_machines_lack_until_it_comes_back_with_it() -> None:
    farm = Simulation()
    without = [farm.join(f"v{i}") for i in range(3)]
    farm.submit(spec(rounds=2, requirements=Requirements(modules=("transformers",))))
    for volunteer in without:
        while volunteer.held:
            assert volunteer.held[0].task.modules == ("transformers",), "by which it knows before it fetches anything"
            farm.fail(volunteer, Scope.ELSEWHERE, "No module named 'transformers'", code="missing_module")
    farm.tick(1000)
    assert farm.task().state is TaskState.PENDING
    assert "lacks what the task imports: No module named 'transformers'" in farm.view().why
    assert all(client.failed == 0 for client in farm.ledger.clients.values())
    farm.leave(without[0])
    farm.join(without[0])
    assert without[0].held, "another connection may have other modules"
    farm.fail(without[0], Scope.ELSEWHERE, "No module named 'transformers'", code="missing_module")
    for name in ("ada", "bob"):
        farm.join(name)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_who_ran_out_of_memory_is_not_asked_again_at_once_and_somebody_else_is() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(rounds=2))
    times = []
    for second in range(300):
        if ada.held:
            says_out_of_memory(farm, ada)
            times.append(second)
        farm.tick(1)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 30
    assert gaps == sorted(gaps)
    assert farm.coordinator.client_views(farm.now)[0].breaker == "closed"
    bob = farm.join("bob")
    assert bob.held
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_a_refusal_for_size_keeps_only_that_client_off() -> None:
    farm = proven_farm("ada")
    liars = [farm.join(f"liar{i}") for i in range(3)]
    farm.submit(spec(init_min_clients=4, round_samples=20))
    for liar in liars:
        assign = liar.held.popleft()
        here = (f"id-{liar.name}", liar.incarnation, assign.assignment_id, assign.fence)
        farm.handle(AssignmentRejected(*here, code=RejectCode.DOES_NOT_FIT, message="no"))
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
