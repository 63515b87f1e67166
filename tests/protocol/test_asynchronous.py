"""Asynchronous recipes: what they imply, and what contradicts them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from protocol.recipe import Recipe


def test_a_buffer_takes_late_updates_as_far_as_a_recipe_may() -> None:
    assert Recipe(rounds=1, buffer=4).max_staleness == 16
    assert Recipe(rounds=1, buffer=4, max_staleness=3).max_staleness == 3
    assert Recipe(rounds=1).max_staleness == 0
    assert Recipe.model_validate(Recipe(rounds=1).model_dump()).max_staleness == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "gradients"}, "buffer is for weights mode"),
        ({"max_staleness": 0}, "buffer needs a max_staleness of 1 or more"),
        ({"pipeline": True}, "leave pipeline out"),
        ({"quorum": 0.5}, "leave quorum and over_provision out"),
        ({"over_provision": 0.5}, "leave quorum and over_provision out"),
        ({"parts": "fixed"}, "a version is of whatever came first: leave buffer or quorum_clients out"),
        ({"order": "sequential"}, "a version is of whatever came first: leave buffer or quorum_clients out"),
        ({"quorum_clients": 2}, "buffer counts results and quorum_clients counts clients"),
        ({"aggregate": "median"}, "leave out buffer"),
        ({"buffer": 0}, "greater than or equal to 1"),
    ],
)
def test_what_contradicts_a_buffer_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe(**{"rounds": 1, "buffer": 4, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "gradients"}, "quorum_clients is for weights mode"),
        ({"max_staleness": 0}, "quorum_clients needs a max_staleness of 1 or more"),
        ({"pipeline": True}, "leave pipeline out"),
        ({"quorum": 0.5}, "leave quorum and over_provision out"),
        ({"parts": "fixed"}, "a version is of whatever came first: leave buffer or quorum_clients out"),
        ({"aggregate": "median"}, "leave out quorum_clients"),
        ({"max_clients": 3}, "quorum_clients is 4 and max_clients is 3: no version could be made"),
        ({"grace": -1.0}, "greater than or equal to 0"),
    ],
)
def test_what_contradicts_a_quorum_of_clients_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    assert Recipe(rounds=1, quorum_clients=4, max_clients=4).max_staleness == 16
    with pytest.raises(ValidationError, match=said):
        Recipe(**{"rounds": 1, "quorum_clients": 4, **fields})
