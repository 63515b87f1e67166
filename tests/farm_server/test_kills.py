"""A server process is killed again and again, at any moment: the weights are those of the undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
from websockets.exceptions import ConnectionClosed, InvalidStatus

from protocol.assignments import Ack, Assign
from protocol.recipe import Mode, OuterOptimizer, Recipe
from protocol.tensors import UPDATE_METADATA, weights_metadata
from tests.farm_server import model
from tests.farm_server.test_cli import server
from tests.farm_server.volunteer import Volunteer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ELEMENTS, ROUNDS, KILLS = 16, 40, 5
RESUME_SECONDS = 20.0
"""The quickest start of several must not need longer, on a busy machine that also measures coverage: how fast a start
is at best, `python -m benchmarks recovery` says."""
TARGET = np.linspace(-1.0, 1.0, ELEMENTS)
OUTER = OuterOptimizer(name="adam", options={"lr": 0.05})
RECIPE = Recipe(mode=Mode.GRADIENTS, rounds=ROUNDS, round_samples=64, evaluate_every=0, outer=OUTER)
INITIAL = safetensors.numpy.save({"w": np.zeros(ELEMENTS)}, weights_metadata({}, {}))
_OUTAGES = (OSError, ConnectionClosed, InvalidStatus, TimeoutError, EOFError, httpx.HTTPError)


class Persistent:
    """A volunteer that comes back by itself and sends what was not acknowledged again."""

    def __init__(self, info: dict) -> None:
        self.info = info
        token, _, place = info["join_url"].removeprefix("ws://").partition("@")
        self.token, self.url = token, f"ws://{place}/v1/farm"
        self.unacknowledged: tuple[Assign, bytes] | None = None

    async def work_for_ever(self) -> None:
        while True:
            with contextlib.suppress(*_OUTAGES):
                async with Volunteer(self.url, self.token) as volunteer:
                    await self._work(volunteer)
            await asyncio.sleep(0.02)

    async def _work(self, volunteer: Volunteer) -> None:
        if self.unacknowledged is not None:
            await volunteer.deliver(*self.unacknowledged)
            await volunteer.next(Ack)
            self.unacknowledged = None
        await volunteer.ready()
        while True:
            assign = await volunteer.next(Assign, within_seconds=60)
            gradient = model.values(await self._weights(assign)) - TARGET
            await asyncio.sleep(0.02)  # as if it took that long
            self.unacknowledged = (assign, safetensors.numpy.save({"w": gradient}, dict(UPDATE_METADATA)))
            await volunteer.deliver(*self.unacknowledged)
            await volunteer.next(Ack)
            self.unacknowledged = None
            await volunteer.ready()

    async def _weights(self, assign: Assign) -> bytes:
        if assign.weights.inline is not None:
            return assign.weights.inline
        async with httpx.AsyncClient(base_url=self.info["url"], trust_env=False, auth=(self.token, "")) as http:
            answer = await http.get(f"/v1/blobs/{assign.weights.digest}")
            answer.raise_for_status()
            return answer.content


@asynccontextmanager
async def alive(folder: Path) -> AsyncIterator[dict]:
    """Run a server process for the length of the block, and SIGKILL it."""
    stack = contextlib.ExitStack()
    _, info = await asyncio.to_thread(stack.enter_context, server(folder))
    try:
        yield info
    finally:
        await asyncio.to_thread(stack.close)


async def rounds_done(info: dict, task_id: str, more_than: int) -> int:
    async with httpx.AsyncClient(base_url=info["farm_url"], trust_env=False, timeout=40) as http, asyncio.timeout(60):
        while True:
            view = (await http.get(f"/v1/tasks/{task_id}")).json()["task"]
            assert view["error"] is None, view
            if view["round"] > more_than or view["state"] == "completed":
                return int(view["round"])
            await asyncio.sleep(0.01)


def expected() -> np.ndarray:
    """Adam by hand (Kingma & Ba, arXiv:1412.6980, algorithm 1), in float64."""
    w, m, v = np.zeros(ELEMENTS), np.zeros(ELEMENTS), np.zeros(ELEMENTS)
    for step in range(1, ROUNDS + 1):
        gradient = w - TARGET
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - 0.05 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


@pytest.mark.parametrize("seed", [1, 2])
async def test_any_number_of_kills_at_any_moment_changes_nothing(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    async with alive(tmp_path) as info:
        async with httpx.AsyncClient(base_url=info["farm_url"], trust_env=False, timeout=40) as http:
            task_id = await model.submit(http, model.spec(INITIAL, recipe=RECIPE), initial=INITIAL)
        working = asyncio.create_task(Persistent(info).work_for_ever())
        done = await rounds_done(info, task_id, 0)
        await asyncio.sleep(moments.uniform(0, 0.2))
    resumed_after = []
    for _ in range(KILLS):
        began = time.monotonic()
        async with alive(tmp_path) as again:
            assert again["url"] == info["url"], "clients find it where it was"
            done = await rounds_done(again, task_id, done)
            resumed_after.append(time.monotonic() - began)
            await asyncio.sleep(moments.uniform(0, 0.1))
    async with (
        alive(tmp_path) as info,
        httpx.AsyncClient(base_url=info["farm_url"], trust_env=False, timeout=40) as http,
    ):
        await rounds_done(info, task_id, ROUNDS - 1)
        books = (await http.get(f"/v1/tasks/{task_id}/shards")).json()
        digest = (await http.get(f"/v1/tasks/{task_id}/model")).json()["digest"]
        weights = model.values((await http.get(f"/v1/blobs/{digest}")).content)
    working.cancel()
    assert {(b["counted_samples"], b["repeated_samples"]) for b in books} == {(64, 0)}
    assert len(books) == ROUNDS
    np.testing.assert_allclose(weights, expected(), rtol=1e-9)
    assert min(resumed_after) < RESUME_SECONDS, resumed_after
