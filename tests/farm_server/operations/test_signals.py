"""A signal is heard in the midst of work, not after all that waits for the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any, cast

import pytest
import uvloop

from farm_server.operations.daemon import ServerDaemon


class Mind:
    def __init__(self) -> None:
        self.offers = True

    def offer_nothing_more(self) -> None:
        self.offers = False


class BusyFarm:
    def __init__(self) -> None:
        self.coordinator = Mind()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_busy_loop_gives_out_no_more_work_from_the_signal_on(run, number):
    heard_within: list[bool] = []

    async def live() -> None:
        daemon = ServerDaemon(*cast("Any", (None, None, None, None)))
        farm = BusyFarm()
        daemon._farm = cast("Any", farm)

        def busy() -> None:
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 2
            while farm.coordinator.offers and time.monotonic() < deadline:
                pass
            heard_within.append(not farm.coordinator.offers)

        with daemon._signals():
            asyncio.get_running_loop().call_soon(busy)
            await asyncio.wait_for(daemon._stop.wait(), 5)
            assert not daemon._force.is_set()
            os.kill(os.getpid(), number)  # while the loop is idle
            await asyncio.wait_for(daemon._force.wait(), 5)

    before = signal.getsignal(number)
    run(live())
    assert heard_within == [True]
    assert signal.getsignal(number) == before
