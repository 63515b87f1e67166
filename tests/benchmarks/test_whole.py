"""A whole run beside the plain loop: one of a tiny model on a real farm, and what is made of rounds' times."""

from __future__ import annotations

import json

import pytest

from benchmarks.plain_loop import task_module
from benchmarks.whole import MODES, Length, measure
from protocol.recipe import Mode, Recipe


@pytest.mark.slow
def test_the_plain_loop_and_a_pipelined_run_are_measured(monkeypatch):
    tiny = {"layers": 1, "heads": 2, "width": 8, "context": 4, "vocabulary": 16, "batch": 2}
    monkeypatch.setattr(task_module("nanogpt"), "SMALL", tiny)
    found = [json.loads(each.to_json()) for each in measure(Length("small", "cpu", 4, 3), ["plain", "diloco-int8"])]
    assert [each["mode"] for each in found] == ["plain", "diloco-int8"]
    plain, farm = found
    assert (plain["ratio"], plain["rounds"]) == (1.0, 1)
    assert len(farm["round_s"]) == 3
    assert plain["stages_s"] == {}
    assert farm["stages_s"].keys() >= {"fetch", "start", "load", "train", "copy", "write", "fold", "step", "save"}
    assert farm["samples_per_s"] == pytest.approx(3 * 4 * 2 / sum(farm["round_s"]), rel=0.01)
    assert farm["tokens_per_s"] == pytest.approx(4 * farm["samples_per_s"], rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_a_recipe(mode):
    assert Recipe(mode=Mode.WEIGHTS, rounds=1, **MODES[mode]).pipeline == (mode != "weights")
