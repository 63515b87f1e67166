"""The server's side of the fault vocabulary; tests/faults has the places themselves, on real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm_server.environment import faults
from protocol.faults import FAULTS_VARIABLE, SPENT_VARIABLE, BadFaultPlan, Fault, InjectedFault


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm({})


def test_nothing_happens_where_nothing_is_planned() -> None:
    faults.arm({})
    assert not faults.armed()
    assert not faults.reach(Fault.SERVER_BEFORE_FOLD, 1)


@pytest.mark.parametrize(("action", "error"), [("raise", InjectedFault), ("oom", MemoryError)])
def test_what_is_planned_for_a_place_and_round_happens_there_once(action: str, error: type[Exception]) -> None:
    faults.arm({FAULTS_VARIABLE: f"server_before_fold@2:{action}"})
    assert not faults.reach(Fault.SERVER_BEFORE_FOLD, 1)
    assert not faults.reach(Fault.SERVER_BEFORE_COMMIT, 2)
    with pytest.raises(error):
        faults.reach(Fault.SERVER_BEFORE_FOLD, 2)
    assert not faults.reach(Fault.SERVER_BEFORE_FOLD, 2)


def test_once_means_once_through_restarts(tmp_path: Path) -> None:
    plan = {FAULTS_VARIABLE: "server_reply_lost@2:lose,server_reply_lost@*:0", SPENT_VARIABLE: str(tmp_path / "spent")}
    assert [_first_reach(plan) for _ in range(2)] == [True, False]


def _first_reach(plan: dict[str, str]) -> bool:
    faults.arm(plan)
    return faults.reach(Fault.SERVER_REPLY_LOST, 2)


def test_sleeping_takes_as_long_as_it_says() -> None:
    faults.arm({FAULTS_VARIABLE: "server_slow:0.05"})
    began = time.monotonic()
    assert not faults.reach(Fault.SERVER_SLOW, 7)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("segfault", -11), ("exit", 1)])
def test_a_process_ends_as_planned(action: str, code: int) -> None:
    script = (
        "from farm_server.environment import faults; from protocol.faults import Fault; faults.arm();"
        "faults.reach(Fault.SERVER_BEFORE_COMMIT, 1)"
    )
    environ = {FAULTS_VARIABLE: f"server_before_commit:{action}"}
    ended = subprocess.run([sys.executable, "-c", script], env=environ, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == code


def test_a_plan_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(BadFaultPlan):
        faults.arm({FAULTS_VARIABLE: "server_before_lunch:kill"})
