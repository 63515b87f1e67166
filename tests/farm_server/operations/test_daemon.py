"""The daemon and its signals."""

import asyncio
import gc
import os
import signal

import pytest

from farm_server.environment.settings import ServerSettings
from farm_server.operations import daemon as daemon_module
from farm_server.operations.daemon import COLLECT_AFTER, ServerDaemon


def daemon():
    return ServerDaemon(None, None, None, lambda info: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_that_whoever_started_it_ignores_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        running = daemon()
        with running._signals():
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
            assert signal.getsignal(number) is signal.SIG_IGN
            assert not running._stop.is_set()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_stops_and_the_second_forces(number):
    before = signal.getsignal(number)
    running = daemon()
    with running._signals():
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await running._stop.wait()
        assert not running._force.is_set()
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await running._force.wait()
    signal.signal(number, before)


def test_a_server_runs_with_a_collector_that_leaves_its_clients_alone(tmp_path, monkeypatch):
    found = []

    def look(life):
        life.close()
        found.append(gc.get_threshold())

    before = gc.get_threshold()
    monkeypatch.setattr(daemon_module.uvloop, "run", look)
    try:
        daemon_module.run(ServerSettings(data_dir=tmp_path, port=0), lambda info: None)
    finally:
        gc.set_threshold(*before)
    assert found == [COLLECT_AFTER]
