"""A checkpoint that can't be read any more: the task goes back to one that can, loudly, and still ends as it should."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from protocol.assignments import Ack
from protocol.recipe import OuterOptimizer, Recipe
from tests.farm_server import model
from tests.farm_server.test_training import ended, final_weights, working

RECIPE = Recipe(rounds=5, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0, "momentum": 0.5}))


async def train_rounds(server, rounds: int) -> str:
    task_id = await model.submit(server.http, model.spec(recipe=RECIPE))
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        for _ in range(rounds):
            await volunteer.deliver(await volunteer.accept(), model.update())
            assert (await volunteer.next(Ack)).counted
            await volunteer.ready()
    return task_id


async def undisturbed(start) -> np.ndarray:
    async with start() as server, server.volunteer() as volunteer, working(volunteer):
        await volunteer.ready()
        task_id = await model.submit(server.http, model.spec(name="undisturbed", recipe=RECIPE))
        await ended(server.http, task_id)
        return await final_weights(server.http, task_id)


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(("part", "how"), [("weights", "changed"), ("optimizer", "truncated"), ("weights", "missing")])
async def test_a_damaged_checkpoint_costs_a_round_and_not_the_task(start, part, how):
    expected = await undisturbed(start)
    async with start() as first:
        task_id = await train_rounds(first, 3)
        newest = (await first.farm.ledger.checkpoints(task_id))[-1]
        assert newest.round == 3
        path = first.farm.blobs.path(getattr(newest, part).digest)
    spoil(path, how)
    async with start() as second:
        async with second.volunteer() as volunteer, working(volunteer):
            await volunteer.ready()
            view = await ended(second.http, task_id)
        assert (view["state"], view["round"], view["samples_done"]) == ("completed", 5, 5 * 64)
        np.testing.assert_array_equal(await final_weights(second.http, task_id), expected)
        books = (await second.http.get(f"/v1/tasks/{task_id}/shards")).json()
        assert {(b["counted_samples"], b["repeated_samples"]) for b in books} == {(64, 0)}
        events = (await second.http.get(f"/v1/tasks/{task_id}/events")).json()
        (loud,) = [e["message"] for e in events if e["kind"] == "checkpoint_damaged"]
        assert "CHECKPOINT DAMAGED" in loud
        assert "back to round 2" in loud
        logs = (await second.http.get(f"/v1/tasks/{task_id}/logs")).json()
        assert any(line["text"] == loud and line["client_name"] == "server" for line in logs)
        assert "CHECKPOINT DAMAGED" in (await second.http.get("/")).text


async def test_a_task_without_a_readable_checkpoint_fails_and_says_so(start):
    async with start() as first:
        task_id = await train_rounds(first, 2)
        blobs = [first.farm.blobs.path(c.weights.digest) for c in await first.farm.ledger.checkpoints(task_id)]
    for path in blobs:
        path.write_bytes(b"damaged")
    async with start() as second:
        async with second.volunteer() as volunteer:
            await volunteer.ready()
            view = await ended(second.http, task_id)
        assert view["state"] == "failed"
        assert "no checkpoint of it can be read" in view["error"]


async def test_weights_that_another_task_begins_with_are_kept(start):
    recipe = Recipe(rounds=3, round_samples=64, keep_checkpoints=1, outer=OuterOptimizer(options={"lr": 1.0}))
    async with start(superseded_grace_seconds=0, retention_seconds=3600) as server:
        task_id = await model.submit(server.http, model.spec(recipe=recipe))
        async with server.volunteer() as volunteer:
            await volunteer.ready()
            await volunteer.deliver(await volunteer.accept(), model.update())
            await volunteer.next(Ack)
            first, begun_with = [c.weights for c in await server.farm.ledger.checkpoints(task_id)]
            later = model.spec(name="later", initial_weights=begun_with, recipe=recipe)
            answer = await server.http.post("/v1/tasks", json=later.model_dump(mode="json"))
            answer.raise_for_status()
            async with working(volunteer):
                await ended(server.http, task_id)
                await ended(server.http, answer.json()["task"]["task_id"])
        server.farm.retention.note(task_id, recipe)
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert [c.round for c in await server.farm.ledger.checkpoints(task_id)] == [0, 3]
        assert server.farm.blobs.read(begun_with.digest)
        assert server.farm.blobs.read(first.digest)


async def test_a_stored_task_that_none_may_submit_today_hides_no_other(start, tmp_path):
    async with start() as server, server.volunteer("a") as a:
        odd, fine = await model.submit(server.http), await model.submit(server.http, model.spec(name="fine"))
        await a.ready()
        await a.accept()
    with contextlib.closing(sqlite3.connect(tmp_path / "farm.db")) as ledger, ledger:
        (text,) = ledger.execute("SELECT spec FROM submissions WHERE task_id = ?", (odd,)).fetchone()
        deep = '{"a":' * 300 + "1" + "}" * 300
        text = json.dumps(json.loads(text) | {"entry": "\udc00.py", "config": "@"}).replace('"@"', deep)
        ledger.execute("UPDATE submissions SET spec = ? WHERE task_id = ?", (text, odd))
    async with start() as server:
        listed = {task["task_id"]: task for task in (await server.http.get("/v1/tasks")).json()}
        assert (listed[odd]["state"], listed[fine]["state"]) == ("cancelled", "pending")
        assert "submit it again" in listed[odd]["error"]
        for path in (f"/v1/tasks/{odd}", f"/v1/tasks/{odd}/shards", f"/v1/tasks/{odd}/why", "/"):
            assert (await server.http.get(path)).status_code == 200
        async with server.volunteer("a") as a:
            await a.ready()
            assert (await a.accept()).task.task_id == fine
