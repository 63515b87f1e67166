"""Errors planted at random into scheduling, planning, offering and counting: every promise holds all the same."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from coordinator import (
    containment,
    durability,
    evaluation,
    expiry,
    fleet,
    offers,
    pipelining,
    results,
    rounds,
    scheduling,
    step_ends,
)
from coordinator.in_flight import Lease
from coordinator.leases import LeaseBook
from coordinator.policies import LateUpdates, Synchronous
from tests.simulation.violation import Planted, Violation
from tests.simulation.world import run_seed

SEEDS = 100
ONE_IN = 200
PLACES = (
    (scheduling, "verdict"),
    (scheduling, "open_round"),
    (scheduling, "_offer_again"),
    (scheduling, "complete"),
    (expiry, "_expire_lease"),
    (rounds, "offer"),
    (rounds, "by_affinity"),
    (rounds, "shares"),
    (rounds, "plan_round"),
    (rounds, "take_up"),
    (rounds, "join_round"),
    (rounds, "become_volatile"),
    (rounds, "announce"),
    (evaluation, "part_out"),
    (pipelining, "offer"),
    (fleet, "suspend"),
    (fleet, "adopt"),
    (offers, "give_up"),
    (offers, "forget"),
    (LeaseBook, "grant"),
    (LeaseBook, "suspend"),
    (LeaseBook, "adopt"),
    (LeaseBook, "deliver"),
    (LeaseBook, "place"),
    (LeaseBook, "end"),
    (LeaseBook, "commit"),
    (results, "_done"),
    (results, "_deliver"),
    (step_ends, "commit"),
    (step_ends, "finish_evaluation"),
    (results, "go_on"),
    (Synchronous, "when_arrived"),
    (LateUpdates, "scale"),
    (results, "join_round"),
    (results, "renew"),
    (durability.Volatile, "reached"),
    (LeaseBook, "settle"),
)


def plant(patch: pytest.MonkeyPatch, place: Any, name: str, rng: Random) -> None:
    """Let a rule raise now and then, before it did anything or after it did all."""
    rule = getattr(place, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if not rng.randrange(ONE_IN):
            raise Planted(f"before {name}")
        answer = rule(*arguments, **named)
        if not rng.randrange(ONE_IN):
            raise Planted(f"after {name}")
        return answer

    patch.setattr(place, name, broken)


def run_with_errors(seed: int, patch: pytest.MonkeyPatch) -> int:
    rng = Random(seed)
    for place, name in PLACES:
        plant(patch, place, name, rng)
    return run_seed(seed).events


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds_though_rules_raise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with_errors(seed, monkeypatch)


@pytest.mark.parametrize("name", ["_forget_the_attempt", "_settle", "_unsettled_updates", "roll_back"])
def test_a_broken_turn_that_leaves_traces_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, name, lambda *_: ())
    assert any(breaks(seed) for seed in range(200)), name


def breaks(seed: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        try:
            run_with_errors(seed, patch)
        except Violation:
            return True
    return False


def forget_what_ended(book: LeaseBook) -> None:
    book._changes.ended.clear()


def forget_what_was_granted_before(book: LeaseBook) -> None:
    book._changes.granted |= book._by_id.keys()


@pytest.mark.parametrize("loss", [forget_what_ended, forget_what_was_granted_before])
def test_a_book_that_undoes_too_little_is_found(
    loss: Callable[[LeaseBook], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    undo = LeaseBook.undo

    def half(book: LeaseBook, task_id: str, now: float) -> list[Lease]:
        loss(book)
        return undo(book, task_id, now)

    monkeypatch.setattr(LeaseBook, "undo", half)
    assert any(breaks(seed) for seed in range(200))
