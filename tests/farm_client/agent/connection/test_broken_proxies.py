"""Agents behind thirty broken proxies, for a short time; tests/faults has the long one, with all times as they are."""

from farm_client.agent.connection import link
from tests.farm_client.agent.broken_proxies import BACK_SECONDS, outlive


async def test_thirty_agents_outlive_their_broken_proxies(farm, tmp_path, passed_self_test, monkeypatch):
    monkeypatch.setattr(link, "_OPEN_SECONDS", 1.0)
    assert await outlive(farm, tmp_path, passed_self_test, broken_seconds=2.0) < BACK_SECONDS
