"""What a farm without work costs: by real processes, the executor in its sandbox among them."""

from __future__ import annotations

import json

import pytest

from benchmarks.resting import measure


@pytest.mark.slow
def test_server_agent_and_executor_are_measured_at_rest():
    found = [json.loads(one.to_json()) for one in measure(0.5, rest_seconds=0.0)]
    assert [(one["benchmark"], one["process"]) for one in found] == [
        ("idle", "server"),
        ("idle", "agent"),
        ("idle", "executor"),
    ]
    memory = {one["process"]: one["rss_bytes"] for one in found}
    assert memory["agent"] < memory["executor"]
    assert all(one["cpu_share"] >= 0 and one["seconds"] >= 0.5 for one in found)
