from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from farm_server.housekeeping.retention import superseded
from protocol.assignments import Ack, Assign, AssignmentProgress, Cancel, Kind, LogLine, MetricPoint, Phase, Progress
from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.messages import Pause
from protocol.recipe import OuterOptimizer, Recipe
from protocol.rest import MetricView
from protocol.tasks import BlobRef
from tests.farm_server import model
from tests.farm_server.volunteer import Volunteer

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def working(*volunteers: Volunteer) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(v.train_for_ever()) for v in volunteers]
        yield
        for job in jobs:
            job.cancel()


async def ended(http: httpx.AsyncClient, task_id: str) -> dict:
    after = 0
    async with asyncio.timeout(30):
        while True:
            view = (await http.get(f"/v1/tasks/{task_id}")).json()["task"]
            if view["state"] in ("completed", "failed", "cancelled"):
                return view
            query = {"after": after, "wait": 10}
            events = (await http.get(f"/v1/tasks/{task_id}/events", params=query)).json()
            after = max([after, *(e["seq"] for e in events)])


async def final_weights(http: httpx.AsyncClient, task_id: str) -> np.ndarray:
    model_view = (await http.get(f"/v1/tasks/{task_id}/model")).json()
    return model.values((await http.get(f"/v1/blobs/{model_view['digest']}")).content)


async def test_three_rounds_of_two_clients_end_in_the_mean(server):
    async with server.volunteer("a") as a, server.volunteer("b") as b:
        await a.ready()
        await b.ready()
        task_id = await model.submit(server.http)
        async with working(a, b):
            view = await ended(server.http, task_id)
    assert (view["state"], view["round"], view["samples_done"]) == ("completed", 3, 192)
    # each round subtracts the mean pseudo-gradient, which is 1 whoever computes it
    np.testing.assert_allclose(await final_weights(server.http, task_id), np.full(8, -3.0, np.float32))
    books = (await server.http.get(f"/v1/tasks/{task_id}/shards")).json()
    assert [(b["counted_samples"], b["repeated_samples"]) for b in books] == [(64, 0)] * 3
    page = (await server.http.get("/")).text
    assert page.count('<td class="state committed">committed</td>') == 3


async def test_an_update_over_the_inline_limit_goes_through_the_blob_store(server):
    elements = INLINE_BYTES // 4 + 1
    initial, data = model.weights(0.0, elements), model.update(1.0, elements)
    recipe = Recipe(rounds=1, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0}))
    task_id = await model.submit(server.http, model.spec(initial, recipe=recipe), initial=initial)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        assert assign.weights.inline is None
        await model.upload(server.http, data)
        await volunteer.deliver(assign, data, update=model.ref(data))
        assert (await volunteer.next(Ack)).counted
        assert (await ended(server.http, task_id))["state"] == "completed"
    np.testing.assert_allclose(await final_weights(server.http, task_id), -1.0)
    assert not server.farm.blobs.has(digest_bytes(data)), "a folded update is deleted"


async def test_small_weights_ride_inside_the_assignment(server):
    await model.submit(server.http)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
    assert assign.weights.inline == model.weights()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (model.update(float("nan")), "holds NaN"),
        (model.update(elements=9), "F32 [9]"),
        (b"no tensors at all", "tensor file"),
    ],
)
async def test_an_unusable_update_fails_the_assignment_and_is_explained_in_the_logs(server, data, reason):
    task_id = await model.submit(server.http)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        await volunteer.deliver(await volunteer.accept(), data)
        logs = (await server.http.get(f"/v1/tasks/{task_id}/logs", params={"wait": 10})).json()
    assert reason in logs[0]["text"]


async def test_nan_fails_the_task_for_it_comes_from_its_code(server):
    task_id = await model.submit(server.http)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        await volunteer.deliver(await volunteer.accept(), model.update(float("nan")))
        view = await ended(server.http, task_id)
    assert view["state"] == "failed"
    assert "NaN" in view["error"]


async def test_a_damaged_inline_update_is_not_counted(server):
    task_id = await model.submit(server.http)
    data = model.update()
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        wrong = BlobRef(digest=digest_bytes(b"other"), size_bytes=len(data), inline=data)
        await volunteer.deliver(await volunteer.accept(), data, update=wrong)
        logs = (await server.http.get(f"/v1/tasks/{task_id}/logs", params={"wait": 10})).json()
    assert "send it again" in logs[0]["text"]


async def test_a_repeated_result_is_acknowledged_and_not_counted_twice(server):
    await model.submit(server.http)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        await volunteer.deliver(assign, model.update())
        assert (await volunteer.next(Ack)).counted
        await volunteer.deliver(assign, model.update())
        while (ack := await volunteer.next(Ack)).assignment_id != assign.assignment_id:
            pass
        assert not ack.counted


