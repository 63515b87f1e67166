"""Who was silent for too long, found without a look at everybody: the same peers as if everybody was looked at."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.records import ClientRecord
from farm_server.clients.registry import Peer, Registry
from farm_server.clients.report_interval import ReportIntervals
from farm_server.clients.wire import Wire
from protocol.messages import Hello, Message, Pace

INTERVALS = ReportIntervals(2.0, 0.5, 8.0, idle_heartbeat_seconds=20.0)
IDLE_SECONDS = INTERVALS.idle_lost_after_seconds
KNOWN: tuple[ClientRecord, ...] = ()


def joined(registry: Registry, name: str, now: float, said: list[Message] | None = None) -> Peer:
    """``said`` gets what the client is told."""
    hello = Hello(versions=(2,), client_id=name, client_secret="s" * 32, name=name)
    tell = SimpleNamespace(may_send=lambda _: True)
    send = (lambda _: None) if said is None else said.append
    wire = cast("Wire", SimpleNamespace(is_over=False, address="here", session=tell, send=send))
    return registry.admit(hello, wire, now, INTERVALS)[0]


def test_who_works_is_lost_sooner_than_who_waits() -> None:
    registry = Registry(KNOWN, 10)
    working, waiting = joined(registry, "working", 100.0), joined(registry, "waiting", 100.0)
    registry.beats(waiting, holds_some=False, now=100.0)
    assert registry.silent(108.0) == []
    assert registry.silent(108.1) == [working]
    assert registry.silent(100.0 + IDLE_SECONDS) == []
    assert registry.silent(100.1 + IDLE_SECONDS) == [waiting]


def test_who_is_set_to_work_is_given_the_time_of_who_works_from_then_on() -> None:
    registry = Registry(KNOWN, 10)
    peer = joined(registry, "a", 100.0)
    registry.beats(peer, holds_some=False, now=100.0)
    assert registry.silent(110.0) == []
    registry.set_to_work(peer, 130.0)
    assert registry.silent(138.0) == []
    assert registry.silent(138.1) == [peer]


SLOW = replace(INTERVALS, heartbeat_seconds=4.0, lost_after_seconds=12.0)
SELDOM = replace(SLOW, idle_heartbeat_seconds=40.0)


def test_who_waits_hears_of_a_pace_for_work_with_the_work() -> None:
    registry = Registry(KNOWN, 10)
    told: dict[str, list[Message]] = {"working": [], "waiting": []}
    peers = {name: joined(registry, name, 100.0, said) for name, said in told.items()}
    registry.beats(peers["waiting"], holds_some=False, now=100.0)
    registry.change_pace(SLOW, 101.0)
    assert told == {"working": [Pace(**asdict(SLOW))], "waiting": []}
    registry.set_to_work(peers["waiting"], 102.0)
    assert told["waiting"] == [Pace(**asdict(SLOW))]
    assert peers["waiting"].longest_silence(102.0) == 12.0
    registry.set_to_work(peers["waiting"], 103.0)
    registry.change_pace(SLOW, 104.0)
    assert [len(said) for said in told.values()] == [1, 1], "nobody is told twice"


def test_who_waits_hears_of_its_own_pace_at_once() -> None:
    registry = Registry(KNOWN, 10)
    said: list[Message] = []
    peer = joined(registry, "waiting", 100.0, said)
    registry.beats(peer, holds_some=False, now=100.0)
    registry.change_pace(SLOW, 101.0)
    registry.change_pace(SELDOM, 102.0)
    assert said == [Pace(**asdict(SELDOM))]
    assert peer.longest_silence(200.0) == SELDOM.idle_lost_after_seconds


def test_few_are_looked_at_where_many_wait() -> None:
    registry = Registry(KNOWN, 10_000)
    looks = 0

    def counted(peer: Peer) -> Any:
        def at(now: float) -> float:
            nonlocal looks
            looks += 1
            return IDLE_SECONDS

        return SimpleNamespace(at=at, change=None)

    for number in range(1000):
        peer = joined(registry, f"c{number}", 0.0)
        peer.idle_silence_limit = counted(peer)
        registry.beats(peer, holds_some=False, now=0.0)
    registry.silent(9.0)  # each is due as who works once, and then as who waits
    looks = 0
    for tick in range(100):
        assert registry.silent(9.0 + tick / 4) == []
    assert looks == 0


_acts = st.tuples(
    st.floats(0.01, 30.0), st.sampled_from(["frame", "idle", "busy", "assign", "forgive", "replace"]), st.integers(0, 2)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_acts, max_size=40))
def test_it_finds_whom_a_look_at_everybody_finds(acts: list[tuple[float, str, int]]) -> None:
    registry, now = Registry(KNOWN, 10), 1000.0
    peers = [joined(registry, f"c{number}", now) for number in range(3)]
    for passed, act, number in acts:
        now += passed
        peer = peers[number]
        expected = {id(p) for p in registry if p.last_seen + p.longest_silence(now) < now}
        found = registry.silent(now)
        assert {id(p) for p in found} == expected
        assert registry.working() == sum(not p.is_idle for p in registry)
        for lost in found:
            registry.remove(lost)
            peers[peers.index(lost)] = joined(registry, lost.client_id, now)
        if act == "replace":
            peers[number] = joined(registry, peers[number].client_id, now)
        peer = peers[number]
        match act:
            case "frame":
                peer.last_seen = now
            case "idle" | "busy":
                peer.last_seen = now
                registry.beats(peer, holds_some=act == "busy", now=now)
            case "assign":
                registry.set_to_work(peer, now)
            case "forgive":
                registry.forgive(passed, now)
