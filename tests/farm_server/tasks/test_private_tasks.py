"""A private task on a running server: epsilon is shown and stops it, and what would go without noise is refused."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import safetensors.numpy

from coordinator import privacy
from protocol.recipe import Recipe
from protocol.tensors import weights_metadata
from tests.farm_server import model
from tests.farm_server.test_aggregates import CLIENTS, ELEMENTS, INITIAL, Member, at_work, task, weights_at_the_end

pytest.importorskip("dp_accounting", reason="the extra aifarm[privacy]")

PRIVATE = {"dp_clip": 10.0, "dp_noise_multiplier": 1.0}


async def refusal(server, chosen, initial=INITIAL):
    """Return what a submission is answered."""
    described = task(chosen).model_copy(update={"initial_weights": model.ref(initial)})
    await model.upload(server.http, model.CODE, model.SHARD, initial)
    answer = await server.http.post("/v1/tasks", json=described.model_dump(mode="json"))
    assert answer.status_code == 422
    return answer.json()["message"]


async def test_a_model_with_buffers_is_refused(server):
    tensors = {"w": np.zeros(ELEMENTS), "mean": np.zeros(3, np.float32)}
    with_buffer = safetensors.numpy.save(tensors, weights_metadata({"mean": "buffer"}, {}))
    assert "with dp_clip a model has no buffers" in await refusal(server, PRIVATE, with_buffer)


async def test_a_budget_below_one_round_is_refused(server):
    assert "no round is possible, for its privacy is spent" in await refusal(server, {**PRIVATE, "dp_epsilon": 0.1})


async def test_a_server_without_the_accountant_refuses(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy._gaussian_epsilon.cache_clear()
    assert "pip install 'aifarm[privacy]'" in await refusal(server, PRIVATE)


async def test_epsilon_is_shown_and_stops_the_task(server):
    recipe = Recipe.model_validate({"rounds": 9, **PRIVATE})
    bound = privacy.epsilon_after(recipe, 2) * 1.001
    task_id = await model.submit(server.http, task({**PRIVATE, "dp_epsilon": bound}), initial=INITIAL)
    members = [Member(dataclasses.asdict(server.info), f"c{number}") for number in range(CLIENTS)]
    async with at_work(members):
        weights = model.values(await weights_at_the_end(server.http, task_id))
    view = (await server.http.get(f"/v1/tasks/{task_id}")).json()["task"]
    assert view["round"] == 2
    assert view["epsilon"] == pytest.approx(privacy.epsilon_after(recipe, 2))
    assert "its privacy is spent" in view["why"]
    assert np.isfinite(weights).all()
    assert weights.shape == (ELEMENTS,)
