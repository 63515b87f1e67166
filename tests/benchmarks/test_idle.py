"""The share of their rounds that clients keep beside a crowd: by commits, on a real farm."""

from __future__ import annotations

import json

import pytest

from benchmarks import idle
from benchmarks.farm import BenchmarkError
from protocol.rest import RoundView


def committed(number: int, at: float | None) -> RoundView:
    return RoundView(
        number=number, state="committed", epoch=0, samples=1, clients=3, seconds=0.1, loss=None, committed_at=at
    )


def test_rounds_are_counted_between_two_commits():
    assert idle._rounds_per_s(committed(10, 100.0), committed(30, 104.0)) == 5.0


@pytest.mark.parametrize("first", [committed(10, 100.0), idle._NONE])
def test_a_window_without_a_round_is_no_measurement(first):
    with pytest.raises(BenchmarkError, match="no round was committed"):
        idle._rounds_per_s(first, committed(10, 100.0))


def test_a_share_is_of_the_windows_just_before_and_after():
    assert idle.shares_of(alone=[10.0, 20.0, 30.0], beside=[12.0, 20.0]) == [0.8, 0.8]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_farm_is_measured_beside_a_crowd(monkeypatch):
    monkeypatch.setattr(idle, "SETTLED_SECONDS", 0.5)
    found = json.loads(idle.measure(clients=30, seconds=2.0, repeats=1).to_json())
    assert (found["benchmark"], found["clients"]) == ("idle", 30)
    (beside,) = found["beside_rounds_per_s"]
    assert found["share"] == pytest.approx(2 * beside / sum(found["alone_rounds_per_s"]), rel=0.01)
    assert found["shares"] == [found["share"]]
    assert min(*found["alone_rounds_per_s"], beside) > 0
    assert found["idle_heartbeat_seconds"] == 2.0
    assert 0 < found["busy_cores_beside"] <= found["cores"] * 1.05
    assert min(found["server_cpu_alone"], found["server_cpu_beside"]) > 0
    assert 0 <= found["crowd_cpu_beside"] < found["cores"], "thirty clients may cost less than a tick of the clock"
    assert 0 < found["loop_lag_p99_beside_ms"] < 60_000
