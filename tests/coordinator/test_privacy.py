"""What private rounds spend, when a task stops for it, and that no version is seen that no book has."""

from __future__ import annotations

import math
import sys
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import privacy
from coordinator.events import CheckpointDamaged
from coordinator.lifecycle import TaskState
from coordinator.prefetch import _is_foreseeable
from coordinator.privacy import budget_spent, check_budget, epsilon_after, epsilon_spent
from protocol.errors import InvalidTask
from protocol.recipe import Recipe
from tests.coordinator.farm_simulation import Simulation, spec

dp_accounting = pytest.importorskip("dp_accounting", reason="the extra aifarm[privacy]")
pytest.importorskip("dp_accounting.rdp")

PRIVATE = {"dp_clip": 1.0, "dp_noise_multiplier": 4.0}


def private(**fields: object) -> Recipe:
    return Recipe.model_validate({"rounds": 9, **PRIVATE, **fields})


@settings(max_examples=15)
@given(st.floats(0.5, 10), st.integers(1, 60), st.sampled_from([1e-6, 1e-5, 1e-3]))
def test_epsilon_is_the_librarys_round_by_round(noise: float, rounds: int, delta: float) -> None:
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for _ in range(rounds):
        accountant.compose(dp_accounting.GaussianDpEvent(noise))
    found = epsilon_after(private(dp_noise_multiplier=noise, dp_delta=delta), rounds)
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)


@settings(max_examples=20)
@given(st.floats(0.7, 10), st.integers(1, 60))
def test_epsilon_is_no_less_than_what_so_many_gaussians_spend_and_not_much_more(noise: float, rounds: int) -> None:
    """So many are one with a noise that is smaller by the root: Balle and Wang, arXiv:1805.06530, theorem 8."""
    found = epsilon_after(private(dp_noise_multiplier=noise), rounds) or 0.0
    shift, normal = math.sqrt(rounds) / noise, NormalDist()

    def delta_at(epsilon: float) -> float:
        low = normal.cdf(-shift / 2 - epsilon / shift)
        return normal.cdf(shift / 2 - epsilon / shift) - (math.exp(epsilon) * low if low else 0.0)

    assert delta_at(found) <= 1e-5
    assert delta_at(0.7 * found) > 1e-5


def test_nothing_is_spent_before_the_first_round_and_none_where_nothing_is_private() -> None:
    assert epsilon_after(private(), 0) == 0
    assert epsilon_after(Recipe(rounds=1), 5) is None
    assert budget_spent(private(), 10**6) is None


def test_the_round_that_would_spend_too_much_is_not_begun() -> None:
    bound = (epsilon_after(private(), 3) or 0) * 1.0001
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), rounds=9, **PRIVATE, dp_epsilon=bound))
    while farm.task().state is not TaskState.COMPLETED:
        farm.deliver(ada)
    assert farm.task().version == 3
    assert farm.task().reason.startswith(
        "trained 3 rounds, and stopped: its privacy is spent: another round would make"
    )
    assert farm.view().epsilon == epsilon_after(private(), 3)


def test_a_bound_below_one_round_is_refused_at_submission() -> None:
    with pytest.raises(InvalidTask, match="no round is possible, for its privacy is spent"):
        check_budget(private(dp_epsilon=0.01), 0)
    spent = epsilon_after(private(), 4)
    check_budget(private(dp_epsilon=spent), 3)
    with pytest.raises(InvalidTask, match="no round is possible"):
        check_budget(private(dp_epsilon=spent), 4)


def test_a_server_without_the_accountant_says_so_at_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy._gaussian_epsilon.cache_clear()
    with pytest.raises(InvalidTask, match=r"pip install 'aifarm\[privacy\]'"):
        check_budget(private(), 0)
    assert epsilon_spent(private(), 3) is None
    check_budget(Recipe(rounds=1), 0)


@pytest.mark.parametrize("is_private", [True, False])
def test_nobody_sees_a_private_version_that_a_crash_could_undo(is_private: bool) -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), rounds=9, **(PRIVATE if is_private else {})))
    farm.hold_writes = True
    farm.deliver(ada)
    assert bool(ada.held) is not is_private
    farm.finish_writes()
    farm.tick()
    assert ada.held


def test_a_private_task_does_not_go_back_to_an_older_checkpoint() -> None:
    """What was seen since then would be spent twice, and counted once."""
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(200,), rounds=9, **PRIVATE))
    farm.deliver(ada)
    farm.deliver(ada)
    kept = farm.ledger.checkpoints["t1", 1]
    farm.handle(CheckpointDamaged("t1", 2, farm.open["t1"][1], "weights of round 2: wrong digest", kept, ()))
    assert farm.task().state is TaskState.FAILED
    assert "no accountant would count them twice" in (farm.task().error or "")


@pytest.mark.parametrize("is_private", [True, False])
def test_no_client_foresees_a_private_version_from_its_own_update(is_private: bool) -> None:
    assert _is_foreseeable(private() if is_private else Recipe(rounds=9)) is not is_private
