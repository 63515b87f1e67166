"""The uneven benchmark: its planted speeds, what it makes of commits, and a tiny run of real processes."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.farm import BenchmarkError
from benchmarks.uneven import MODES, Commit, Pace, held_out_loss, lay_out, measure, measured
from protocol.recipe import Mode, Recipe

PACE = Pace(unit_samples_per_s=10.0, round_seconds=4.0, seconds=30.0)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_a_recipe(mode):
    recipe = Recipe(mode=Mode.WEIGHTS, rounds=1, round_samples=PACE.round_samples, **MODES[mode])
    assert recipe.round_samples == 608, "150 samples a second for 4 seconds, in whole batches"


def test_a_share_is_of_the_planted_speeds_after_the_first_versions():
    commits = [Commit(at, 300) for at in (10.0, 13.0, 17.0, 19.0, 21.0)]
    found = measured("sync", PACE, 140.0, commits, 0.5)
    assert (found.samples_per_s, found.share_of_sum) == (150.0, 1.0)
    assert (found.versions, found.seconds, found.loss, found.standalone_samples_per_s) == (5, 30.0, 0.5, 140.0)
    with pytest.raises(BenchmarkError, match="sync had 3 versions in 30 s: measure for longer"):
        measured("sync", PACE, 140.0, commits[:3], 0.5)


def test_a_machine_takes_as_long_as_its_speed_says(tmp_path, monkeypatch):
    task = lay_out(tmp_path / "task")
    clock = [100.0]
    monkeypatch.setattr(task.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(task.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setenv(task.SPEED_VARIABLE, "4")
    model, rows = task.build_model(PACE.config), torch.zeros(20, 64)
    model(rows)
    assert clock[0] == pytest.approx(100.48), "0.5 s, of which a step of before is 0.02"
    clock[0] += 0.01
    model(rows)
    assert clock[0] == pytest.approx(100.98), "a step in between is work"
    clock[0] += 60.0
    model(rows)
    assert clock[0] == pytest.approx(161.46), "and idle time is not"


def test_the_loss_of_knowing_nothing_is_that_of_ten_labels(tmp_path):
    task = lay_out(tmp_path / "task")
    weights = {name: torch.zeros_like(value) for name, value in task.build_model(PACE.config).state_dict().items()}
    assert held_out_loss(task, PACE, weights) == pytest.approx(2.302585, rel=1e-5)
    data = task.make_dataset({"samples": 3000})
    assert len(data) == 3000
    rows, label = data[1437]
    again, same = data[0]
    assert (label, rows.shape) == (same, (64,))
    assert not torch.equal(rows, again), "the same digit with other noise"
    assert torch.equal(data[0][0], again)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_short_run_is_measured():
    pace = Pace(unit_samples_per_s=40.0, round_seconds=1.0, seconds=12.0)
    found = [json.loads(each.to_json()) for each in measure(["fedbuff", "decoupled"], pace)]
    assert [each["mode"] for each in found] == ["fedbuff", "decoupled"]
    for each in found:
        assert 0 < each["share_of_sum"] < 1.1
        assert 0 < each["loss"] < 2.5
