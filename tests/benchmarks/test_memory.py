"""The memory benchmark: its light clients' updates are valid and never alike, and a real server is measured."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

from benchmarks import memory


def test_no_two_updates_are_alike_and_all_have_the_models_layout(tmp_path):
    uploaders = [memory.Uploader(tmp_path, number, params=1000) for number in range(2)]
    digests = [uploader._renewed(round_number) for uploader in uploaders for round_number in range(3)]
    assert len(set(digests)) == len(digests)
    tensors = load_file(tmp_path / "1.update")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"parts.0": (1000,)}
    assert tensors["parts.0"][-1] == 2002


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_server_is_measured():
    found = json.loads(memory.measure(params=300_000, clients=[2], mode="weights", rounds=1).to_json())
    assert (found["benchmark"], found["clients"], found["rounds"]) == ("memory", [2], 1)
    assert all(peak > 10e6 for peak in found["server_peak_rss_bytes"])
    assert found["growth"] == 0


def test_growth_is_of_the_most_clients_over_the_fewest(monkeypatch):
    monkeypatch.setattr(memory, "_peak_bytes", lambda params, clients, mode, rounds: 100 + clients)
    found = memory.measure(params=10, clients=[2, 8, 32], mode="weights")
    assert found.server_peak_rss_bytes == [102, 108, 132]
    assert found.growth == pytest.approx(30 / 102)
