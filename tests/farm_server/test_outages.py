"""The disk refuses: the farm goes on, says so, and recovers by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time

import pytest
from sqlalchemy.exc import OperationalError
from websockets.exceptions import InvalidStatus

from farm_server.environment.disk_space import DiskSpace
from farm_server.housekeeping.periodic import collect_blobs
from protocol.assignments import Ack
from protocol.digests import digest_bytes
from protocol.errors import Unavailable
from protocol.recipe import Recipe
from tests.farm_server import model
from tests.farm_server.test_training import ended


async def eventually(server, path: str, status: int) -> str:
    async with asyncio.timeout(30):
        while True:
            answer = await server.http.get(path)
            if answer.status_code == status:
                return answer.text
            await asyncio.sleep(0.02)


async def test_a_ledger_that_cannot_be_written_stops_new_work_and_nothing_else(server, monkeypatch):
    task_id = await model.submit(server.http)

    def refuses(*_: object) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorname = "SQLITE_FULL"
        raise OperationalError("INSERT", {}, full)

    async with server.volunteer() as volunteer:
        with monkeypatch.context() as patch:
            patch.setattr("storage.writer.write_changes", refuses)
            await volunteer.ready()  # its assignment can't be made durable: it isn't sent
            assert "no space is left" in await eventually(server, "/readyz", 503)
            refused = await server.http.post(f"/v1/tasks/{task_id}/pause")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert (await server.http.get("/healthz")).status_code == 200
            assert (await server.http.get(f"/v1/tasks/{task_id}")).status_code == 200
        await eventually(server, "/readyz", 200)
        assign = await volunteer.accept()
        await volunteer.deliver(assign, model.update())
        assert (await volunteer.next(Ack)).counted


@pytest.mark.timeout(60)
async def test_a_ledger_that_another_program_locks_is_waited_for(server):
    await model.submit(server.http)
    async with server.volunteer() as volunteer:
        lock = sqlite3.connect(server.farm.settings.data_dir / "farm.db", isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN IMMEDIATE")
        await volunteer.ready()
        assert "another program keeps it locked" in await eventually(server, "/readyz", 503)
        lock.close()
        await volunteer.deliver(await volunteer.accept(), model.update())
        assert (await volunteer.next(Ack)).counted
        await eventually(server, "/readyz", 200)


async def test_a_defect_fails_the_attempt_of_its_task_and_no_other(server, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    recipe = Recipe(rounds=1, round_samples=64, max_retries=0)
    task_id = await model.submit(server.http, model.spec(recipe=recipe))
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        with monkeypatch.context() as patch:
            patch.setattr("coordinator.step_ends.commit", broken)
            await volunteer.deliver(assign, model.update())
            view = await ended(server.http, task_id)
        assert view["state"] == "failed"
        assert "the server has a defect: RuntimeError: a defect" in view["error"]
        assert "a defect" in (await server.http.get(f"/v1/tasks/{task_id}/why")).json()["why"]
        events = (await server.http.get(f"/v1/tasks/{task_id}/events")).json()
        assert sum(e["kind"] == "server_defect" for e in events) == 1
        assert "a defect" in (await server.http.get("/")).text
        other = await model.submit(server.http, model.spec(name="other", recipe=recipe))
        await volunteer.ready()
        await volunteer.deliver(await volunteer.accept(), model.update())
        assert (await ended(server.http, other))["state"] == "completed"


async def test_uploads_that_no_task_refers_to_are_collected_after_their_grace(server):
    await model.submit(server.http)
    await model.upload(server.http, b"forgotten", b"young")
    blobs = server.farm.blobs
    old = time.time() - server.farm.settings.blob_grace_seconds - 60
    for data in (b"forgotten", model.CODE, model.SHARD):
        os.utime(blobs.path(digest_bytes(data)), (old, old))
    await collect_blobs(server.farm.ledger, blobs, server.farm.settings)
    here = [blobs.has(digest_bytes(data)) for data in (b"forgotten", b"young", model.CODE, model.SHARD)]
    assert here == [False, True, True, True]


def test_a_nearly_full_disk_is_named(tmp_path):
    assert DiskSpace(tmp_path, 0).lacks() is None
    assert str(tmp_path) in DiskSpace(tmp_path, 2**60).lacks()


def test_a_checkpoint_may_take_what_an_upload_may_not_but_never_the_ledger_s_reserve(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    room = DiskSpace(tmp_path, free * 2)
    assert room.lacks()
    room.claim(1)
    with pytest.raises(Unavailable, match="free some space"):
        room.claim(free)


def test_a_folder_that_is_gone_is_named(tmp_path):
    assert "can't be used" in DiskSpace(tmp_path / "gone", 0).lacks()


async def test_while_the_disk_lacks_room_nothing_new_is_taken_and_what_runs_goes_on(server, monkeypatch):
    await model.submit(server.http)
    async with server.volunteer() as volunteer:
        await volunteer.ready()
        assign = await volunteer.accept()
        with monkeypatch.context() as patch:
            patch.setattr(server.farm.disk_space, "lacks", lambda _size=0: "only 5 bytes are free")
            body = model.spec(name="another").model_dump(mode="json")
            refusals = [
                await server.http.post("/v1/tasks", json=body),
                await server.http.put(f"/v1/blobs/{digest_bytes(b'new')}", content=b"new"),
                await server.http.get("/v1/farm"),
            ]
            assert [r.status_code for r in refusals] == [503, 503, 200]
            assert refusals[2].json()["problem"] == "only 5 bytes are free"
            with pytest.raises(InvalidStatus) as refused:
                await server.volunteer("c2").__aenter__()
            assert refused.value.response.status_code == 503
            assert b"only 5 bytes" in refused.value.response.body
            await volunteer.deliver(assign, model.update())
            assert (await volunteer.next(Ack)).counted
        async with server.volunteer("c2"):
            pass
