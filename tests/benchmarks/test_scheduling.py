from __future__ import annotations

import json

from benchmarks.scheduling import measure


def test_a_line_says_what_was_there_and_what_each_event_cost():
    found = json.loads(measure(clients=5, ended_tasks=3, waiting_tasks=2).to_json())
    assert (found["benchmark"], found["clients"], found["ended_tasks"], found["waiting_tasks"]) == (
        "scheduling",
        5,
        3,
        2,
    )
    assert set(found["event_us"]) == {"heartbeat", "ready", "join", "result"}
    assert all(cost > 0 for cost in found["event_us"].values())
    assert found["open_round_ms"] > 0