async def test_metrics_and_log_lines_of_a_running_assignment_come_out_of_the_feeds(server):
    task_id = await model.submit(server.http)
    async with server.volunteer("a") as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        progress = AssignmentProgress(assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING)
        await volunteer.send(
            Progress(
                progress=progress,
                metrics=(MetricPoint(name="loss", value=2.5, step=7), MetricPoint(name="diverged", value=float("nan"))),
                logs=(LogLine(text="hello from train.py"),),
            )
        )
        logs, metrics = await asyncio.gather(
            server.http.get(f"/v1/tasks/{task_id}/logs", params={"wait": 10}),
            server.http.get(f"/v1/tasks/{task_id}/metrics", params={"wait": 10}),
        )
    assert [(x["client_name"], x["text"]) for x in logs.json()] == [("a", "hello from train.py")]
    loss, diverged = metrics.json()
    assert (loss["name"], loss["value"], loss["step"], loss["source"]) == ("loss", 2.5, 7, "client")
    assert math.isnan(MetricView.model_validate(diverged).value)


def printed(assign: Assign, text: str) -> Progress:
    held = AssignmentProgress(assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING)
    return Progress(progress=held, logs=(LogLine(text=text),))


async def test_who_sees_a_tasks_end_finds_what_was_printed_by_then(server):
    server.farm.entries.flush = lambda _now: None  # the next turn of the clock comes late
    async with server.volunteer("a") as a:
        await a.ready()
        task_id = await model.submit(server.http, model.spec(recipe=Recipe(rounds=1, round_samples=64)))
        assign = await a.accept()
        await a.send(printed(assign, "the last words"))
        await a.deliver(assign, model.update())
        await ended(server.http, task_id)
        logs = (await server.http.get(f"/v1/tasks/{task_id}/logs")).json()
    assert [x["text"] for x in logs] == ["the last words"]


async def test_what_was_printed_before_a_cancel_is_kept_though_it_comes_after(server):
    async with server.volunteer("a") as a:
        await a.ready()
        task_id = await model.submit(server.http)
        assign = await a.accept()
        await server.http.post(f"/v1/tasks/{task_id}/cancel")
        await a.next((Cancel, Pause))
        await a.send(printed(assign, "the last words"))
        logs = (await server.http.get(f"/v1/tasks/{task_id}/logs", params={"wait": 10})).json()
    assert [x["text"] for x in logs] == ["the last words"]


async def test_progress_of_somebody_elses_assignment_is_not_believed(server):
    task_id = await model.submit(server.http)
    async with server.volunteer("a") as a, server.volunteer("b") as b:
        await a.ready()
        assign = await a.accept()
        progress = AssignmentProgress(assignment_id=assign.assignment_id, fence=assign.fence, phase=Phase.COMPUTING)
        await b.send(Progress(progress=progress, logs=(LogLine(text="forged"),)))
        await a.send(Progress(progress=progress, logs=(LogLine(text="true"),)))
        logs = (await server.http.get(f"/v1/tasks/{task_id}/logs", params={"wait": 10})).json()
    assert [x["text"] for x in logs] == ["true"]


async def test_evaluation_reaches_the_task(server):
    recipe = Recipe(rounds=1, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0}))
    task_id = await model.submit(server.http, model.with_holdout(recipe=recipe))
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        await volunteer.deliver(await volunteer.accept(), model.update())
        assign = await volunteer.accept()
        assert assign.kind is Kind.EVALUATE
        await volunteer.deliver(assign, b"", metrics={"accuracy": 0.75, "broken": float("nan")})
        view = await ended(server.http, task_id)
    assert view["metrics"] == {"accuracy": 0.75}


async def test_a_task_goes_on_after_a_restart_where_it_was_committed(start):
    async with start() as first:
        task_id = await model.submit(first.http)
        async with first.volunteer() as volunteer:
            await volunteer.ready()
            await volunteer.deliver(await volunteer.accept(), model.update())
            await volunteer.accept()
    async with start() as second, second.volunteer() as volunteer:
        assert volunteer.welcome.incarnation == 2
        await volunteer.ready()
        async with working(volunteer):
            view = await ended(second.http, task_id)
        assert (view["state"], view["round"]) == ("completed", 3)
        np.testing.assert_allclose(await final_weights(second.http, task_id), -3.0)
        books = (await second.http.get(f"/v1/tasks/{task_id}/shards")).json()
        assert [(b["counted_samples"], b["repeated_samples"]) for b in books] == [(64, 0)] * 3


async def test_only_the_newest_checkpoints_are_kept(start):
    recipe = Recipe(rounds=6, round_samples=64, keep_checkpoints=2, outer=OuterOptimizer(options={"lr": 1.0}))
    async with start(retention_seconds=3600) as server:
        task_id = await model.submit(server.http, model.spec(recipe=recipe))
        async with server.volunteer() as volunteer, working(volunteer):
            assert (await ended(server.http, task_id))["state"] == "completed"
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        kept = await server.farm.ledger.checkpoints(task_id)
        numbers = [c.round for c in kept]  # of such quick rounds not every version is written
        assert (numbers[0], numbers[-1], len(numbers) <= 3) == (0, 6, True)
        assert superseded(kept, Recipe(rounds=6, keep_checkpoints=1)) == kept[1:-1]
        listed = (await server.http.get(f"/v1/tasks/{task_id}/checkpoints")).json()
        assert [(c["round"], c["newest"]) for c in listed] == [(n, n == 6) for n in numbers]
        missing = next(n for n in range(1, 6) if n not in numbers)
        gone = await server.http.get(f"/v1/tasks/{task_id}/model", params={"round": missing})
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
        assert ", ".join(map(str, numbers)) in gone.json()["message"]
