"""Outer steps along late updates: where they converge, and that the named recipes stay there.

On a quadratic, local steps take away a share c of the distance to the optimum: the pseudo-gradient of version v is
c x_v, with a c for each direction, up to 1 where clients get all the way, and beyond where their momentum overshoots.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.numerics.outer_optimizer import OuterStep
from farm_client.sdk.recipe_files import read_recipe
from protocol.recipe import OuterOptimizer
from protocol.tensors import Layout, Role, TensorSpec

SHARES = torch.linspace(0.2, 1.5, 27, dtype=torch.float64)
"""The shares that the named recipes must bear, overshooting by a half among them."""


def distances_after(rounds: int, outer: OuterOptimizer, shares: torch.Tensor, late: int) -> torch.Tensor:
    """Return the distance to the optimum in each direction, from 1, where each update is so many versions late."""
    layout = Layout(tensors=(TensorSpec(name="x", role=Role.PARAMETER, dtype="F64", shape=(len(shares),)),))
    weights = {"x": torch.ones(len(shares), dtype=torch.float64)}
    step = OuterStep(outer, weights, layout)
    versions = [weights["x"].clone()] * (late + 1)
    for version in range(rounds):
        step.step({"x": shares * versions[-1 - late]}, version=version)
        versions = [*versions[1:], weights["x"].clone()]
    return weights["x"].abs()


@given(late=st.integers(0, 5), share=st.floats(0.1, 1.5), lr=st.floats(0.05, 2.0))
def test_plain_steps_converge_just_where_the_theory_says(late: int, share: float, lr: float) -> None:
    """x_(v+1) = x_v - a x_(v-d) is stable where a < 2 sin(pi / (4 d + 2)) (Levin and May, 1976)."""
    bound = 2 * math.sin(math.pi / (4 * late + 2))
    assume(abs(lr * share / bound - 1) > 0.1)
    outer = OuterOptimizer(options={"lr": lr})
    early, later = (
        distances_after(rounds, outer, torch.tensor([share], dtype=torch.float64), late) for rounds in (0, 2000)
    )
    assert bool(later < early / 10) == (lr * share < bound)


@pytest.mark.parametrize(("name", "late"), [("slow-link", 1), ("fedbuff", 2), ("decoupled", 2)])
def test_named_recipes_converge_however_late_their_updates_usually_are(name: str, late: int) -> None:
    outer = OuterOptimizer.model_validate(read_recipe(name)["outer"])
    assert distances_after(200, outer, SHARES, late).max() < 1e-4


def test_dilocos_own_numbers_are_for_updates_in_time() -> None:
    outer = OuterOptimizer.model_validate(read_recipe("diloco")["outer"])
    whole = torch.ones(1, dtype=torch.float64)
    assert distances_after(200, outer, whole, 0).max() < 1e-4
    assert distances_after(200, outer, whole, 1).max() > 1e4
