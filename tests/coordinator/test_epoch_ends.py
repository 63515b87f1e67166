"""The end of an epoch: one client runs ``on_epoch_end``, what it leaves is kept, and training goes on in any case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.events import Action, ClientBeat, TaskAction
from coordinator.lifecycle import TaskState
from coordinator.records import ArtefactRecord
from coordinator.stopping import epoch_end_is_due
from protocol.artefacts import MAX_FILE_BYTES, MAX_TASK_BYTES, Artefact
from protocol.assignments import Assign, AssignmentProgress, Kind, Phase
from protocol.digests import digest_bytes
from protocol.messages import Scope
from protocol.tasks import TaskSpec
from protocol.versions import EPOCH_END
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

STALL_SECONDS = 60.0


def file(name: str, size_bytes: int = 10) -> Artefact:
    return Artefact(name=name, digest=digest_bytes(name.encode()), size_bytes=size_bytes)


def ending(epochs: int = 2, **recipe: object) -> TaskSpec:
    """A task whose epochs have two rounds."""
    recipe = {"shards": (10, 10), "round_samples": 10, "rounds": None, "epochs": epochs} | recipe
    return spec(**recipe).model_copy(update={"epoch_end": True})  # type: ignore[arg-type]  # fields of a recipe


def volunteer(name: str, *leaves: Artefact) -> Volunteer:
    return Volunteer(name, features=(EPOCH_END,), leaves=leaves)


def at_first_end(*others: str, **recipe: object) -> tuple[Simulation, Volunteer]:
    """Return a farm whose task has trained one epoch, and the client that got its end."""
    farm = Simulation()
    first = farm.join(volunteer("ada", file("a.png")))
    farm.submit(ending(max_clients=1, **recipe))
    farm.deliver(first)
    farm.deliver(first)
    for name in others:
        farm.join(volunteer(name, file("b.png")))
    assert only_kind(first) is Kind.EPOCH_END
    return farm, first


def only_kind(client: Volunteer) -> Kind:
    (assign,) = client.held
    return assign.kind


def kinds(farm: Simulation) -> list[str]:
    return [event.kind for event in farm.ledger.events if event.kind.startswith(("epoch_end", "artefacts"))]


def kept(farm: Simulation) -> list[tuple[int, str]]:
    return [(artefact.epoch, artefact.name) for artefact in farm.ledger.artefacts_of("t1")]


def fail(farm: Simulation, client: Volunteer, message: str, scope: Scope = Scope.NOBODY) -> Assign:
    return farm.fail(client, scope, message, code="task_code")


def beat(farm: Simulation, client: Volunteer) -> None:
    for assign in client.held:
        progress = AssignmentProgress(assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING)
        farm.handle(ClientBeat(f"id-{client.name}", client.incarnation, None, (progress,)))


def test_each_epochs_end_is_run_once_and_the_last_one_before_the_task_is_complete() -> None:
    farm, client = at_first_end()
    (assign,) = client.held
    assert (assign.round, assign.epoch, assign.slices, assign.inner_state) == (2, 0, (), None)
    assert assign.weights == farm.ledger.checkpoints["t1", 2].weights, "those of a version that is durable"
    farm.deliver(client)
    assert [farm.deliver(client).kind for _ in range(2)] == [Kind.TRAIN, Kind.TRAIN]
    assert only_kind(client) is Kind.EPOCH_END
    assert farm.task().state is TaskState.RUNNING
    client.leaves = (file("a.png", 20), file("in/b.txt"))
    farm.deliver(client)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.artefacts_of("t1") == [
        ArtefactRecord("t1", 0, "a.png", file("a.png").digest, 10),
        ArtefactRecord("t1", 1, "a.png", file("a.png").digest, 20),
        ArtefactRecord("t1", 1, "in/b.txt", file("in/b.txt").digest, 10),
    ]
    task = farm.task()
    assert (task.epochs_ended, task.artefact_files, task.artefact_bytes) == (2, 3, 40)
    assert kinds(farm) == ["artefacts_kept", "artefacts_kept"]


def test_it_comes_after_the_evaluation_of_the_same_version() -> None:
    farm = Simulation()
    client = farm.join(volunteer("ada"))
    farm.submit(ending(1, evaluate_every=2, holdout=(5,)))
    assert [farm.deliver(client).kind for _ in range(4)] == ["train", "train", "evaluate", "epoch_end"]
    assert farm.task().state is TaskState.COMPLETED
    assert kinds(farm) == [], "nothing was left, and nothing is said"


@pytest.mark.parametrize("fastest", ["ada", "bob", "eve"])
def test_of_several_idle_clients_the_best_one_gets_it(fastest: str) -> None:
    farm = Simulation()
    clients = [farm.join(volunteer(name)) for name in ("ada", "bob", "eve")]
    farm.submit(ending(1, round_samples=20))
    for client in clients:
        assert farm.deliver(client, seconds=1.0 if client.name == fastest else 4.0).kind is Kind.TRAIN
    assert {client.name: [assign.kind for assign in client.held] for client in clients if client.held} == {
        fastest: [Kind.EPOCH_END]
    }


def test_a_task_without_the_function_and_one_that_ends_within_an_epoch_have_none() -> None:
    farm = Simulation()
    client = farm.join(volunteer("ada"))
    farm.submit(spec(shards=(10, 10), round_samples=10, rounds=2))
    farm.submit(ending(epochs=2, rounds=1), "t2")
    assert [farm.deliver(client).kind for _ in range(3)] == ["train"] * 3
    assert {farm.task("t1").state, farm.task("t2").state} == {TaskState.COMPLETED}


def test_older_clients_get_no_part_of_such_a_task() -> None:
    farm = Simulation()
    old = farm.join("old")
    farm.submit(ending())
    assert not old.held
    assert "cannot run on_epoch_end" in farm.coordinator.why("t1", farm.now)


def test_another_client_does_it_if_the_first_dies() -> None:
    farm, first = at_first_end("bob")
    farm.leave(first)
    bob = farm.volunteers["bob"]
    assert only_kind(bob) is Kind.EPOCH_END
    farm.deliver(bob)
    assert kept(farm) == [(0, "b.png")]
    assert only_kind(bob) is Kind.TRAIN


def test_who_comes_back_with_the_result_is_late_once_another_has_delivered() -> None:
    farm, first = at_first_end("bob")
    (assign,) = first.held
    farm.leave(first, crashed=False)
    farm.deliver(farm.volunteers["bob"])
    first.held.clear()
    farm.join(first)
    farm.handle(farm.result(first, assign))
    assert kept(farm) == [(0, "b.png")]


def test_a_failure_of_the_function_is_told_once_and_training_goes_on() -> None:
    farm, client = at_first_end(epochs=3)
    fail(farm, client, "t.py:9, in on_epoch_end: KeyError: 1")
    assert only_kind(client) is Kind.TRAIN
    farm.deliver(client)
    farm.deliver(client)
    fail(farm, client, "t.py:9, in on_epoch_end: KeyError: 2")
    farm.deliver(client)
    farm.deliver(client)
    fail(farm, client, "t.py:4, in on_epoch_end: OSError: no")
    task = farm.task()
    assert (task.state, task.epochs_ended, task.retries) == (TaskState.COMPLETED, 3, 0)
    assert task.epoch_end_error == "t.py:4, in on_epoch_end: OSError: no"
    told = [event.message for event in farm.ledger.events if event.kind == "epoch_end_given_up"]
    assert told == [
        "epoch 0 left no artefacts: t.py:9, in on_epoch_end: KeyError: 1",
        "epoch 2 left no artefacts: t.py:4, in on_epoch_end: OSError: no",
    ]
    assert len(farm.ledger.logs) == 2


def test_a_machines_failure_is_tried_elsewhere_and_given_up_after_the_last() -> None:
    farm, first = at_first_end("bob")
    bob = farm.volunteers["bob"]
    farm.fail(first, Scope.ELSEWHERE, "No module named 'matplotlib'", code="missing_module")
    assert only_kind(bob) is Kind.EPOCH_END
    farm.fail(bob, Scope.ELSEWHERE, "No module named 'matplotlib'", code="missing_module")
    assert farm.task().epochs_ended == 1
    farm.tick(300)
    assert only_kind(first) is Kind.TRAIN, "it lacks nothing that training needs"


def test_pausing_and_a_restart_lose_nothing_of_it() -> None:
    farm, client = at_first_end()
    farm.handle(TaskAction("t1", Action.PAUSE))
    client.held.clear()
    farm.handle(TaskAction("t1", Action.RESUME))
    farm.restart()
    client.held.clear()
    farm.join(client)
    assert only_kind(client) is Kind.EPOCH_END
    farm.deliver(client)
    assert kept(farm) == [(0, "a.png")]
    farm.restart()
    client.held.clear()
    farm.join(client)
    assert only_kind(client) is Kind.TRAIN, "what was done is not done again"


def test_a_client_that_beats_is_believed_until_the_rounds_longest_time() -> None:
    farm, client = at_first_end(longest_round_seconds=200.0)
    farm.accept(client, client.held[0])
    for _ in range(6):
        farm.tick(STALL_SECONDS / 2)
        beat(farm, client)
    assert only_kind(client) is Kind.EPOCH_END, "it computes, whatever that is"
    for _ in range(4):
        farm.tick(STALL_SECONDS / 2)
        beat(farm, client)
    assert farm.task().epochs_ended == 1
    assert "after 200 s" in (farm.task().epoch_end_error or "")


def test_what_is_over_the_bounds_is_not_kept() -> None:
    farm, client = at_first_end("bob")
    client.leaves = (file("large", MAX_FILE_BYTES + 1),)
    farm.deliver(client)
    assert kept(farm) == []
    bob = farm.volunteers["bob"]
    assert only_kind(bob) is Kind.EPOCH_END, "a client's word is checked, and another one asked"
    farm.deliver(bob)
    assert kept(farm) == [(0, "b.png")]


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, True),
        ({"cursor": 10}, False),
        ({"epochs_ended": 1}, False),
        ({"artefact_bytes": MAX_TASK_BYTES}, False),
        ({"artefact_files": 10_000}, False),
    ],
)
def test_when_an_end_is_due(changes: dict[str, int], due: bool) -> None:
    farm, _ = at_first_end()
    assert epoch_end_is_due(replace(farm.task(), **changes)) is due  # type: ignore[arg-type]  # fields of the record


def test_a_task_that_is_full_says_so_once_and_trains_on() -> None:
    farm, client = at_first_end(epochs=80)
    client.leaves = tuple(file(f"{number}", MAX_FILE_BYTES) for number in range(4))
    runs = 0
    while farm.task().state is not TaskState.COMPLETED:
        runs += farm.deliver(client).kind is Kind.EPOCH_END
    assert runs == MAX_TASK_BYTES // (4 * MAX_FILE_BYTES) == 16
    assert kinds(farm).count("artefacts_full") == 1
