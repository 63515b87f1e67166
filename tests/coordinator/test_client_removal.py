"""A person removes a client: it is forgotten everywhere, and what it did or held harms no task."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.commands import DropClient
from coordinator.events import Action, ClientLost, ClientRemoved, TaskAction
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Ack
from protocol.errors import Conflict, NotFound
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, spec


def remove(farm: Simulation, name: str, *, force: bool = False) -> None:
    farm.handle(ClientRemoved(f"id-{name}", force))


def known(farm: Simulation) -> list[str]:
    return [client.name for client in farm.coordinator.client_views(farm.now)]


def test_one_that_is_gone_is_forgotten_and_comes_back_as_a_newcomer() -> None:
    farm = Simulation()
    farm.submit(spec(rounds=1))
    ada = farm.join("ada")
    farm.join("bob")
    farm.run()
    farm.leave(ada)
    remove(farm, "ada")
    assert known(farm) == ["bob"]
    assert set(farm.ledger.clients) == {"id-bob"}
    assert farm.ledger.events[-1].kind == "client_removed"
    assert farm.ledger.events[-1].client_id == "id-ada"
    assert {a.client_id for a in farm.ledger.assignments.values()} == {"id-ada"}, "the past keeps its id"
    farm.join(ada)
    back = next(c for c in farm.coordinator.client_views(farm.now) if c.name == "ada")
    assert (back.state, back.delivered) == ("online", 0)


def test_nobody_of_that_id_is_not_found() -> None:
    with pytest.raises(NotFound, match="farm clients"):
        remove(Simulation(), "nobody", force=True)


def test_one_that_is_connected_is_refused_and_goes_on() -> None:
    farm = Simulation()
    farm.submit(spec())
    farm.join("ada")
    with pytest.raises(Conflict, match=r"ada \(id-ada\) is connected.*--force"):
        remove(farm, "ada")
    assert known(farm) == ["ada"]
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_by_force_what_it_held_is_offered_to_others_and_its_connection_closed() -> None:
    farm = Simulation()
    farm.submit(spec(rounds=1))
    ada = farm.join("ada")
    (held,) = ada.held
    remove(farm, "ada", force=True)
    (drop,) = [c for c in farm.log if isinstance(c, DropClient)]
    assert (drop.client_id, drop.incarnation) == ("id-ada", ada.incarnation)
    assert farm.ledger.assignments[held.assignment_id].state is AssignmentState.EXPIRED
    farm.handle(farm.result(ada, held))  # said before its connection was closed
    farm.handle(ClientLost("id-ada", ada.incarnation, "closed"))
    assert known(farm) == []
    bob = farm.join("bob")
    assert bob.held, "nobody waits for the return of who was removed"
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().samples_done == 20
    assert set(farm.ledger.clients) == {"id-bob"}


def test_what_it_delivered_counts_and_brings_it_not_back() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(rounds=1))
    done = farm.deliver(farm.volunteers["ada"])
    remove(farm, "ada", force=True)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.assignments[done.assignment_id].counted
    assert set(farm.ledger.clients) == {"id-bob"}


def test_after_a_restart_nobody_waits_for_it() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(rounds=1))
    done = farm.deliver(farm.volunteers["ada"])
    remove(farm, "ada", force=True)
    farm.restart()  # its update was in memory only: somebody else trains its part
    assert farm.ledger.assignments[done.assignment_id].state is AssignmentState.EXPIRED
    assert known(farm) == ["bob"]
    bob = farm.volunteers["bob"]
    bob.held.clear()
    farm.join(bob)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_its_acknowledgement_goes_to_whoever_has_its_id_now() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(rounds=1))
    ada = farm.volunteers["ada"]
    done = farm.deliver(ada)
    remove(farm, "ada", force=True)
    farm.join(ada)
    farm.run()
    acks = [m for m in ada.messages if isinstance(m, Ack) and m.assignment_id == done.assignment_id]
    assert acks
    assert not ada.outbox


def test_a_round_that_it_delivered_to_can_be_given_up() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec())
    farm.deliver(farm.volunteers["ada"])
    remove(farm, "ada", force=True)
    farm.handle(TaskAction("t1", Action.CANCEL))
    assert farm.task().state is TaskState.CANCELLED


def test_rounds_in_memory_that_it_delivered_to_become_durable() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec())
    farm.hold_writes = True
    done = farm.deliver(farm.volunteers["ada"])
    farm.deliver(farm.volunteers["bob"])
    assert not farm.ledger.assignments[done.assignment_id].counted
    remove(farm, "ada", force=True)
    farm.hold_writes = False
    farm.finish_writes()
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.assignments[done.assignment_id].counted


def test_what_it_did_ahead_of_its_round_counts() -> None:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(shards=(20, 20), pipeline=True, max_staleness=1, rounds=2))
    ada = farm.volunteers["ada"]
    farm.upload(ada, farm.compute(ada))
    ahead = farm.deliver(ada)
    assert farm.task().version == 0
    remove(farm, "ada", force=True)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.assignments[ahead.assignment_id].counted_in == 1


def test_what_it_said_against_the_task_is_held_against_nobody() -> None:
    farm = Simulation()
    for name in NAMES:
        farm.join(name)
    farm.submit(spec(rounds=1))
    farm.fail(next(v for v in farm.volunteers.values() if v.held), Scope.NOBODY)
    (speaker,) = {a.client_id for a in farm.ledger.assignments.values() if a.state is AssignmentState.FAILED}
    remove(farm, speaker.removeprefix("id-"), force=True)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


NAMES = ("ada", "bob", "eve")
RECIPES = (
    {},
    {"over_provision": 0.5, "max_staleness": 1},
    {"pipeline": True, "max_staleness": 1},
    {"evaluate_every": 1},
)


def happen(farm: Simulation, what: str, name: str) -> None:
    volunteer = farm.volunteers[name]
    match what:
        case "work" if volunteer.online and volunteer.held:
            farm.deliver(volunteer)
        case "fail" if volunteer.online and volunteer.held:
            farm.fail(volunteer)
        case "remove" if f"id-{name}" in farm.ledger.clients:
            remove(farm, name, force=True)
            volunteer.held.clear()
            assert f"id-{name}" not in farm.ledger.clients
        case "leave" if volunteer.online:
            farm.leave(volunteer)
        case "join":
            come(farm, name)
        case "restart":
            farm.restart()
        case "write":
            farm.finish_writes()


def come(farm: Simulation, name: str) -> None:
    if not farm.volunteers[name].online:
        farm.volunteers[name].held.clear()
        farm.join(name)


def end(farm: Simulation) -> None:
    for _ in range(40):
        for name in NAMES:
            come(farm, name)
        farm.run()
        if farm.task().state is TaskState.COMPLETED:
            return
        farm.tick(120.0)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_removals_at_any_time_lose_no_sample_and_break_no_task(data: st.DataObject) -> None:
    farm = Simulation()
    farm.submit(spec(shards=(30, 30), holdout=(5,), rounds=None, epochs=1, **data.draw(st.sampled_from(RECIPES))))
    for name in NAMES:
        farm.join(name)
    events = st.sampled_from(["work", "work", "remove", "leave", "join", "fail", "restart", "write"])
    farm.hold_writes = data.draw(st.booleans())
    for what, name in data.draw(st.lists(st.tuples(events, st.sampled_from(NAMES)), max_size=30)):
        happen(farm, what, name)
        farm.tick()
    farm.hold_writes = False
    farm.finish_writes()
    assert {client.client_id for client in farm.coordinator.client_views(farm.now)} == set(farm.ledger.clients)
    end(farm)
    assert farm.task().state is TaskState.COMPLETED, farm.view().why
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
