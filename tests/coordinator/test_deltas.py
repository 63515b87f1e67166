"""Which steps from version to version an assignment carries, and when they are deleted."""

from __future__ import annotations

from itertools import pairwise

from coordinator.commands import DropUpdate, Send
from coordinator.events import Action, TaskAction
from protocol.assignments import Assign, Kind
from protocol.compression import CodecName, CodecSpec
from tests.coordinator.farm_simulation import Simulation, Volunteer, blob, spec

INT8 = CodecSpec(name=CodecName.INT8)


def delta_farm(refresh_every: int = 3, delta_bytes: int = 1, rounds: int = 12) -> Simulation:
    farm = Simulation()
    farm.delta_bytes = delta_bytes
    farm.join("ada")
    farm.submit(spec(shards=(400,), rounds=rounds, weights_codec=INT8, refresh_every=refresh_every))
    return farm


def assigned(volunteer: Volunteer) -> Assign:
    (assign,) = volunteer.held
    return assign


def dropped(farm: Simulation) -> list[str]:
    return [c.update.digest for c in farm.log if isinstance(c, DropUpdate)]


def test_a_client_gets_the_step_from_the_version_it_delivered() -> None:
    farm = delta_farm()
    ada = farm.volunteers["ada"]
    before = assigned(ada)
    assert not before.deltas, "there is no older version of the first one"
    farm.deliver(ada)
    after = assigned(ada)
    assert [(d.base, d.digest, d.codec) for d in after.deltas] == [(before.weights.digest, after.weights.digest, INT8)]


def test_a_client_that_missed_some_versions_gets_the_chain() -> None:
    farm = delta_farm()
    ada, bob = farm.volunteers["ada"], farm.join("bob")
    farm.deliver(ada)
    held_by_bob = assigned(bob).weights.digest
    farm.deliver(bob)
    farm.leave(bob)
    farm.deliver(ada)
    farm.deliver(ada)
    bob.cached = (held_by_bob,)
    farm.join(bob)
    farm.deliver(ada)
    chain = assigned(bob).deltas
    assert chain[0].base == held_by_bob
    assert chain[-1].digest == assigned(bob).weights.digest
    assert all(a.digest == b.base for a, b in pairwise(chain))


def test_a_client_that_holds_no_version_gets_the_whole() -> None:
    farm = delta_farm()
    farm.deliver(farm.volunteers["ada"])
    eve = farm.join("eve")
    farm.deliver(farm.volunteers["ada"])
    assert not assigned(eve).deltas


def test_a_chain_is_not_larger_than_the_whole() -> None:
    farm = delta_farm(delta_bytes=blob("t1/1").size_bytes)
    farm.deliver(farm.volunteers["ada"])
    assert not assigned(farm.volunteers["ada"]).deltas


def test_the_oldest_step_is_deleted_when_there_are_as_many_as_allowed() -> None:
    farm = delta_farm(refresh_every=2)
    for _ in range(4):
        farm.deliver(farm.volunteers["ada"])
    assert dropped(farm) == [blob("delta t1/1").digest, blob("delta t1/2").digest]


def test_a_paused_or_ended_task_keeps_none() -> None:
    farm = delta_farm()
    farm.deliver(farm.volunteers["ada"])
    farm.handle(TaskAction("t1", Action.PAUSE))
    assert blob("delta t1/1").digest in dropped(farm)
    farm.handle(TaskAction("t1", Action.RESUME))
    assert not assigned(farm.volunteers["ada"]).deltas


def test_after_a_restart_of_the_server_versions_are_whole_until_there_is_a_new_one() -> None:
    farm = delta_farm()
    ada = farm.volunteers["ada"]
    farm.deliver(ada)
    ada.held.clear()
    farm.restart()
    ada.cached = (blob("t1/1").digest,)
    farm.join(ada)
    assert not assigned(ada).deltas
    farm.deliver(ada)
    assert len(assigned(ada).deltas) == 1


def test_a_client_that_does_not_know_the_codec_is_left_out_with_the_reason() -> None:
    farm = Simulation()
    farm.join(Volunteer("old", codecs=()))
    farm.submit(spec(update_codec=CodecSpec(name=CodecName.SIGN), weights_codec=INT8))
    assert "does not know the codec int8, sign" in farm.coordinator.why("t1", farm.now)


def test_a_version_that_a_client_works_on_is_not_sent_to_it_again() -> None:
    farm = Simulation()
    farm.delta_bytes = 1
    ada = farm.join("ada")
    farm.submit(spec(shards=(400,), rounds=12, weights_codec=INT8, evaluate_every=1, holdout=(5,)))
    seen = []
    for _ in range(4):
        assign = assigned(ada)
        sent = [c for c in farm.log if isinstance(c, Send) and c.message == assign]
        seen.append((assign.kind, len(assign.deltas), [c.holds_weights for c in sent]))
        farm.deliver(ada)
    train, evaluate = Kind.TRAIN, Kind.EVALUATE
    assert seen == [(train, 0, [False]), (evaluate, 1, [False]), (train, 0, [True]), (evaluate, 1, [False])]
