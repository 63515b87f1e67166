"""Signals that a parent told to be ignored stay ignored: nohup, and what a shell runs in the background."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest

from farm_client.signals import heeded
from protocol.messages import Bye, Heartbeat
from tests.farm_client.agent.scripted_farm import joined

IGNORING = {signal.SIGHUP: "HUP", signal.SIGINT: "INT"}


@pytest.fixture
def ignored(request):
    before = signal.signal(request.param, signal.SIG_IGN)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], indirect=True)
def test_a_signal_that_is_ignored_is_not_ours(ignored):
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert heeded(*wanted) == tuple(number for number in wanted if number is not ignored)


@asynccontextmanager
async def agent_process(farm, home, *wrapper):
    module = "tests.farm_client.agent.agent_process"
    process = await asyncio.create_subprocess_exec(
        *wrapper,
        sys.executable,
        "-m",
        module,
        farm.url,
        str(home),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", IGNORING)
async def test_an_agent_works_on_through_a_signal_that_it_was_told_to_ignore(farm, home, number):
    async with agent_process(farm, home, "sh", "-c", f'trap "" {IGNORING[number]}; exec "$@"', "sh") as process:
        peer = await joined(farm)
        process.send_signal(number)
        peer.unread.clear()
        for _ in range(3):
            await peer.expect(Heartbeat)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert not (await peer.expect(Bye)).crashed
        assert await process.wait() == 0


@pytest.mark.parametrize("number", IGNORING)
async def test_else_it_leaves_politely(farm, home, number):
    async with agent_process(farm, home) as process:
        peer = await joined(farm)
        process.send_signal(number)
        assert not (await peer.expect(Bye)).crashed
        assert await process.wait() == 0


async def test_nohup_itself(farm, home):
    async with agent_process(farm, home, "nohup") as process:
        peer = await joined(farm)
        os.kill(process.pid, signal.SIGHUP)
        peer.unread.clear()
        for _ in range(3):
            await peer.expect(Heartbeat)
        assert process.returncode is None
