"""Rounds in simulated time, with backup tasks and without."""

from __future__ import annotations

import json

import pytest

from benchmarks import backups


def test_a_straggler_holds_a_round_up_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "SLOW_SHARE", 0.2)
    found = json.loads(backups.measure(clients=4, rounds=5).to_json())
    assert (found["benchmark"], found["clients"], found["rounds"]) == ("backups", 4, 5)
    assert 10.0 < found["with_backups_s"] < found["without_s"] <= 200.0
    assert found["gain"] == pytest.approx(found["without_s"] / found["with_backups_s"], rel=0.01)
    assert 0 < found["outrun_share"] < 0.5


def test_where_nobody_is_slow_there_is_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "SLOW_SHARE", 0.0)
    found = backups.measure(clients=4, rounds=5)
    assert (found.with_backups_s, found.without_s, found.outrun_share) == (10.0, 10.0, 0.0)
