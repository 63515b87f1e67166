from __future__ import annotations

import json

from benchmarks.robust import measure
from protocol.aggregates import AggregateName


def test_each_aggregate_has_its_memory_and_its_time(tmp_path):
    names = (AggregateName.BULYAN, AggregateName.TRIMMED_MEAN)
    found = [json.loads(one.to_json()) for one in measure(names, 7, 5000, tmp_path)]
    assert [(one["aggregate"], one["rows"], one["params"]) for one in found] == [(n, 7, 5000) for n in names]
    assert all(one["seconds"] > 0 and one["peak_rss_bytes"] > 50 * 1024**2 for one in found)
    assert list(tmp_path.iterdir()) == []
