"""A server process is killed between parts and within them: after its restart no byte is sent twice."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from protocol.rest_uploads import UploadState
from tests.farm_server.test_cli import run
from tests.farm_server.test_kills import alive
from tests.farm_server.transfers.uploading import Uploader, until_received, uploads

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MEBIBYTE = 1024**2
DATA = random.Random(5).randbytes(6 * MEBIBYTE + 99)
ENVIRONMENT = {"FARM_SERVER_UPLOAD_IDLE_SECONDS": "600"}


@asynccontextmanager
async def farm(folder: Path) -> AsyncIterator[tuple[dict, httpx.AsyncClient]]:
    """Run a server until the end of the block, where it is killed."""
    async with alive(folder) as info:
        url = info["farm_url"]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=40) as http:
            yield info, http


def kill_now(info: dict) -> None:
    """Kill the server with its connections open."""
    os.kill(info["pid"], signal.SIGKILL)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


async def test_killed_between_and_within_parts_nothing_is_sent_twice(tmp_path: Path) -> None:
    cuts = [MEBIBYTE, 3 * MEBIBYTE + 333_333]
    sent_bytes = 0
    for cut, missing_from in zip(cuts, [0, *cuts], strict=False):
        async with farm(tmp_path) as (info, http):
            uploader = Uploader(http, DATA)
            assert await uploader.missing() == [(missing_from, len(DATA))]
            middle = (missing_from + cut) // 2
            assert (await uploader.send(missing_from, middle)).status_code == 204
            token = info["farm_url"].partition("//")[2].partition("@")[0]
            with uploader.begun(info["url"], token, middle, len(DATA), cut - middle):
                await until_received(http, uploader.digest, cut)
                sent_bytes += uploader.sent_bytes
                kill_now(info)
    async with farm(tmp_path) as (_, http):
        uploader = Uploader(http, DATA)
        assert 201 in await uploader.finish(MEBIBYTE)
        sent_bytes += uploader.sent_bytes
        assert (await http.get(f"/v1/blobs/{uploader.digest}")).content == DATA
        assert await uploads(http) == []
    assert sent_bytes == len(DATA)


async def test_killed_while_four_parts_arrive_the_rest_is_asked_for_and_makes_it_whole(tmp_path: Path) -> None:
    quarter = len(DATA) // 4
    async with farm(tmp_path) as (info, http):
        uploader = Uploader(http, DATA)
        await uploader.ask()
        token = info["farm_url"].partition("//")[2].partition("@")[0]
        first = uploader.begun(info["url"], token, 0, quarter, 100_000)
        second = uploader.begun(info["url"], token, quarter, 2 * quarter, 300_000)
        third = uploader.begun(info["url"], token, 3 * quarter, len(DATA), 200_000)
        with first, second, third:
            await until_received(http, uploader.digest, 600_000)
            kill_now(info)
    async with farm(tmp_path) as (_, http):
        uploader = Uploader(http, DATA)
        assert await uploader.missing() == [
            (100_000, quarter),
            (quarter + 300_000, 3 * quarter),
            (3 * quarter + 200_000, len(DATA)),
        ]
        assert 201 in await uploader.finish(700_000)
        assert uploader.sent_bytes == len(DATA) - 600_000
        assert (await uploader.ask()).state is UploadState.STORED


async def test_the_operator_sees_uploads(tmp_path: Path) -> None:
    async with farm(tmp_path) as (_, http):
        await Uploader(http, DATA).ask()
        assert "uploads: 1 under way, 0 wait" in run("status", "--data-dir", str(tmp_path)).stdout
        assert "farm_upload_credits_in_use 1.0" in (await http.get("/metrics")).text


def test_a_rate_is_a_number_of_bytes(tmp_path: Path) -> None:
    answer = run("up", "--data-dir", str(tmp_path), "--port", "0", "--upload-rate", "fast")
    assert answer.returncode == 2
    assert "--upload-rate" in answer.stderr
