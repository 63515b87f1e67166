from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.features import needed_by
from protocol.recipe import Recipe
from protocol.secure_aggregation import majority, most_samples, unfit_for_secure_sum
from protocol.secure_messages import secure_terms
from protocol.secure_wire import grid_of
from tests.coordinator.farm_simulation import spec

SECURE = {"secure_aggregation": True, "min_clients": 3}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "gradients"}, "gradients"),
        ({"buffer": 4}, "buffer"),
        ({"quorum_clients": 2}, "quorum_clients"),
        ({"max_staleness": 1}, "max_staleness"),
        ({"max_staleness": 1, "pipeline": True}, "max_staleness"),
        ({"aggregate": "median"}, 'aggregate = "median"'),
        ({"aggregate": "norm_bounding"}, 'aggregate = "norm_bounding"'),
        ({"dp_clip": 1.0, "dp_noise_multiplier": 1.0}, "dp_clip"),
        ({"update_codec": {"name": "int8"}}, "update_codec"),
        ({"fragments": 2}, "fragments"),
        ({"scaffold_clients": 4}, "scaffold_clients"),
        ({"inner_state": "carried"}, 'inner_state = "carried"'),
        ({"over_provision": 0.5}, "over_provision"),
        ({"parts": "fixed", "part_samples": 32}, "part_samples"),
        ({"split": "iid", "split_parts": 4}, "split"),
        ({"order": "sequential"}, 'order = "sequential"'),
        ({"min_clients": 2}, "min_clients, which is 2"),
        ({"min_clients": 257}, "min_clients, which is 257"),
        ({"init_min_clients": 1}, "init_min_clients, which is 1"),
        ({"round_samples": 2**31}, "32 bits are too few"),
    ],
)
def test_what_a_secure_sum_cannot_be_had_with_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    Recipe.model_validate({"rounds": 1, "min_clients": 3, **fields})  # each is fine alone
    with pytest.raises(ValidationError, match=named):
        Recipe.model_validate({"rounds": 1, **SECURE, **fields})


def test_it_needs_samples_for_three_clients() -> None:
    recipe = Recipe.model_validate({"rounds": 1, **SECURE})
    assert "there are 2" in (unfit_for_secure_sum(recipe, 2) or "")
    assert unfit_for_secure_sum(recipe, 3) is None


def test_without_it_nothing_is_refused() -> None:
    assert unfit_for_secure_sum(Recipe(rounds=1, fragments=2), 1) is None


def test_servers_and_clients_that_do_not_know_it_are_told() -> None:
    assert "secure_aggregation" in needed_by(spec(**SECURE))
    assert "secure_aggregation" not in needed_by(spec())


def test_the_grid_is_that_of_the_largest_round() -> None:
    recipe = Recipe.model_validate({"rounds": 1, "round_samples": 1000, "secure_clip": 2.0, **SECURE})
    grid = grid_of(secure_terms(recipe, attempt=4, threshold=2))
    assert grid.most_samples == most_samples(recipe) == 1002
    assert (grid.clip, grid.bits) == (2.0, 32)


@given(st.integers(1, 10**6))
def test_no_two_sums_can_be_unmasked_by_different_clients_alone(clients: int) -> None:
    assert 2 * majority(clients) > clients, "any two majorities have a client in common, who answers once"
    assert 2 * (majority(clients) - 1) <= clients, "and no fewer would do"
