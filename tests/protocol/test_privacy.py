from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from protocol.continuing import obstacle
from protocol.recipe import Recipe
from tests.coordinator.farm_simulation import spec

PRIVATE = {"dp_clip": 1.0, "dp_noise_multiplier": 1.1}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dp_clip": 1.0}, "need each other"),
        ({"dp_noise_multiplier": 1.0}, "need each other"),
        ({"dp_epsilon": 8.0}, "dp_epsilon needs a dp_clip"),
        ({**PRIVATE, "dp_delta": 0.0}, "dp_delta"),
        ({**PRIVATE, "aggregate": "median", "min_clients": 3}, "the noise of dp_clip is that of a mean"),
        ({**PRIVATE, "max_staleness": 1}, "leave out max_staleness"),
        ({**PRIVATE, "buffer": 4}, "leave out max_staleness"),
        ({**PRIVATE, "inner_state": "carried"}, "without noise"),
    ],
)
def test_what_privacy_lacks_or_cannot_use_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"rounds": 1, **fields})


@pytest.mark.parametrize("mode", ["weights", "gradients"])
def test_either_mode_may_be_private(mode: str) -> None:
    assert Recipe.model_validate({"rounds": 1, "mode": mode, **PRIVATE, "dp_epsilon": 8.0}).dp_delta == 1e-5


@pytest.mark.parametrize("changed", [{"dp_clip": 2.0}, {"dp_noise_multiplier": 2.0}, {"dp_delta": 1e-6}])
def test_a_task_goes_on_with_the_same_noise_only(changed: dict[str, Any]) -> None:
    before = spec(**PRIVATE)
    assert obstacle(before, spec(**PRIVATE, dp_epsilon=3.0)) is None
    assert "keep the dp_ fields" in (obstacle(before, spec(**{**PRIVATE, **changed})) or "")
