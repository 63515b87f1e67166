"""What is seen from outside of what a probe reached."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from farm_client.sandbox.decoys import Decoys


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_is_seen_before_anybody_hears_of_the_end(tmp_path: Path, number: signal.Signals) -> None:
    async with Decoys(tmp_path) as decoys:
        assert list(decoys.reached()) == []
        os.kill(decoys.pid, number)
        assert list(decoys.reached()) == ["end another program's process"]  # the loop has not run in between


async def test_a_program_that_is_gone_is_seen(tmp_path: Path) -> None:
    async with Decoys(tmp_path) as decoys:
        os.kill(decoys.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while Path(f"/proc/{decoys.pid}").exists():  # noqa: ASYNC110, ASYNC240  its end tells nobody else
                await asyncio.sleep(0.001)
        assert list(decoys.reached()) == ["end another program's process"]
