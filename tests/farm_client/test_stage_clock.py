"""Stages of an assignment: each lasts from the end of the one before it."""

from __future__ import annotations

from farm_client.stage_clock import StageClock


def test_each_stage_lasts_from_the_end_of_the_one_before():
    times = iter([10.0, 12.0, 15.0])
    clock = StageClock(lambda: next(times))
    clock.ended("load")
    clock.ended("train")
    assert clock.seconds == {"load": 2.0, "train": 3.0}


def test_a_stage_that_comes_twice_is_added_up():
    times = iter([0.0, 1.0, 3.0, 6.0])
    clock = StageClock(lambda: next(times))
    for stage in ("copy", "write", "copy"):
        clock.ended(stage)
    assert clock.seconds == {"copy": 4.0, "write": 2.0}


def test_nothing_is_counted_before_a_stage_ends():
    assert StageClock().seconds == {}
