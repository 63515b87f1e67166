"""Each aggregate on a running server: a liar among the clients, and a server that dies while it folds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from websockets.exceptions import ConnectionClosed, InvalidStatus

from protocol.assignments import Ack, Assign
from protocol.recipe import Mode, OuterOptimizer, Recipe
from protocol.tasks import Dataset, Shard
from protocol.tensors import UPDATE_METADATA, weights_metadata
from tests.farm_server import model
from tests.farm_server.conftest import Running
from tests.farm_server.test_cli import server as server_process
from tests.farm_server.volunteer import Volunteer
from tests.injection.plan import FAULTS_VARIABLE

BREAKABLE_SERVER = [sys.executable, "-m", "tests.injection.server"]
AGGREGATES: dict[str, dict[str, Any]] = {
    "mean": {"aggregate": "mean"},
    "median": {"aggregate": "median"},
    "trimmed mean": {"aggregate": "trimmed_mean", "trim_share": 0.3},
    "geometric median": {"aggregate": "geometric_median"},
}
GOING_ON: dict[str, dict[str, Any]] = {"centered clipping": {"aggregate": "centered_clipping"}}
"""Has a memory of its own, which must outlive the server; one liar of three still pulls a third of a step."""
CLIENTS, PART_SAMPLES, ELEMENTS, ROUNDS = 3, 32, 16, 4
LIE = 1e6
TARGET = np.linspace(-1.0, 1.0, ELEMENTS)
INITIAL = safetensors.numpy.save({"w": np.zeros(ELEMENTS)}, weights_metadata({}, {}))
_OUTAGES = (OSError, ConnectionClosed, InvalidStatus, TimeoutError, EOFError, httpx.HTTPError)


def task(chosen: dict[str, Any]) -> Any:
    samples = CLIENTS * PART_SAMPLES
    recipe = Recipe(
        mode=Mode.GRADIENTS,
        rounds=ROUNDS,
        round_samples=samples,
        parts="fixed",
        part_samples=PART_SAMPLES,
        min_clients=CLIENTS,
        evaluate_every=0,
        outer=OuterOptimizer(options={"lr": 0.5, "momentum": 0.1}),
        **chosen,
    )
    shards = (Shard(index=0, samples=samples, blob=model.ref(model.SHARD)),)
    return model.spec(INITIAL, recipe=recipe, dataset=Dataset(kind="files", shards=shards))


class Member:
    """A light client that comes back by itself, and delivers what was not acknowledged again."""

    def __init__(self, info: Any, client_id: str, *, lies: bool = False) -> None:
        self.info = info
        self.client_id = client_id
        self.lies = lies
        token, _, place = info["join_url"].removeprefix("ws://").partition("@")
        self.token, self.url = token, f"ws://{place}/v1/farm"
        self.unacknowledged: tuple[Assign, bytes] | None = None

    async def work_for_ever(self) -> None:
        while True:
            with contextlib.suppress(*_OUTAGES):
                async with Volunteer(self.url, self.token, self.client_id) as volunteer:
                    await self._work(volunteer)
            await asyncio.sleep(0.02)  # the server may be away

    async def _work(self, volunteer: Volunteer) -> None:
        while True:
            if self.unacknowledged is None:
                await volunteer.ready()
                assign = await volunteer.next(Assign, within_seconds=60)
                self.unacknowledged = (assign, self._update(assign, await self._weights(assign)))
            await volunteer.deliver(*self.unacknowledged)
            await volunteer.next(Ack, within_seconds=60)
            self.unacknowledged = None

    def _update(self, assign: Assign, weights: np.ndarray) -> bytes:
        """A gradient that only the part and the round decide, or a lie."""
        rng = np.random.default_rng([assign.round, assign.slices[0].start])
        gradient = weights - TARGET + rng.normal(scale=0.1, size=ELEMENTS)
        return safetensors.numpy.save({"w": np.full(ELEMENTS, LIE) if self.lies else gradient}, dict(UPDATE_METADATA))

    async def _weights(self, assign: Assign) -> np.ndarray:
        if assign.weights.inline is not None:
            return model.values(assign.weights.inline)
        async with httpx.AsyncClient(base_url=self.info["url"], trust_env=False, auth=(self.token, "")) as http:
            answer = await http.get(f"/v1/blobs/{assign.weights.digest}")
            answer.raise_for_status()
            return model.values(answer.content)


@asynccontextmanager
async def at_work(members: list[Member]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(member.work_for_ever()) for member in members]
        yield
        for job in jobs:
            job.cancel()


async def weights_at_the_end(http: httpx.AsyncClient, task_id: str) -> bytes:
    after = 0
    async with asyncio.timeout(60):
        while (view := (await http.get(f"/v1/tasks/{task_id}")).json()["task"])["state"] != "completed":
            assert view["error"] is None, view
            events = (await http.get(f"/v1/tasks/{task_id}/events", params={"after": after, "wait": 10})).json()
            after = max([after, *(e["seq"] for e in events)])
    digest = (await http.get(f"/v1/tasks/{task_id}/model")).json()["digest"]
    return (await http.get(f"/v1/blobs/{digest}")).content


async def trained(server: Running, chosen: dict[str, Any], *, liars: int = 0) -> bytes:
    info = dataclasses.asdict(server.info)
    members = [Member(info, f"c{number}", lies=number < liars) for number in range(CLIENTS)]
    task_id = await model.submit(server.http, task(chosen), initial=INITIAL)
    async with at_work(members):
        return await weights_at_the_end(server.http, task_id)


@pytest.mark.parametrize("chosen", AGGREGATES.values(), ids=AGGREGATES)
async def test_one_liar_of_three_spoils_the_mean_and_nothing_else(server, chosen):
    error = np.abs(model.values(await trained(server, chosen, liars=1)) - TARGET)
    if chosen["aggregate"] == "mean":
        assert error.min() > LIE / 100
    else:
        assert error.max() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("chosen", (AGGREGATES | GOING_ON).values(), ids=AGGREGATES | GOING_ON)
async def test_a_kill_in_mid_round_changes_no_bit(tmp_path, monkeypatch, start, chosen):
    """It dies with half of a tensor file read: of the round's first update, or of all that were kept for the commit."""
    async with start() as undisturbed:
        expected = await trained(undisturbed, chosen)
    folder = tmp_path / "killed"
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as environment:
            environment.setenv(FAULTS_VARIABLE, "server_while_folding@1:kill")
            process, info = await asyncio.to_thread(
                stack.enter_context, server_process(folder, command=BREAKABLE_SERVER)
            )
        async with httpx.AsyncClient(base_url=info["farm_url"], trust_env=False, timeout=40) as http:
            task_id = await model.submit(http, task(chosen), initial=INITIAL)
        async with at_work([Member(info, f"c{number}") for number in range(CLIENTS)]):
            await asyncio.to_thread(process.wait, 60)
            _, again = await asyncio.to_thread(stack.enter_context, server_process(folder))
            async with httpx.AsyncClient(base_url=again["farm_url"], trust_env=False, timeout=40) as http:
                found = await weights_at_the_end(http, task_id)
    assert found == expected
