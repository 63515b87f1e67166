from __future__ import annotations

import json

from benchmarks.starts import WAITING, measure


def test_a_start_loads_what_has_not_ended():
    found = json.loads(measure(ended_tasks=3).to_json())
    assert (found["benchmark"], found["ended_tasks"], found["tasks_loaded"]) == ("starts", 3, WAITING)
    assert found["start_ms"] > 0
    assert found["list_ms"] > 0
    assert found["memory_mb"] > 0
