"""A disk that is really full: what is there is kept, nothing new is taken, and all goes on by itself once it is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.digests import digest_bytes
from protocol.recipe import OuterOptimizer, Recipe
from tests.farm_server import model
from tests.farm_server.conftest import Running, running
from tests.farm_server.test_training import ended, final_weights, working

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MEBIBYTE = 1024**2
ROUNDS = 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave not one byte free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


async def answers(server: Running, path: str, status: int) -> str:
    async with asyncio.timeout(30):
        while True:
            answer = await server.http.get(path)
            if answer.status_code == status:
                return answer.text
            await asyncio.sleep(0.02)


async def committed(server: Running, task_id: str, rounds: int) -> int:
    async with asyncio.timeout(30):
        while True:
            view = (await server.http.get(f"/v1/tasks/{task_id}")).json()["task"]
            if view["round"] >= rounds:
                return int(view["round"])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("min_free_bytes", [0, 8 * MEBIBYTE])
async def test_a_task_outlasts_a_full_disk(small_disk: Path, min_free_bytes: int) -> None:
    recipe = Recipe(rounds=ROUNDS, round_samples=64, outer=OuterOptimizer(options={"lr": 1.0}))
    async with running(small_disk / "data", min_free_bytes=min_free_bytes) as server:
        task_id = await model.submit(server.http, model.spec(recipe=recipe))
        async with server.volunteer() as volunteer, working(volunteer):
            before = await committed(server, task_id, 5)
            filler = fill(small_disk)
            reason = await answers(server, "/readyz", 503)
            assert str(small_disk) in reason
            assert "free" in reason
            upload = await server.http.put(f"/v1/blobs/{digest_bytes(b'new')}", content=b"new")
            another = model.spec(name="another").model_dump(mode="json")
            submission = await server.http.post("/v1/tasks", json=another)
            for refused in (upload, submission):
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert (await server.http.get(f"/v1/tasks/{task_id}")).json()["task"]["round"] >= before
            filler.unlink()
            await answers(server, "/readyz", 200)
            view = await ended(server.http, task_id)
        assert (view["state"], view["round"], view["retries"]) == ("completed", ROUNDS, 0)
        np.testing.assert_allclose(await final_weights(server.http, task_id), -float(ROUNDS))
        books = (await server.http.get(f"/v1/tasks/{task_id}/shards")).json()
        assert {(b["counted_samples"], b["repeated_samples"]) for b in books} == {(64, 0)}


async def test_a_server_does_not_start_on_a_read_only_folder_and_says_why(small_disk: Path) -> None:
    async with running(small_disk / "data"):
        pass
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(small_disk)], check=True)
    command = ["farm-server", "up", "--data-dir", str(small_disk / "data"), "--port", "0"]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, env=environ)
    assert said.returncode == 1
    assert said.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "read-only" in said.stderr.lower()
