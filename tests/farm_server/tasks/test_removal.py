"""Tasks can be removed, and what is too much goes by itself; what others need stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from farm_server.environment.settings import ServerSettings
from farm_server.operations.gc import collect
from protocol.assignments import LogLine, Progress
from protocol.digests import digest_bytes
from protocol.recipe import Recipe
from protocol.tasks import Dataset
from tests.farm_server import model
from tests.farm_server.test_training import ended, working

ONE_ROUND = Recipe(rounds=1, round_samples=64)


async def trained(server, name: str = "tiny") -> str:
    task_id = await model.submit(server.http, model.spec(name=name, recipe=ONE_ROUND, submit_token=name))
    async with server.volunteer() as volunteer, working(volunteer):
        await ended(server.http, task_id)
    return task_id


def aged(server, *digests: str) -> None:
    """Make blobs as old as if nobody had asked for them for a day."""
    for digest in digests:
        os.utime(server.farm.blobs.path(digest), (0, 0))


def progress(assign, *lines: str) -> Progress:
    held = {"assignment_id": assign.assignment_id, "fence": assign.fence, "phase": "computing"}
    return Progress(progress=held, logs=tuple(LogLine(text=line) for line in lines))  # type: ignore[arg-type]


async def test_an_ended_task_is_removed_with_its_blobs_and_stays_away(start):
    async with start(retention_seconds=3600, superseded_grace_seconds=10) as server:
        gone, kept = await trained(server, "gone"), await trained(server, "kept")
        own = (await server.farm.ledger.checkpoints(gone))[-1].manifest.digest
        answer = await server.http.delete(f"/v1/tasks/{gone}")
        assert (answer.status_code, answer.json()) == (200, {"task_id": gone, "removed": True})
        assert (await server.http.get(f"/v1/tasks/{gone}")).status_code == 404
        assert (await server.http.delete(f"/v1/tasks/{gone}")).status_code == 404
        assert [t["task_id"] for t in (await server.http.get("/v1/tasks")).json()] == [kept]
        aged(server, own, digest_bytes(model.weights()))
        await server.farm.retention.drop_superseded(server.farm.clock.now())
        assert not server.farm.blobs.has(own)
        assert server.farm.blobs.has(digest_bytes(model.weights())), "the other task needs it"
        events = (await server.http.get("/v1/events")).json()
        assert any(e["kind"] == "task_removed" and gone in e["message"] for e in events)
    async with start() as server:
        assert [t["task_id"] for t in (await server.http.get("/v1/tasks")).json()] == [kept]
        assert (await server.http.get(f"/v1/tasks/{kept}/model")).status_code == 200
        assert await trained(server, "gone") != gone  # its submit token is free again


async def test_a_task_that_trains_is_removed_by_force_only(server):
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        task_id = await model.submit(server.http)
        assign = await volunteer.accept()
        refused = await server.http.delete(f"/v1/tasks/{task_id}")
        assert refused.status_code == 409
        assert "farm cancel" in refused.json()["message"]
        assert (await server.http.delete(f"/v1/tasks/{task_id}", params={"force": True})).status_code == 200
        await volunteer.send(progress(assign, "too late"))
        await volunteer.deliver(assign, model.update())
        await volunteer.ready()
        other = await model.submit(server.http, model.spec(name="another"))
        assert (await volunteer.accept()).task.task_id == other
    server.farm.entries.flush(server.farm.clock.now())  # what waits would be written now, or a moment later
    await server.farm.ledger.save(())
    assert await server.farm.ledger.logs(task_id) == []


async def test_gc_says_what_it_would_free_frees_it_and_then_nothing_is_left(start, tmp_path: Path):
    async with start(keep_log_lines=3, blob_grace_seconds=60) as server:
        task_id = await trained(server)
        orphan = server.farm.blobs.put_bytes(b"nobody needs it")
        aged(server, orphan.digest)
        async with server.volunteer("printer") as volunteer:
            await volunteer.ready()
            printing = await model.submit(server.http, model.spec(name="printing"))
            await volunteer.send(progress(await volunteer.accept(), *(f"line {n}" for n in range(10))))
            logs = (await server.http.get(f"/v1/tasks/{printing}/logs", params={"wait": 20})).json()
        assert len(logs) == 10
        would = (await server.http.post("/v1/gc", params={"dry_run": True})).json()
        assert would == {"dry_run": True, "blobs": 1, "bytes": 15, "rows": 7}
        assert server.farm.blobs.has(orphan.digest)
        assert (await server.http.post("/v1/gc")).json() == {**would, "dry_run": False}
        assert not server.farm.blobs.has(orphan.digest)
        left = (await server.http.get(f"/v1/tasks/{printing}/logs")).json()
        assert [line["text"] for line in left] == ["line 7", "line 8", "line 9"]
        room = (await server.http.get("/v1/room")).json()
        assert {task["task_id"] for task in room["tasks"]} == {task_id, printing}
        assert "newest 3 log lines" in room["policy"]
    settings = ServerSettings(data_dir=tmp_path, keep_log_lines=1, blob_grace_seconds=60)
    offline = await asyncio.to_thread(lambda: collect(settings, dry_run=False))
    assert (offline.blobs, offline.rows) == (0, 2)


async def test_long_after_its_end_a_task_keeps_its_model_and_nothing_of_its_history(start):
    async with start(keep_history_seconds=50) as server:
        task_id = await trained(server)
        now = server.farm.clock.now()
        assert await server.farm.cleaner.prune(now) == 0
        assert await server.farm.cleaner.prune(now + 60) > 0
        assert await server.farm.ledger.assignments(task_id) == []
        assert (await server.http.get(f"/v1/tasks/{task_id}/model")).status_code == 200
        assert (await server.http.get(f"/v1/tasks/{task_id}/events")).json() == []


async def test_a_submit_token_stands_for_one_specification(server):
    first = await model.submit(server.http, model.spec(submit_token="t"))
    assert await model.submit(server.http, model.spec(submit_token="t")) == first
    other = model.spec(submit_token="t", config={"width": 8}, priority=7).model_dump(mode="json")
    refused = await server.http.post("/v1/tasks", json=other)
    assert refused.status_code == 409
    assert "another config, priority" in refused.json()["message"]
    # weights that are drawn anew in each run are no other task
    assert await model.submit(server.http, model.spec(model.weights(3.0), submit_token="t")) == first


async def test_a_task_of_many_shards_of_one_blob_is_taken_at_once(server, monkeypatch):
    renewed = []
    renew = server.farm.blobs.renew
    monkeypatch.setattr(server.farm.blobs, "renew", lambda digest: renewed.append(digest) or renew(digest))
    shard = model.spec().dataset.shards[0]
    shards = tuple(shard.model_copy(update={"index": n}) for n in range(3000))
    await model.submit(server.http, model.spec(dataset=Dataset(kind="files", shards=shards)))
    assert renewed.count(digest_bytes(model.SHARD)) <= 2  # once by its upload, once by the submission
