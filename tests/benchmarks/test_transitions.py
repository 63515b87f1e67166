from __future__ import annotations

import json

import pytest

from benchmarks.transitions import measure


@pytest.mark.parametrize("writers", [1, 20])
def test_every_writer_is_measured_beside_plain_sqlite(tmp_path, writers):
    found = json.loads(measure(writers, 0.3, tmp_path).to_json())
    assert found["writers"] == writers
    assert found["transitions"] >= writers
    assert found["transitions_per_s"] == pytest.approx(found["transitions"] / found["seconds"], rel=1e-2)
    assert found["ratio"] == pytest.approx(found["transitions_per_s"] / found["plain_per_s"], rel=1e-2)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert list(tmp_path.iterdir()) == []
