"""What can never be met is said, and nothing else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.contradictions import contradiction
from protocol.recipe import Recipe
from protocol.tasks import Dataset, Shard, Split

HELD_OUT = Dataset(kind="code", shards=(Shard(index=0, samples=100), Shard(index=1, samples=10, split=Split.HOLDOUT)))
NOTHING_HELD_OUT = Dataset(kind="code", shards=(Shard(index=0, samples=100),))
FEW = st.integers(1, 6)


@given(least=FEW, first=FEW | st.none(), most=FEW | st.none())
def test_clients_that_a_round_needs_and_may_have(least: int, first: int | None, most: int | None) -> None:
    recipe = Recipe(rounds=1, min_clients=least, init_min_clients=first, max_clients=most)
    can_be_met = most is None or (least <= most and (first or 1) <= most)
    assert (contradiction(recipe, HELD_OUT) is None) is can_be_met


@pytest.mark.parametrize(
    ("recipe", "dataset", "said"),
    [
        (Recipe(rounds=1, keep_best="max:accuracy"), HELD_OUT, None),
        (Recipe(rounds=1, keep_best="max:accuracy"), None, None),
        (Recipe(rounds=1, keep_best="max:accuracy"), NOTHING_HELD_OUT, "held-out samples"),
        (Recipe(rounds=1, keep_best="max:accuracy", evaluate_every=0), HELD_OUT, "evaluate_every is 0"),
        (Recipe(rounds=1, min_clients=4, round_samples=4), HELD_OUT, None),
        (Recipe(rounds=1, min_clients=5, round_samples=4), HELD_OUT, "4 samples cannot be shared by 5 clients"),
        (Recipe(rounds=1, min_clients=5, round_samples=4), None, None),
    ],
)
def test_pairs_that_need_each_other(recipe: Recipe, dataset: Dataset | None, said: str | None) -> None:
    why = contradiction(recipe, dataset)
    assert why is None if said is None else said in (why or "")
