"""The wall clock jumps; the server's clock, by which leases expire, never does."""

from __future__ import annotations

import time

import pytest

from farm_server.environment.clock import SteadyClock

DAY_SECONDS = 86_400.0


class Wall:
    """A wall clock that somebody sets, and a monotonic one that nobody can."""

    def __init__(self) -> None:
        self.unix = 1_700_000_000.0
        self.monotonic = 500.0

    def pass_seconds(self, seconds: float) -> None:
        self.unix += seconds
        self.monotonic += seconds


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(time, "time", lambda: wall.unix)
    monkeypatch.setattr(time, "monotonic", lambda: wall.monotonic)
    return wall


@pytest.mark.parametrize("jump_seconds", [DAY_SECONDS, -DAY_SECONDS, -3600.0, 0.5])
def test_a_jump_while_the_server_runs_is_not_seen(wall: Wall, jump_seconds: float) -> None:
    clock = SteadyClock()
    began = clock.now()
    assert began == wall.unix
    wall.pass_seconds(10)
    wall.unix += jump_seconds
    wall.pass_seconds(5)
    assert clock.now() - began == 15


def test_a_clock_set_back_while_the_server_was_down_does_not_turn_time_back(wall: Wall) -> None:
    last = SteadyClock().now()
    wall.pass_seconds(60)
    wall.unix -= DAY_SECONDS
    wall.monotonic = 3.0  # the machine was started anew
    assert SteadyClock(not_before=last).now() == last


def test_a_clock_set_forward_while_the_server_was_down_is_believed(wall: Wall) -> None:
    last = SteadyClock().now()
    wall.unix += DAY_SECONDS
    assert SteadyClock(not_before=last).now() == wall.unix
