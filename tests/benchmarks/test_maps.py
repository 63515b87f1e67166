"""The map benchmark: what it makes of a peer's answer, how peers are measured, and a tiny run of real processes."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import maps
from benchmarks.farm import BenchmarkError
from benchmarks.map_peers import figures
from benchmarks.maps import measure, measure_peer


def test_a_peer_is_measured_item_by_item_and_in_lists() -> None:
    sent: list[int] = []

    def send(function: Any, each: Any) -> list[Any]:
        sent.append(len(each))
        return [function(one) for one in each]

    found = figures(send, 250)
    assert found.keys() == {"items_per_s", "batched_items_per_s", "p50_ms"}
    assert sent[:3] == [50, 250, 3]
    assert set(sent[3:]) == {1}
    with pytest.raises(RuntimeError):
        figures(lambda function, each: [function(one) for one in each][::-1], 10)


def answers(monkeypatch: pytest.MonkeyPatch, **answer: Any) -> None:
    done = SimpleNamespace(**{"returncode": 0, "stdout": "", "stderr": "", **answer})
    monkeypatch.setattr(maps.subprocess, "run", lambda *_args, **_options: done)


def test_what_a_peer_says_is_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"items_per_s": 600.0, "batched_items_per_s": 9000.0, "p50_ms": 2.0}
    answers(monkeypatch, stdout=f"a line of its own\n{json.dumps(said)}\n")
    found = json.loads(measure_peer("dask", 2, 100).to_json())
    assert found == {"benchmark": "map", "system": "dask", "clients": 2, "items": 100, "durable": False, **said}


def test_a_peer_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, returncode=1, stderr="no such port")
    with pytest.raises(BenchmarkError, match="ray failed: no such port"):
        measure_peer("ray", 1, 10)

    def late(*_args: Any, **_options: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1.0)

    monkeypatch.setattr(maps.subprocess, "run", late)
    with pytest.raises(BenchmarkError, match="took over"):
        measure_peer("ray", 1, 10)


@pytest.mark.slow
def test_a_short_run_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "PEERS", {})
    (found,) = (json.loads(each.to_json()) for each in measure(1, 2000, 10))
    assert (found["system"], found["durable"]) == ("farm", True)
    assert found["items_per_s"] > 0
    assert found["p50_ms"] > 0
