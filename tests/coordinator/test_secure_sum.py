"""How far a secure sum is, as `farm why` says it."""

from __future__ import annotations

from typing import cast

import pytest

from coordinator.in_flight import Home, Lease, Part, StepParts
from coordinator.secure_sum import SecurePhase, SecureRound, secure_round, standing
from protocol.assignments import Kind
from protocol.recipe import Recipe
from protocol.secure_messages import KeysAt, PublicKeys, Revealed
from protocol.versions import SECAGG
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec

KEYS = PublicKeys(cipher_key=b"c" * 32, mask_key=b"m" * 32, commitment=b"s" * 32)
RECIPE = Recipe(rounds=1, secure_aggregation=True, min_clients=3)


def half_way(phase: SecurePhase) -> SecureRound:
    """Return a round of three clients in which two answered everything, and one nothing but its keys."""
    secure = secure_round(RECIPE, 1, 3, 0.0)
    secure.keys = {"a": KEYS, "b": KEYS}
    secure.advertised = tuple(KeysAt(point=point, keys=KEYS) for point in (1, 2, 3))
    secure.shares = {1: {}, 2: {}}
    secure.sharers = frozenset({1, 2})
    secure.survivors = dict.fromkeys((1, 2), cast("Lease", None))
    secure.revealed = {2: Revealed(assignment_id="b", fence=2, self_shares=(), key_shares=())}
    secure.enter(phase, 1.0)
    return secure


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (SecurePhase.KEYS, "keys of 2 of 3 clients"),
        (SecurePhase.SHARES, "shares of 2 of 3 clients"),
        (SecurePhase.MASKED, "0 of 2 masked updates delivered"),
        (SecurePhase.REVEAL, "1 of 2 clients have unmasked the sum"),
    ],
)
def test_each_phase_says_what_is_here(phase: SecurePhase, said: str) -> None:
    parts = StepParts(Home(Kind.TRAIN, 0), samples=3)
    parts.waiting = [Part(place, (), 1) for place in range(3)]
    assert standing(half_way(phase), parts) == said


def test_a_round_of_three_needs_two() -> None:
    assert secure_round(RECIPE, 1, 3, 0.0).terms.threshold == 2


def test_a_task_says_what_its_secure_sum_waits_for() -> None:
    farm = Simulation()
    for name in ("a", "b", "c"):
        farm.join(Volunteer(name, features=(SECAGG,)))
    farm.submit(spec(secure_aggregation=True, min_clients=3))
    assert "round 0: keys of 0 of 3 clients after" in farm.coordinator.explain("t1", farm.now).why
