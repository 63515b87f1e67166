"""What clients store of the steps in which a task's code failed: kept once for each line, at most three for a task."""

from __future__ import annotations

from coordinator.events import Action, TaskAction
from coordinator.lifecycle import TaskState
from protocol.assignments import Assign, Kind
from protocol.digests import digest_bytes
from protocol.failed_steps import largest_failed_step_bytes
from protocol.messages import Scope
from protocol.tasks import BlobRef
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

LIMIT_BYTES = largest_failed_step_bytes(0)


def blob(name: str, size_bytes: int = 10) -> BlobRef:
    return BlobRef(digest=digest_bytes(name.encode()), size_bytes=size_bytes)


def training(clients: int = 6) -> tuple[Simulation, list[Volunteer]]:
    """Return a farm whose task is with so many clients, none of which can end it alone."""
    farm = Simulation()
    volunteers = [farm.join(f"v{number}") for number in range(clients)]
    farm.submit(spec(rounds=2, round_samples=10 * clients, min_clients=clients, init_min_clients=clients))
    assert all(one.held for one in volunteers)
    return farm, volunteers


def fail(
    farm: Simulation, volunteer: Volunteer, message: str, step: BlobRef | None, scope: Scope = Scope.NOBODY
) -> Assign:
    return farm.fail(volunteer, scope, message, code="task_code", failed_step=step)


def lines(farm: Simulation) -> list[str]:
    return [step.line for step in farm.ledger.failed_steps_of("t1")]


def test_an_offer_says_how_much_the_farm_takes() -> None:
    _, (first, *_) = training()
    assert first.held[0].failed_step_bytes == LIMIT_BYTES


def test_an_evaluation_is_asked_for_nothing() -> None:
    farm = Simulation()
    client = farm.join("v")
    farm.submit(spec(rounds=2, evaluate_every=1, holdout=(5,)))
    farm.deliver(client)
    farm.tick(1)
    assert [assign.kind for assign in client.held] == [Kind.EVALUATE]
    assert client.held[0].failed_step_bytes == 0


def test_the_first_of_each_line_is_kept() -> None:
    farm, (a, b, c, *_) = training()
    fail(farm, a, "t.py:3, in loss: ValueError: row 1", blob("one"))
    fail(farm, b, "t.py:3, in loss: ValueError: row 2", blob("two"))
    fail(farm, c, "t.py:9, in loss: KeyError: x", blob("three", 20))
    kept = farm.ledger.failed_steps_of("t1")
    assert [(step.line, step.digest, step.size_bytes) for step in kept] == [
        ("t.py:3, in loss", blob("one").digest, 10),
        ("t.py:9, in loss", blob("three").digest, 20),
    ]
    assert [event.data for event in farm.ledger.events if event.kind == "failed_step_kept"] == [{}, {}]
    assert {blob("one").digest, blob("three").digest} <= farm.ledger.referenced_digests()
    assert blob("two").digest not in farm.ledger.referenced_digests()


def test_the_fourth_is_not_kept_and_no_more_are_asked_for() -> None:
    farm, volunteers = training()
    for number, volunteer in enumerate(volunteers[:3]):
        fail(farm, volunteer, f"t.py:{number}, in loss: ValueError", blob(str(number)))
    assert farm.task().state is TaskState.FAILED
    farm.handle(TaskAction("t1", Action.RETRY))
    farm.tick(1)
    (again, *_) = [one for one in volunteers if one.held]
    assert again.held[0].failed_step_bytes == 0
    fail(farm, again, "t.py:9, in loss: ValueError", blob("fourth"))
    assert lines(farm) == [f"t.py:{number}, in loss" for number in range(3)]


def test_what_says_nothing_against_the_code_is_not_kept() -> None:
    farm, (a, b, c, *_) = training()
    fail(farm, a, "t.py:3, in loss: OSError", blob("one"), Scope.ELSEWHERE)
    fail(farm, b, "t.py:4, in loss: ValueError", None)
    fail(farm, c, "t.py:5, in loss: ValueError", blob("large", LIMIT_BYTES + 1))
    assert lines(farm) == []


def test_a_restarted_server_knows_what_it_has() -> None:
    farm, (a, b, *_) = training()
    fail(farm, a, "t.py:3, in loss: ValueError: x", blob("one"))
    farm.restart()
    farm.join(b.name)
    farm.tick(1)
    fail(farm, b, "t.py:3, in loss: ValueError: y", blob("two"))
    assert [step.digest for step in farm.ledger.failed_steps_of("t1")] == [blob("one").digest]


def test_a_task_that_failed_and_is_retried_is_not_asked_again_for_the_same() -> None:
    farm = Simulation()
    client = farm.join("v")
    farm.submit(spec(rounds=2))
    for number in range(2):
        fail(farm, client, "t.py:3, in loss: ValueError: x", blob(str(number)))
        assert farm.task().state is TaskState.FAILED
        farm.tick(1)
        farm.handle(TaskAction("t1", Action.RETRY))
        farm.tick(1)
    assert [step.digest for step in farm.ledger.failed_steps_of("t1")] == [blob("0").digest]


def test_it_goes_with_the_task() -> None:
    farm, (a, *_) = training()
    fail(farm, a, "t.py:3, in loss: ValueError: x", blob("one"))
    farm.handle(TaskAction("t1", Action.CANCEL))
    assert blob("one").digest in farm.ledger.referenced_digests()
    farm.ledger.remove_task("t1")
    assert lines(farm) == []
    assert blob("one").digest not in farm.ledger.referenced_digests()
