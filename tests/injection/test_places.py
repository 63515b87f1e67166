"""A plan is carried out as it says; tests/faults has the places themselves, on real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.injection.places import Places
from tests.injection.plan import FAULTS_VARIABLE, SPENT_VARIABLE, BadFaultPlan, Fault, InjectedFault


def planned(text: str, **more: str) -> Places:
    return Places.planned({FAULTS_VARIABLE: text, **more})


async def test_nothing_happens_where_nothing_is_planned() -> None:
    places = Places.planned({})
    assert not places.reach(Fault.SERVER_BEFORE_FOLD, 1)
    assert not await places.reach_async(Fault.CLIENT_SLOW, 1)


@pytest.mark.parametrize(("action", "error"), [("raise", InjectedFault), ("oom", MemoryError)])
def test_what_is_planned_for_a_place_and_round_happens_there_once(action: str, error: type[Exception]) -> None:
    places = planned(f"server_before_fold@2:{action}")
    assert not places.reach(Fault.SERVER_BEFORE_FOLD, 1)
    assert not places.reach(Fault.SERVER_BEFORE_COMMIT, 2)
    with pytest.raises(error, match="server_before_fold"):
        places.reach(Fault.SERVER_BEFORE_FOLD, 2)
    assert not places.reach(Fault.SERVER_BEFORE_FOLD, 2)


def test_once_means_once_through_processes(tmp_path: Path) -> None:
    text, spent = "server_reply_lost@2:lose,server_reply_lost@*:0", {SPENT_VARIABLE: str(tmp_path / "spent")}
    assert [planned(text, **spent).reach(Fault.SERVER_REPLY_LOST, 2) for _ in range(2)] == [True, False]


async def test_sleeping_takes_as_long_as_it_says() -> None:
    places = planned("server_slow:0.02,client_slow:0.02")
    began = time.monotonic()
    assert not places.reach(Fault.SERVER_SLOW, 7)
    assert not await places.reach_async(Fault.CLIENT_SLOW, 7)
    assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("segfault", -11), ("exit", 1)])
def test_a_process_ends_as_planned(action: str, code: int) -> None:
    script = (
        "from tests.injection.places import Places; from tests.injection.plan import Fault;"
        "Places.planned().reach(Fault.SERVER_BEFORE_COMMIT, 1)"
    )
    environ = {FAULTS_VARIABLE: f"server_before_commit:{action}"}
    ended = subprocess.run([sys.executable, "-c", script], env=environ, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == code


def test_a_plan_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(BadFaultPlan, match="server_before_lunch"):
        planned("server_before_lunch:kill")
