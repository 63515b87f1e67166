"""What the sandbox costs: every rung is measured beside none, with real executors."""

from __future__ import annotations

import json

from benchmarks.sandbox import measure


def test_both_rungs_are_measured_beside_none():
    found = [json.loads(cost.to_json()) for cost in measure(0.05, starts=1, turns=1)]
    assert [(cost["benchmark"], cost["rung"]) for cost in found] == [("sandbox", "strict"), ("sandbox", "landlock")]
    for cost in found:
        assert cost["start_ms"] > 0
        assert cost["plain_start_ms"] > 0
        assert cost["steps_ratio"] > 0
        assert 0.5 < cost["memory_ratio"] < 1.1, "the processes around it count as well"
