from __future__ import annotations

import json

from benchmarks.lag import measure


def test_the_lag_while_folding_is_measured_beside_an_idle_loop(tmp_path):
    found = json.loads(measure(100_000, 3, tmp_path).to_json())
    assert (found["benchmark"], found["params"], found["updates"]) == ("lag", 100_000, 3)
    assert found["commit_seconds"] > 0
    assert found["fold_p99_ms"] <= found["fold_worst_ms"]
    assert list(tmp_path.iterdir()) == []
