from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.blob import CUTS, measure
from benchmarks.raw_copy import download_seconds, raw_server, upload_seconds

SIZE_BYTES = 6_000_000
pytestmark = [pytest.mark.slow]


def test_both_ways_are_measured_beside_a_raw_copy_and_no_byte_moves_twice(tmp_path: Path) -> None:
    up, down, cut_up, cut_down = (json.loads(found.to_json()) for found in measure(SIZE_BYTES, 1, tmp_path))
    for speed, direction in ((up, "up"), (down, "down")):
        assert (speed["benchmark"], speed["direction"], speed["size_bytes"]) == ("blob", direction, SIZE_BYTES)
        assert speed["gb_per_s"] == pytest.approx(SIZE_BYTES / speed["seconds"] / 1e9, rel=1e-2)
        assert speed["ratio"] == pytest.approx(speed["gb_per_s"] / speed["raw_gb_per_s"], rel=1e-2)
    for resumed in (cut_up, cut_down):
        assert 0 < resumed["cuts"] <= CUTS
        assert resumed["bytes_sent"] == SIZE_BYTES + resumed["bytes_lost_in_flight"]
        assert resumed["bytes_sent_twice"] == 0
    assert list(tmp_path.iterdir()) == []


def test_the_raw_copy_is_a_copy(tmp_path: Path) -> None:
    source, fetched = tmp_path / "source", tmp_path / "fetched"
    source.write_bytes(bytes(range(256)) * 10_000)
    with raw_server(tmp_path / "raw") as port:
        assert upload_seconds(port, source) > 0
        assert download_seconds(port, fetched, source.stat().st_size) > 0
    assert fetched.read_bytes() == source.read_bytes() == (tmp_path / "raw" / "raw").read_bytes()
