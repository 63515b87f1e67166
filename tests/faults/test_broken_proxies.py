"""Agents behind thirty broken proxies, with all times as they are: see tests/farm_client/agent/broken_proxies.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from farm_client.agent.machine.probe import Probe
from farm_client.agent.machine.selftest import self_test
from tests.farm_client.agent.broken_proxies import BACK_SECONDS, outlive
from tests.farm_client.agent.scripted_farm import running_farm

BROKEN_SECONDS = 45.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_are_back_within_a_minute_and_none_has_ended(tmp_path: Path) -> None:
    async def scene() -> float:
        self_test_file = tmp_path / "self-test.json"
        await self_test(Probe(tmp_path), self_test_file)
        async with running_farm() as farm:
            return float(await outlive(farm, tmp_path, self_test_file, BROKEN_SECONDS))

    assert asyncio.run(scene()) < BACK_SECONDS
