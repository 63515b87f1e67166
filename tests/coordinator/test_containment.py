"""A turn answers whole or leaves no trace: what breaks in one task's rules ends its attempt, and all others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coordinator import expiry, offers, results, rounds, scheduling, step_ends
from coordinator.events import Action, TaskAction
from coordinator.in_flight import Stage
from coordinator.lifecycle import ENDED, IllegalTransition, TaskState
from coordinator.records import AssignmentRecord, RoundState
from coordinator.settings import CoordinatorSettings
from coordinator.state import TaskRun
from protocol.assignments import Ack, Cancel
from protocol.errors import Conflict, FarmError, NotFound
from protocol.retry import RetryPolicy
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

DEFECTS = (RuntimeError("planted"), Conflict("planted"), IllegalTransition("planted"), OverflowError("planted"))


def farm_of_two(**recipe: object) -> Simulation:
    """A farm with volunteers for the tasks ``good`` and ``bad``, which want one client each."""
    farm = Simulation(settings=CoordinatorSettings(task_retry=RetryPolicy(0.0, 0.0)))
    farm.expects_defects = True
    farm.submit(spec(name="bad", rounds=2, max_clients=1, max_retries=0, **recipe), "bad")
    farm.submit(spec(name="good", rounds=2, max_clients=1), "good")
    return farm


def break_for(task_id: str, patch: pytest.MonkeyPatch, place: Any, name: str, error: Exception, *, after: bool) -> None:
    """Let a rule raise for one task, before it did anything or after it did all."""
    rule: Callable[..., Any] = getattr(place, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        about = next(x for x in arguments if isinstance(x, TaskRun))
        if about.task_id != task_id:
            return rule(*arguments, **named)
        if after:
            rule(*arguments, **named)
        raise error

    patch.setattr(place, name, broken)


def check_books(farm: Simulation) -> None:
    """Memory and ledger agree about tasks, and about who holds what."""
    runs = farm.coordinator._farm.tasks
    assert {t: (r.record.state, r.record.version) for t, r in runs.items()} == {
        t: (r.state, r.version) for t, r in farm.ledger.tasks.items() if r.state not in ENDED
    }
    held = {a.assignment_id for a in farm.ledger.assignments.values() if a.state in ("offered", "accepted", "running")}
    mine = {name for client in farm.coordinator._farm.clients.values() for name in client.held}
    dormant = {lease.assignment_id for run in runs.values() for lease in run.leases if lease.stage is Stage.DORMANT}
    delivered = {lease.assignment_id for run in runs.values() for lease in run.leases if lease.stage is Stage.DELIVERED}
    assert held == mine | dormant | delivered
    for client in farm.coordinator._farm.clients.values():
        volunteer = next(v for v in farm.volunteers.values() if f"id-{v.name}" == client.client_id)
        assert client.slots == volunteer.slots - len(client.held), volunteer.name


@pytest.mark.parametrize("error", DEFECTS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("place", "name"), [(scheduling, "_serve"), (scheduling, "verdict"), (scheduling, "open_round"), (rounds, "offer")]
)
def test_a_defect_in_serving_a_task_ends_its_attempt_and_no_other(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: bool, error: Exception
) -> None:
    farm = farm_of_two()
    with monkeypatch.context() as patch:
        break_for("bad", patch, place, name, error, after=after)
        ada, bob = farm.join("ada"), farm.join("bob")
        assert farm.task("bad").state is TaskState.FAILED
        check_books(farm)
        sent = [m for v in (ada, bob) for m in v.messages if m.type == "assign" and m.task.task_id == "bad"]
        assert not sent, "no command of the broken turn went out"
        farm.handle(TaskAction("good", Action.PAUSE))
        farm.handle(TaskAction("good", Action.RESUME))
        farm.tick()
        farm.submit(spec(name="third", rounds=1, max_clients=1), "third")
        farm.run()
    assert [farm.task(t).state for t in ("good", "third")] == [TaskState.COMPLETED] * 2
    why = farm.view("bad").why
    assert "the server has a defect" in why
    assert "farm retry bad" in why
    assert {d.task_id for d in farm.defects} == {"bad"}
    assert farm.defects[0].error is error
    farm.handle(TaskAction("bad", Action.RETRY))
    farm.run()
    assert farm.task("bad").state is TaskState.COMPLETED
    check_books(farm)


@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (results, "_deliver", False),
        (results, "_deliver", True),
        (results, "_done", True),
        (results, "fold_in_turn", True),
        (step_ends, "commit", False),
        (step_ends, "commit", True),
    ],
)
def test_a_defect_in_taking_a_result_counts_nothing_and_tells_the_client(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: bool
) -> None:
    farm = farm_of_two()
    ada, bob = farm.join("ada"), farm.join("bob")
    worker = next(v for v in (ada, bob) if v.held[0].task.task_id == "bad")
    with monkeypatch.context() as patch:
        break_for("bad", patch, place, name, RuntimeError("planted"), after=after)
        assign = farm.deliver(worker)
        assert farm.task("bad").state is TaskState.FAILED
        assert farm.ledger.rounds["bad", 0].state is RoundState.ABANDONED
        told = [m for m in worker.messages if isinstance(m, Ack | Cancel) and m.assignment_id == assign.assignment_id]
        assert told, "the client forgets the result"
        assert not any(m.counted for m in told if isinstance(m, Ack))
        check_books(farm)
        farm.run()
    assert farm.task("good").state is TaskState.COMPLETED
    farm.handle(TaskAction("bad", Action.RETRY))
    farm.run()
    assert farm.task("bad").state is TaskState.COMPLETED
    assert farm.task("bad").samples_done == 40, "nothing counted twice"


def test_a_defect_in_the_commit_of_a_version_goes_back_to_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    farm.join("ada"), farm.join("bob")
    with monkeypatch.context() as patch:
        break_for("bad", patch, rounds, "evaluation_is_due", RuntimeError("planted"), after=True)
        farm.run()
    assert (farm.task("bad").state, farm.task("bad").version) == (TaskState.FAILED, 0)
    check_books(farm)
    farm.handle(TaskAction("bad", Action.RETRY))
    farm.run()
    assert farm.task("bad").samples_done == 40


def test_a_client_is_lost_whole_though_one_of_its_tasks_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    ada = farm.join(Volunteer("ada", slots=2))
    assert {a.task.task_id for a in ada.held} == {"good", "bad"}
    with monkeypatch.context() as patch:
        suspend = offers.suspend

        def broken(turn: Any, run: TaskRun, lease: Any, why: str) -> None:
            suspend(turn, run, lease, why)
            if run.task_id == "bad":
                raise RuntimeError("planted")

        patch.setattr("coordinator.fleet.suspend", broken)
        farm.leave(ada)
    assert not farm.coordinator._farm.clients["id-ada"].held
    assert farm.task("bad").state is TaskState.FAILED
    assert farm.task("good").state is TaskState.PENDING
    assert len(farm.coordinator._farm.tasks["good"].step.parts.dormant) == 1


def test_a_defect_in_one_task_keeps_the_tick_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    farm.join("ada"), farm.join("bob")
    break_for("bad", monkeypatch, expiry, "_expire_in", RuntimeError("planted"), after=False)
    farm.tick(farm.settings.offer_seconds + 1)
    assert farm.task("bad").state is TaskState.FAILED
    expired = [a for a in farm.ledger.assignments.values() if a.task_id == "good" and a.state == "expired"]
    assert expired, "the lease of the good task ended in the same tick"


def test_what_is_not_yet_durable_rolls_back_with_the_broken_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Simulation(settings=CoordinatorSettings(task_retry=RetryPolicy(0.0, 0.0)))
    farm.expects_defects = True
    farm.submit(spec(rounds=6, max_retries=0), "bad")
    ada = farm.join("ada")
    farm.deliver(ada)
    farm.hold_writes = True
    farm.deliver(ada)
    assert farm.coordinator._farm.tasks["bad"].record.version == 2
    with monkeypatch.context() as patch:
        break_for("bad", patch, step_ends, "commit", RuntimeError("planted"), after=True)
        farm.deliver(ada)
    assert farm.task("bad").version == 1, "the first round is durable"
    assert not ada.outbox, "all results are settled: those of rounds in memory count for nothing"
    check_books(farm)
    farm.hold_writes = False
    farm.unwritten.clear()
    farm.handle(TaskAction("bad", Action.RETRY))
    farm.run()
    assert (farm.task("bad").state, farm.task("bad").samples_done) == (TaskState.COMPLETED, 120)


def test_a_request_that_breaks_is_reported_and_a_refused_one_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    farm.join("ada"), farm.join("bob")
    before = len(farm.log)
    for task_id, action, error in (
        ("none", Action.PAUSE, NotFound),
        ("good", Action.RESUME, IllegalTransition),
        ("good", Action.RETRY, IllegalTransition),
    ):
        with pytest.raises(error):
            farm.handle(TaskAction(task_id, action))
    assert len(farm.log) == before
    assert not farm.defects
    with monkeypatch.context() as patch:
        patch.setattr("coordinator.tasks.stop_work", _raise)
        farm.handle(TaskAction("bad", Action.PAUSE))
    assert farm.task("bad").state is TaskState.FAILED
    assert [d.task_id for d in farm.defects] == ["bad"]
    check_books(farm)


def test_a_defect_that_is_of_no_task_stops_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    with monkeypatch.context() as patch:
        patch.setattr("coordinator.scheduling.queue_order", _raise)
        farm.join("ada")
        farm.handle(TaskAction("good", Action.PAUSE))
    assert farm.task("good").state is TaskState.PAUSED
    assert {d.task_id for d in farm.defects} == {None}


def test_a_task_that_cannot_even_be_given_up_stands_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = farm_of_two()
    with monkeypatch.context() as patch:
        break_for("bad", patch, scheduling, "_serve", RuntimeError("planted"), after=False)
        patch.setattr("coordinator.containment.end_attempt", _raise)
        farm.join("ada")
        farm.run()
    assert farm.task("good").state is TaskState.COMPLETED
    assert any("stands until a restart" in d.message for d in farm.defects)
    farm.restart()
    farm.join("ada")
    farm.run()
    assert farm.task("bad").state is TaskState.COMPLETED


def _raise(*_: object, **__: object) -> None:
    raise FarmError("planted")


def test_assignments_of_the_past_are_forgotten() -> None:
    farm = Simulation()
    farm.submit(spec(rounds=30))
    ada = farm.join("ada")
    for _ in range(25):
        farm.deliver(ada)
    assert len(farm.coordinator._farm.leases) <= 2
    assert isinstance(farm.ledger.assignments["a1"], AssignmentRecord)
