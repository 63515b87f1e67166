"""`farm-client cache`: what it prints, and that it leaves a running agent's files alone."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from typer.testing import CliRunner

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.cli import app
from farm_client.agent.errors import ControlRefused
from farm_client.agent.home.folder import HomeFolder
from protocol.assignments import Accept, Result
from protocol.digests import digest_bytes
from tests.farm_client.agent.scripted_farm import joined


def fill(home: Path) -> HomeFolder:
    where = HomeFolder(home)
    with where.held():
        cache = BlobCache(where.cache_dir, 10**6)
        for data, task in ((b"shard", "t1"), (b"other", "t2")):
            with cache.pinned((digest_bytes(data),), task):
                cache.put(digest_bytes(data), data)
        cache.book.name_task("t1", "digits")
        cache.save_book()
    return where


def call(*arguments: str) -> str:
    answer = CliRunner().invoke(app, ["cache", *arguments])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_it_shows_what_there_is_beside_a_running_agent(tmp_path: Path) -> None:
    where = fill(tmp_path)
    with where.held():
        shown = json.loads(call("show", "--home", str(tmp_path), "--json"))
        assert "digits (t1): 5 B" in call("show", "--home", str(tmp_path))
    assert (shown["kind"], shown["data"]["max_bytes"]) == ("client_cache", 20 * 1024**3)
    assert {task["task_id"]: task["resident_bytes"] for task in shown["data"]["tasks"]} == {"t1": 5, "t2": 5}


def test_it_clears_a_task_by_its_name_and_then_the_rest(tmp_path: Path) -> None:
    where = fill(tmp_path)
    assert call("clear", "digits", "--home", str(tmp_path)) == "removed 1 blob, 5 B\n"
    assert len(list(where.cache_dir.glob("??/*"))) == 1
    cleared = json.loads(call("clear", "--home", str(tmp_path), "--json"))
    assert cleared == {
        "schema": 1,
        "kind": "client_cache_cleared",
        "data": {"blobs": 1, "size_bytes": 5, "in_use": 0},
    }


def test_without_a_home_nothing_is_made(tmp_path: Path) -> None:
    assert call("clear", "--home", str(tmp_path / "none")) == "removed 0 blobs, 0 B\n"
    assert not (tmp_path / "none").exists()


async def test_beside_a_running_agent_what_it_uses_stays(farm, start_agent, home, tmp_path) -> None:
    os.mkfifo(tmp_path / "gate")
    async with start_agent():
        peer = await joined(farm)
        for task in (farm.task("old"), farm.task("new", doing="wait", gate=str(tmp_path / "gate"))):
            await peer.send(farm.assign(task, shard=task.task_id.encode()))
            await peer.expect(Result if task.task_id == "old" else Accept)
        gate = await asyncio.to_thread(os.open, tmp_path / "gate", os.O_WRONLY)  # until it computes
        cleared = await asyncio.to_thread(call, "clear", "old", "--home", str(home))
        left = await asyncio.to_thread(call, "clear", "--home", str(home), "--json")
        assert cleared.startswith("removed 1 blob")  # the code is of both
        assert json.loads(left)["data"]["in_use"] > 0
        wrong = await asyncio.to_thread(CliRunner().invoke, app, ["cache", "clear", "nonsense", "--home", str(home)])
        assert isinstance(wrong.exception, ControlRefused)
        os.write(gate, b"go on")
        os.close(gate)
        assert (await peer.expect(Result)).samples == 6
