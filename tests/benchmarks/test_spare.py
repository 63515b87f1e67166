"""What a spare executor saves: with the agent's own pool, and a process that is as quick to start as Python."""

from __future__ import annotations

import json

from benchmarks.spare import measure
from tests.farm_client.agent.conftest import FAKE_EXECUTOR


def test_both_ways_are_measured_as_the_agent_starts():
    found = json.loads(measure(1, FAKE_EXECUTOR).to_json())
    assert found["benchmark"] == "spare"
    assert len(found["with_spare_s"]) == len(found["without_s"]) == 1
    assert found["gain"] > 1, "without a spare a process has to start first"
    assert found["spare_rss_bytes"] > 10**6
